"""A real browser for the tests of the page: no window, no request but for the page, nothing on its console."""

import contextlib
import os
import shutil

import pytest

driver = pytest.importorskip("playwright.sync_api", reason="playwright (extra [test]) is not installed")
PROGRAM = shutil.which(os.environ.get("CHROMIUM", "chromium"))
needs_browser = pytest.mark.skipif(
    PROGRAM is None, reason="no program `chromium` (name another by CHROMIUM=PATH)"
)
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
# Of every element whose text is seen: its contrast (WCAG 2) with the ground behind it, and what it is.
CONTRASTS = """
(all) => {
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map((v) => v / 255)
      .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const clear = (element) => /rgba\\(.*, 0\\)|transparent/.test(getComputedStyle(element).backgroundColor);
  return all.filter((e) => e.textContent.trim() && e.getClientRects().length).map((element) => {
    let ground = element;
    while (ground.parentElement && clear(ground)) ground = ground.parentElement;
    const style = getComputedStyle(element);
    const text = light(element instanceof SVGElement ? style.fill : style.color);
    const behind = light(getComputedStyle(ground).backgroundColor);
    const contrast = (Math.max(text, behind) + 0.05) / (Math.min(text, behind) + 0.05);
    return [contrast, `${element.tagName} ${element.textContent.trim().slice(0, 40)}`];
  });
}
"""
TEXTS = (
    "h1, h2, h3, p, summary, nav a, th button, td, td small, th[scope=row], caption span, dt, dd, label, "
    "figcaption b, figcaption span, .chip, .value, .arrow, .tab-list button, .offers button, select, input, "
    ".legend li, figure text, .chart text"
)


@contextlib.contextmanager
def launched():
    """Yields a browser without a window and without a network of its own."""
    with driver.sync_playwright() as played:
        opened = played.chromium.launch(executable_path=PROGRAM, args=list(FLAGS))
        yield opened
        opened.close()


@contextlib.contextmanager
def visits(browser, path):
    """Yields a function that opens the page at `path` in a new context with the options given.

    At the end no page may have said anything on its console or in a dialog, nor have asked for anything else.
    """
    contexts, said, asked = [], [], []

    def go(**options):
        contexts.append(browser.new_context(**({"viewport": {"width": 1200, "height": 900}} | options)))
        page = contexts[-1].new_page()
        page.set_default_timeout(30_000)  # a busy machine is slow, not wrong
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        return page

    yield go
    for context in contexts:
        context.close()
    assert not said
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()] * len(contexts)


def column(page, table, place):
    """First lines of the texts in one column of a table."""
    return page.eval_on_selector_all(
        f"#{table} tbody tr", f"rows => rows.map((row) => row.cells[{place}].innerText.split('\\n')[0])"
    )

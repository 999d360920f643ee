"""The page as a reader meets it: opened in a real browser without a network, driven by mouse and keyboard."""

import itertools
import pathlib
import re
import sys

import pandas as pd
import pytest

from perturbdiff_jax.evaluation.page import duels, glossary
from perturbdiff_jax.evaluation.page.report import write_report

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from browser import CONTRASTS, TEXTS, column, launched, needs_browser, visits
from fake_run import NASTY, write_run

pytestmark = needs_browser
HOSTILE = NASTY[0]  # a script, quotes, an ampersand and a letter beyond ASCII


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("browser") / "run"
    write_run(path, perturbations=("IFNG", "TNF", "IL6", *NASTY), genes=25, cells=8, missing=0.1)
    table = pd.read_csv(path / "metrics_all.csv", dtype=str, keep_default_na=False)
    table.loc[table["perturbation"] == "TNF", "r2"] = "0.75"  # ties
    table.to_csv(path / "metrics_all.csv", index=False)
    write_report(path)
    return path


@pytest.fixture(scope="module")
def browser():
    with launched() as opened:
        yield opened


@pytest.fixture
def opened(browser, run):
    with visits(browser, run / "report.html") as go:
        yield go


@pytest.fixture
def page(opened):
    return opened()


def test_it_asks_nobody_for_anything(page):
    asked = page.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert not [name for name in asked if not name.startswith("data:")]
    assert page.evaluate("document.documentElement.lang") == "en"
    levels = page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map((head) => Number(head.tagName[1]))")
    assert levels[0] == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
    unnamed = "inputs => inputs.filter((i) => !i.labels.length).length"
    assert page.eval_on_selector_all("input, select", unnamed) == 0
    assert all(page.query_selector(name) for name in ("header", "nav", "main"))


def test_a_column_head_sorts(page, run):
    table = pd.read_csv(run / "metrics.csv", keep_default_na=False)
    heads = page.eval_on_selector_all("#every thead button", "all => all.map((b) => b.innerText)")
    place = next(i for i, text in enumerate(heads) if text.startswith("Pearson delta"))
    values = pd.to_numeric(table["pearson_delta"])
    for descending in (True, False):
        page.locator("#every thead button").nth(place).click()
        shown = column(page, "every", place)
        wanted = values.dropna().sort_values(ascending=not descending)
        assert shown[: len(wanted)] == [f"{v:.3f}" if v >= 0.1 else f"{v:.4f}" for v in wanted]
        assert set(shown[len(wanted) :]) == {"–"}
        order = page.locator("#every thead th").nth(place).get_attribute("aria-sort")
        assert order == ("descending" if descending else "ascending")


def test_the_search_keeps_the_right_rows_and_shows_a_hostile_name_as_text(page):
    page.fill("#find", "tnf nk")
    shown = page.eval_on_selector_all(
        "#every tbody tr:not([hidden])",
        "rows => rows.map((r) => [r.cells[0].innerText, r.cells[1].innerText])",
    )
    assert shown == [["TNF", "T & <NK>"]] and page.inner_text("#every-found") == "1 of 18 shown"
    page.fill("#find", "alert(1)")
    assert set(column(page, "every", 0)) > {HOSTILE} and page.inner_text("#every-found") == "2 of 18 shown"
    page.fill("#look-perturbation", HOSTILE)
    assert page.inner_text("#look-perturbation-said") == f"{HOSTILE}: 2 conditions"
    assert HOSTILE in page.inner_text("#look-perturbation-result caption")


def test_a_gene_is_found_with_its_numbers(page, run):
    page.fill("#look-gene", "gene1")
    page.fill("#look-gene", "gene7")
    table = pd.read_csv(run / "mean_changes.csv.gz", keep_default_na=False)
    mine = table[table["gene"] == "GENE7"].sort_values("real_change", key=lambda v: -v.abs())
    rows = page.eval_on_selector_all(
        "#look-gene-result tbody tr", "rows => rows.map((row) => [...row.cells].map((c) => c.innerText))"
    )
    assert len(rows) == len(mine) == 18

    right = 0
    for row, want in zip(rows, mine.itertuples()):
        same = want.real_change * want.pred_change > 0
        holds = want.low <= want.real_change <= want.high
        right += same
        assert row[:2] == [want.perturbation, want.cell_type]
        shown = [float(text.replace("−", "-")) for text in (row[2], row[3], *row[6].split(" to "))]
        wanted = (want.real_change, want.pred_change, want.low, want.high)
        assert shown == pytest.approx(wanted, abs=0.000501)
        assert row[5] == ("right" if same else "wrong") and row[7] == ("yes" if holds else "no")
    assert page.inner_text("#look-gene-said") == f"GENE7: 18 conditions, direction right in {right} of 18"
    page.fill("#look-gene", "nothing like it")
    assert "None of that name" in page.inner_text("#look-gene-said")


def test_a_perturbation_is_found_with_scores_and_genes(page, run):
    page.fill("#look-perturbation", "i")
    page.click("#look-perturbation-offers button:has-text('IL6')")
    parts = page.eval_on_selector_all(
        "#look-perturbation-result table",
        "all => all.map((t) => [...t.tBodies[0].rows].map((r) => [...r.cells].map((c) => c.textContent)))",
    )
    metrics = pd.read_csv(run / "metrics.csv", keep_default_na=False)
    scores = metrics[metrics["perturbation"] == "IL6"].set_index("cell_type")
    assert {row[0]: row[3] for row in parts[0]} == {
        kind: f"{float(v):.4f}" if v else "–" for kind, v in scores["energy"].items()
    }
    table = pd.read_csv(run / "mean_changes.csv.gz", keep_default_na=False)
    first = table[(table["perturbation"] == "IL6") & (table["cell_type"] == scores.index[0])]
    size = first[["real_change", "pred_change"]].abs().max(axis=1)
    wanted = first["gene"][size.sort_values(ascending=False, kind="stable").index[:20]].tolist()
    assert sorted(row[0] for row in parts[1]) == sorted(wanted)


def test_the_chart_follows_its_selects_and_counts_like_python(page, run):
    table = pd.read_csv(
        run / "metrics_all.csv", keep_default_na=False, na_values={n: [""] for n in glossary.METRICS}
    )
    scores = duels.Scores.of(table)
    seen = set()
    for metric, ours, rival in (
        ("mse", "perturbdiff", "control cells + mean delta"),
        ("pr_auc", "perturbdiff", "mean overall"),
        ("r2", "control", "ceiling"),
    ):
        for name, label in (("ours", ours), ("rival", rival)):
            page.select_option(f"#duel-{name}", label=label)
        known = glossary.metric(metric)
        page.select_option("#duel-metric", label=f"{known.label} {'↑' if known.better > 0 else '↓'}")
        duel = scores.duel(metric, ours, rival)
        text = f"{known.label}: {ours} is {duel.words}.".replace("better in", f"better than {rival} in")
        said = page.inner_text("#duel-said")
        assert said.startswith(text) and duel.conditions < 18
        assert f"{18 - duel.conditions} without a value of both" in said
        kinds = {kind: page.locator(f"#duel-chart circle.{kind}").count() for kind in ("win", "tie", "loss")}
        assert kinds == {"win": duel.wins, "tie": duel.ties, "loss": duel.losses}
        seen.add(page.inner_html("#duel-chart svg"))
    assert len(seen) == 3 and duel.ties == 2
    page.click("#duel-list summary")
    page.locator("#duel-list tbody tr").first.wait_for()  # "toggle" comes after the click
    assert page.locator("#duel-list tbody tr").count() == duel.conditions
    page.select_option("#duel-rival", label="control")
    assert page.inner_text("#duel-said") == "Choose two different models." and page.is_hidden("#duel-chart")


def test_a_point_tells_its_condition_to_mouse_and_keyboard(page):
    page.select_option("#duel-metric", label="Energy distance ↓")
    page.locator("#duel-chart").scroll_into_view_if_needed()
    first = page.locator("#duel-chart circle").first.bounding_box()
    page.mouse.move(first["x"] + first["width"] / 2, first["y"] + first["height"] / 2)
    by_mouse = page.inner_text("#duel-point")
    assert re.search(
        r", (B cell|T & <NK>): perturbdiff \d\.\d+, .* \d\.\d+, (better|worse|the same)$", by_mouse
    )
    assert page.inner_text("#duel-chart .tip") == by_mouse
    page.mouse.move(5, 5)
    page.focus("#duel-rival")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "duel-chart"
    told = []
    for key in ("Home", "ArrowRight", "End"):
        page.keyboard.press(key)
        told.append(page.inner_text("#duel-point"))
    assert len(set(told)) == 3 and told[0].endswith("better")


def test_the_keyboard_alone_sorts_and_switches_tabs(page):
    def tab_to(wanted):
        for _ in range(150):
            page.keyboard.press("Tab")
            if page.evaluate(f"document.activeElement.matches({wanted!r})"):
                assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
                return
        raise AssertionError(f"Tab does not reach {wanted}")

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    before = column(page, "models", 1)
    tab_to("#models th:nth-child(2) button")
    page.keyboard.press("Enter")
    assert column(page, "models", 1) == sorted(before, reverse=True) != before
    tab_to("#cell-maps-tab-0")
    assert page.is_visible("#cell-maps-0") and page.is_hidden("#cell-maps-1")
    page.keyboard.press("ArrowRight")
    assert page.is_hidden("#cell-maps-0") and page.is_visible("#cell-maps-1 figure")
    assert page.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"


def test_a_phone_needs_no_sideways_scrolling(opened):
    page = opened(viewport={"width": 360, "height": 740})
    page.fill("#look-gene", "gene7")
    page.fill("#look-perturbation", HOSTILE)
    page.click("#duel-list summary")
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    page.locator("#duel-list tbody tr").first.wait_for()
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 360


def test_paper_shows_every_section_and_no_control(page):
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    for name in ("nav", ".tab-list", ".choose", "#find", "#look-gene", ".skip", "#duel-list"):
        assert page.is_hidden(name), name
    for section in page.query_selector_all("section"):
        assert section.bounding_box()["height"] > 30
    seen = (
        "#cell-maps-0 figure",
        "#cell-maps-1 figure",
        "#wins",
        "#recovery",
        "#pooled-rows",
        "#duel-chart svg",
    )
    for name in seen:
        assert page.is_visible(name), name
    assert page.pdf()[:5] == b"%PDF-"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(opened, scheme):
    page = opened(color_scheme=scheme)
    page.fill("#look-gene", "gene7")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.search(r"\d+", ground).group()) < 60) == (scheme == "dark")
    found = page.eval_on_selector_all(TEXTS, CONTRASTS)
    assert len(found) > 500
    assert not [(round(value, 2), what) for value, what in found if value < 4.5]


def test_without_scripts_the_tables_and_pictures_stand(opened):
    page = opened(java_script_enabled=False)
    assert page.is_hidden("#duel") and page.is_hidden("#asking") and page.is_hidden(".tab-list")
    assert page.is_visible("#wins") and page.is_visible("#conditions figure svg")
    assert page.is_visible("#cell-maps-1 figure") and page.is_visible("text=Looking up needs scripts")

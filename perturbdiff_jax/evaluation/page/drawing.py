"""Drawing with matplotlib into small SVG panels that sit inside an HTML page.

Owns the chart style and the clean-up that makes a matplotlib SVG safe and quiet inline: no address in it, its
own ids, the page's font, text as text. Knows nothing of what is drawn. matplotlib comes with the extra
`[eval]`.
"""

import contextlib
import dataclasses
import html
import importlib.util
import io
import logging
import re
import warnings

INK, MUTED, RULE = "#1c2329", "#59636d", "#dfe3e6"
SIZE = (3.2, 2.8)  # inches, four across on a desktop; 9-point text stays readable on a 390-pixel screen
DENSE = 1500  # more points than this are drawn as pixels, to keep the page small
_STYLE = {
    "svg.fonttype": "none",  # text stays text: smaller, searchable, read aloud
    "svg.hashsalt": "perturbdiff",  # the same results give the same page
    "text.parse_math": False,  # a perturbation may be called "a$b$"
    "font.size": 9,
    "axes.edgecolor": "#b6bdc3",
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eceff1",
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK,
    "lines.linewidth": 1.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.dpi": 130,
}


@dataclasses.dataclass(frozen=True)
class Panel:
    """One picture: `svg` markup, a `title` and an `alt` text (both plain, the page escapes them)."""

    svg: str
    title: str
    alt: str
    note: str = ""
    wide: bool = False


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


@contextlib.contextmanager
def canvas(size=SIZE, *, polar: bool = False):
    """Yields (figure, axes) in the page's style; a name without a glyph in our font warns nobody."""
    import matplotlib
    from matplotlib.figure import Figure

    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            figure = Figure(figsize=size, layout="constrained")
            if polar:  # its labels lie outside the axes, where the layout engine leaves far too much room
                figure.set_layout_engine("none")
                yield figure, figure.add_axes((0.2, 0.13, 0.6, 0.74), projection="polar")
            else:
                yield figure, figure.add_subplot()
    finally:
        log.setLevel(level)


def to_svg(figure, prefix: str, tips: dict[str, list[str]] | None = None) -> str:
    """Markup of `figure` for use inside HTML.

    Args:
      figure: a matplotlib figure made in `canvas`.
      prefix: unique on the page; every id of the SVG gets it.
      tips: {gid of a point collection: one hover text per point, in drawing order}.
    """
    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(out, format="svg", metadata=nothing)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # "*{...}" would style the whole page
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?)\s(?:width="[^"]*")', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?)\s(?:height="[^"]*")', r"\1", svg, count=1)
    svg = svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)
    for gid, texts in (tips or {}).items():
        svg = _add_tips(svg, gid, texts)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'((?:xlink:)?href="#)', rf"\g<1>{prefix}-", svg)
    svg = svg.replace("url(#", f"url(#{prefix}-")
    svg = re.sub(r"(font(?:-family)?: [^;\"]*?)(?:'[^'\"]*'(?:, )?)+(?:, )?[\w\-, ]*", r"\1inherit", svg)
    svg = re.sub(r"font: ([^;\"]*?)inherit", _long_font, svg)
    svg = re.sub(r"((?:fill|stroke): )(#[0-9a-f]{6})\b", lambda m: m.group(1) + themed(m.group(2)), svg)
    return re.sub(r">\s+<", "><", svg)


def themed(color: str) -> str:
    """CSS of a colour "#rrggbb" for the light page that theme.css may replace on a dark one."""
    return f"var(--c{color[1:]},{color})"


def _long_font(match) -> str:
    # "font: 700 9px inherit" is not valid CSS: the family of the shorthand cannot be inherited.
    words = match.group(1).split()
    size = next((word for word in words if word.endswith(("px", "pt"))), "9px")
    bold = "; font-weight: 700" if "700" in words or "bold" in words else ""
    return f"font-size: {size}{bold}"


def _add_tips(svg, gid, texts) -> str:
    start = svg.find(f'<g id="{gid}"')
    if start < 0:
        return svg
    stop = svg.find('<g id="', start + 1)
    body, remaining = svg[start : stop if stop > 0 else len(svg)], iter(texts)

    def wrap(match):
        text = next(remaining, None)
        return (
            match.group(0) if text is None else f"{match.group(1)}><title>{html.escape(text)}</title></use>"
        )

    new = re.sub(r"(<use\b[^>]*?)\s*/>", wrap, body)
    return svg[:start] + new + svg[start + len(body) :]

"""HTML of the report page: the frame, sections, panels and tables. What comes from outside is escaped.

The page asks the network for nothing: style and script stand inside it, its content policy forbids the rest.
"""

import dataclasses
import html
import importlib.resources
import math
import re

from perturbdiff_jax.evaluation.page import glossary
from perturbdiff_jax.evaluation.page.drawing import Panel, themed

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
STYLES = ("theme.css", "style.css", "parts.css", "print.css")
SCRIPTS = ("base.js", "tables.js", "tabs.js", "scatter.js", "lookup.js")  # base first: the others use it
_STROKES = {"solid": "", "dashed": "6 3", "dotted": "2 3", "dashdot": "7 3 2 3"}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One table cell: `text` shown, `sort` the number it sorts by, `small` a second line, `best` in bold."""

    text: str
    sort: float | None = None
    small: str = ""
    best: bool = False


@dataclasses.dataclass(frozen=True)
class Column:
    """One table column; `tip` explains it on hover, `better` draws its arrow (+1 up, -1 down, 0 none)."""

    label: str
    tip: str = ""
    better: int = 0
    number: bool = True


def escape(value: object) -> str:
    return html.escape(str(value), quote=True)


def page(title: str, subtitle: str, sections: list[tuple[str, str, str]]) -> str:
    """The whole document from (id, heading, inner HTML) sections."""
    links = "".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in sections)
    body = "\n".join(
        f'<section id="{name}" aria-labelledby="{name}-head"><h2 id="{name}-head">{escape(heading)}</h2>\n'
        f"{inner}\n</section>"
        for name, heading, inner in sections
    )
    styles = "\n".join(f"<style>\n{_asset(name)}</style>" for name in STYLES)
    scripts = "\n".join(f"<script>\n{_asset(name)}</script>" for name in SCRIPTS)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
{styles}
</head>
<body>
<a class="skip" href="#content">Skip to the results</a>
<header><h1>{escape(title)}</h1><p class="subtitle">{escape(subtitle)}</p></header>
<nav aria-label="Sections"><div>{links}</div></nav>
<main id="content">
{body}
</main>
{scripts}
</body>
</html>
"""


def _asset(name: str) -> str:
    return (importlib.resources.files(__package__) / name).read_text(encoding="utf-8")


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text; words in backticks become code."""
    inner = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return f'<p class="{kind}">{inner}</p>' if kind else f"<p>{inner}</p>"


def absent(text: str) -> str:
    """The sentence that stands in for a part that is left out."""
    return paragraph(text, "absent")


def panels(items: list[Panel]) -> str:
    """Figures in a grid that becomes one column on a phone."""
    figures = "".join(
        f"<figure{' class=wide' if item.wide else ''}><figcaption><b>{escape(item.title)}</b>"
        f"{f'<span>{escape(item.note)}</span>' if item.note else ''}</figcaption>"
        f'<div role="img" aria-label="{escape(item.alt)}">{item.svg}</div></figure>'
        for item in items
    )
    kind = "panels four" if len(items) == 4 else "panels"
    return f'<div class="{kind}">{figures}</div>'


def legend(items: list[tuple[str, str, str]], *, dots: bool = False) -> str:
    """Swatches (name, colour, dash) in the order given."""
    shapes = "".join(f"<li>{_swatch(color, dash, dots)}{escape(name)}</li>" for name, color, dash in items)
    return f'<ul class="legend">{shapes}</ul>'


def model_mark(model: str) -> str:
    """The swatch of a model beside its name."""
    return f'<span class="mark">{_swatch(*glossary.style(model), False)}<span>{escape(model)}</span></span>'


def tabs(name: str, label: str, items: list[tuple[str, str]]) -> str:
    """Parts (title, inner HTML) of which one is seen at a time; all of them below each other without a script."""
    buttons = "".join(
        f'<button type="button" role="tab" id="{name}-tab-{i}" aria-controls="{name}-{i}">{escape(title)}</button>'
        for i, (title, _) in enumerate(items)
    )
    parts = "".join(
        f'<div class="tab-panel" id="{name}-{i}"><h3>{escape(title)}</h3>{inner}</div>'
        for i, (title, inner) in enumerate(items)
    )
    head = f'<div class="tab-list" role="tablist" aria-label="{escape(label)}" hidden>{buttons}</div>'
    return f'<div class="tabs">{head}{parts}</div>'


def _swatch(color, dash, dots) -> str:
    color = themed(color)
    if dots:
        shape = f'<circle cx="6" cy="6" r="5" style="fill:{color}"/>'
        return f'<svg class="swatch" width="12" height="12" aria-hidden="true">{shape}</svg>'
    line = f'<path d="M0 6h26" style="stroke:{color}" stroke-width="3" stroke-dasharray="{_STROKES[dash]}"/>'
    return f'<svg class="swatch" width="26" height="12" aria-hidden="true">{line}</svg>'


def table(
    name: str,
    columns: list[Column],
    rows: list[list[Cell | str]],
    *,
    caption: str,
    foot: list[list[Cell | str]] = (),
    strong: int | None = None,
    tall: bool = False,
) -> str:
    """A sortable table that scrolls sideways inside its own frame.

    Args:
      name: id of the table.
      columns: the head.
      rows: Cells, or strings of ready HTML (already escaped by the caller).
      caption: read aloud and shown above.
      foot: rows that sorting leaves at the bottom.
      tall: whether a long table scrolls inside its frame as well.
      strong: index in `rows` of the row to set off, ours.
    """
    head = "".join(
        f'<th scope="col"{"" if column.number else " class=text"}>'
        f'<button type="button" title="{escape(column.tip)}">{escape(column.label)}'
        f"{_arrow(column.better)}</button></th>"
        for column in columns
    )
    body = "".join(_row(row, columns, "ours" if place == strong else "") for place, row in enumerate(rows))
    tail = "".join(_row(row, columns, "") for row in foot)
    tail = f"<tfoot>{tail}</tfoot>" if tail else ""
    kind = "scroll tall" if tall else "scroll"
    return (
        f'<div class="{kind}" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<table id="{name}"><caption><span>{escape(caption)}</span></caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>{tail}</table></div>"
    )


def _arrow(better) -> str:
    if not better:
        return ""
    words, mark = ("higher is better", "↑") if better > 0 else ("lower is better", "↓")
    return f'&nbsp;<span class="arrow" role="img" aria-label="{words}">{mark}</span>'


def _row(row, columns, kind) -> str:
    parts = []
    for place, (cell, column) in enumerate(zip(row, columns, strict=True)):
        if isinstance(cell, str):
            cell_html, sort, tag = cell, "", ""
        else:
            shown = f"<b>{escape(cell.text)}</b>" if cell.best else escape(cell.text)
            cell_html = shown + (f"<small>{escape(cell.small)}</small>" if cell.small else "")
            known = cell.sort is not None and math.isfinite(cell.sort)
            sort = f' data-v="{cell.sort:.6g}"' if known else " data-v" if cell.sort is not None else ""
            tag = ' class="best"' if cell.best else ""
        if place == 0:
            parts.append(f'<th scope="row"{sort}>{cell_html}</th>')
        elif column.number:
            parts.append(f"<td{sort}{tag}>{cell_html}</td>")
        else:
            parts.append(f"<td class=text>{cell_html}</td>")
    return f"<tr{f' class={kind}' if kind else ''}>{''.join(parts)}</tr>"


def definitions(items: list[tuple[str, str]], kind: str = "facts") -> str:
    """A list of terms and their values."""
    rows = "".join(f"<div><dt>{escape(term)}</dt><dd>{escape(value)}</dd></div>" for term, value in items)
    return f'<dl class="{kind}">{rows}</dl>'


def fold(summary: str, inner: str, *, printed: bool = True) -> str:
    """A part that opens on demand; print has it opened, or not at all when `printed` is False."""
    kind = "" if printed else ' class="screen"'
    return f"<details{kind}><summary>{escape(summary)}</summary>{inner}</details>"

"""The sections of the report that tell in words and tables: verdict, run, every condition.

Each function goes from the results to (id, heading, inner HTML). A part whose file or library is missing is
one sentence that says why; nothing here raises for it.
"""

import math

from perturbdiff_jax.evaluation.page import facts, glossary, markup, unseen, verdict, zero_shot
from perturbdiff_jax.evaluation.page.glossary import CEILING, HEADLINE
from perturbdiff_jax.evaluation.page.markup import Column
from perturbdiff_jax.evaluation.page.metric_tables import score_cell
from perturbdiff_jax.evaluation.page.picture_sections import MOST_ROWS
from perturbdiff_jax.evaluation.page.run_files import Results

_KEYS = ["cell_type", "perturbation"]


def verdict_section(results: Results):
    """In words and three tiles: where we stand against the best baseline and the ceiling."""
    heading = ("verdict", "Verdict")
    if "summary" in results.absent and (said := zero_shot.told(results.workdir)):
        return *heading, f'<div class="verdict">{said}</div>'
    if "summary" in results.absent or not results.models.get(glossary.ours()):
        return *heading, markup.absent(
            results.absent.get("summary", "summary.json has no row for the model.")
        )
    said = "".join(markup.paragraph(text) for text in verdict.sentences(results.models))
    tiles = [_tile(item) for name in HEADLINE if (item := verdict.standing(results.models, name))]
    tiles = f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""
    hint = (
        "Means over conditions with bootstrap 95 % intervals; apart means that two intervals do not overlap."
    )
    return *heading, f'<div class="verdict">{said}</div>{tiles}{markup.paragraph(hint, "hint")}'


def _tile(item) -> str:
    known = glossary.metric(item.metric)
    lines = []
    if item.rival is not None:
        lines.append((markup.model_mark(item.rival), _with_interval(item.rival_entry)))
    if not math.isnan(item.ceiling):
        lines.append((markup.model_mark(CEILING), verdict.figure(item.ceiling)))
    rows = "".join(f"<li><span>{name}</span><span>{markup.escape(text)}</span></li>" for name, text in lines)
    kind = "even" if item.rival is None or not item.apart else "ahead" if item.ahead else "behind"
    arrow = "↑" if known.better > 0 else "↓"
    return (
        f'<div class="tile"><h3 title="{markup.escape(known.meaning)}">{markup.escape(known.label)} {arrow}</h3>'
        f'<div class="value">{verdict.figure(item.ours[0])}'
        f"<small>{markup.escape(verdict.interval_words(item.ours))}</small></div>"
        f'<ul>{rows}</ul><span class="chip {kind}">{markup.escape(item.phrase)}</span></div>'
    )


def rows_section(results: Results):
    """The searchable table of our scores per condition."""
    heading = ("rows", "Every condition")
    if results.metrics is None:
        return *heading, markup.absent(results.absent["metrics"])
    table = results.metrics if results.every is None else results.every
    several = "model" in table
    names = glossary.order_metrics(table.columns.difference(["model", *_KEYS]))
    if "energy" in table:
        table = table.sort_values("energy", ascending=False, kind="stable")
    cut = table.head(MOST_ROWS)
    columns = [Column("Perturbation", number=False), Column("Cell type", number=False)]
    columns += [Column("Model", number=False)] * several
    columns += [Column(m.label, m.meaning, m.better) for m in map(glossary.metric, names)]
    new = {model: unseen.strangers(results, model) for model in glossary.predictions()}

    def named(row) -> str:
        name = row["perturbation"]
        return unseen.marked(name, new.get(row.get("model", glossary.ours()), {}).get(name))

    rows = [
        [named(row), markup.escape(row["cell_type"])]
        + ([markup.model_mark(row["model"])] if several else [])
        + [score_cell(name, float(row[name])) for name in names]
        for row in cut.to_dict("records")
    ]
    hint = "perturbation or cell type" + (f", or {glossary.UNSEEN}" if any(new.values()) else "")
    box = (
        '<p class="find"><label for="find">Search</label><input id="find" type="search" data-table="every" '
        f'placeholder="{hint}" autocomplete="off"><span id="every-found" role="status">'
        f"{len(cut)} of {len(cut)} shown</span></p>"
    )
    caption = "Our scores, largest energy distance first" if "energy" in table else "Our scores"
    caption = caption if not several else caption.replace("Our scores", "Scores of every prediction")
    text = "The same values, at full precision, are in metrics.csv."
    if len(cut) < len(table):
        what = "rows" if several else "conditions"
        text = f"Shown are the first {len(cut):,} {what}; all {len(table):,} are in metrics.csv."
    every = markup.table("every", columns, rows, caption=caption, tall=True)
    return *heading, box + every + markup.paragraph(text, "hint") + unseen.listed(results)


def run_section(results: Results):
    """What was trained on what, how long, where; every setting folded below."""
    settings = results.summary.get("settings") or {}
    settings = settings if isinstance(settings, dict) else {"notes": settings}
    versions = [found for record in (results.run, results.summary) if (found := record.get("versions"))]
    known = facts.headline(results.run, results.config)
    if results.metrics is not None:
        table = results.metrics
        parts = (("perturbation", "perturbations"), ("cell type", "cell types"))
        counts = [table[one.replace(" ", "_")].nunique() for one, _ in parts]
        spread = ", ".join(f"{n:,} {one if n == 1 else many}" for n, (one, many) in zip(counts, parts))
        new = table["perturbation"].isin(unseen.strangers(results, glossary.ours())).sum()
        spread += f"; {new:,} {'is' if new == 1 else 'are'} of perturbations never trained on" if new else ""
        known.append(("Test conditions", f"{len(table):,} ({spread})"))
    merged = {name: v for found in versions if isinstance(found, dict) for name, v in found.items()}
    if merged:
        known.append(("Versions", ", ".join(f"{name} {value}" for name, value in merged.items())))
    parts = [markup.definitions(known)] if known else []
    parts += [markup.absent(results.absent[part]) for part in ("run", "config") if part in results.absent]
    parts += [markup.paragraph(note, "hint") for note in results.notes]
    every = facts.listing(("run", results.run), ("config", results.config), ("evaluation", settings))
    if every:
        parts.append(markup.fold("All settings and facts", markup.definitions(every, "all"), printed=False))
    return "run", "The run", "".join(parts)


def _with_interval(found) -> str:
    interval = verdict.interval_words(found)
    return f"{verdict.figure(found[0])} ({interval})" if interval else verdict.figure(found[0])

"""The section that compares two models condition by condition: pictures, a chart of any two, and win rates.

Like Figures 5 and 15 of the paper. The pictures and the table stand without the page's script, the chart needs it.
"""

from perturbdiff_jax.evaluation.page import drawing, duels, embedded, figures, glossary, markup
from perturbdiff_jax.evaluation.page.glossary import HEADLINE
from perturbdiff_jax.evaluation.page.markup import Cell, Column
from perturbdiff_jax.evaluation.page.picture_sections import NO_BASELINES, NO_PICTURES
from perturbdiff_jax.evaluation.page.run_files import Results


def conditions_section(results: Results):
    """(id, heading, inner HTML): ours against every other model, one point or one count per condition."""
    heading = ("conditions", "Condition by condition")
    if results.metrics_all is None:
        return *heading, markup.absent(results.absent["metrics_all"])
    scores = duels.Scores.of(results.metrics_all)
    if glossary.ours() not in scores.models or not scores.metrics:
        return *heading, markup.absent("metrics_all.csv has no scores of the model.")
    best, others = zip(*(duels.rivals(scores, results.models, name) for name in scores.metrics))
    others = others[0]
    parts = [] if any(best) else [markup.absent(NO_BASELINES)]
    if not others:
        return *heading, "".join(parts)
    if any(best):
        parts.append(
            markup.paragraph(
                "One point is one condition; in the shaded half ours is better. Each metric has its own best "
                "baseline."
            )
        )
        parts.append(_pictures(scores, dict(zip(scores.metrics, best))))
    record, left_out = duels.record(scores)
    drawn = [found["name"] for found in record["metrics"]]
    metric, rival = _first(scores, drawn, dict(zip(scores.metrics, best)), others)
    parts += [
        embedded.element("scores", record),
        _chooser(metric, rival, left_out),
        _table(scores, others, best),
    ]
    return *heading, "".join(parts)


def _pictures(scores, best) -> str:
    if not drawing.available():
        return markup.absent(NO_PICTURES)
    chosen = [name for name in HEADLINE if name in best] or list(best)[:3]
    drawn = [figures.scatter(scores, name, best[name]) for name in chosen if best[name]]
    return markup.panels([panel for panel in drawn if panel])


def _first(scores, drawn, best, others) -> tuple[str, str]:
    """(metric of `drawn`, rival) that the chart opens with: of the headline ones that with the fewest ties."""
    found = [
        scores.duel(name, glossary.ours(), best[name] or others[0]) for name in drawn if name in HEADLINE
    ]
    first = min(found, key=lambda duel: duel.ties, default=None)
    return (first.metric, first.rival) if first else (drawn[0], best[drawn[0]] or others[0])


def _chooser(metric: str, rival: str, left_out: list[str]) -> str:
    """The frame of the chart, filled by scatter.js; hidden while no script runs."""
    boxes = "".join(
        f'<label for="duel-{name}">{label}<select id="duel-{name}"></select></label>'
        for name, label in (("metric", "Metric"), ("ours", "Up"), ("rival", "Against, to the right"))
    )
    hint = (
        "Point at a condition to see its scores, or focus the chart and go through the conditions with the arrow "
        "keys."
    )
    if left_out:
        hint += f" To keep the page small the chart has no {', '.join(left_out)}; see metrics_all.csv."
    keys = "".join(
        f'<li><svg class="swatch chart-key" width="12" height="12" aria-hidden="true">'
        f'<circle class="{kind}" cx="6" cy="6" r="4.5"/></svg>{words}</li>'
        for kind, words in (("win", "up is better"), ("loss", "right is better"), ("tie", "the same"))
    )
    return (
        '<div id="duel" hidden><h3>Any two models</h3><div class="duel"><div>'
        f'<div class="choose" data-metric="{metric}" data-rival="{markup.escape(rival)}">{boxes}</div>'
        '<p id="duel-said" class="said" role="status"></p>'
        f'<ul class="legend">{keys}</ul>'
        f'<p id="duel-hint" class="hint">{markup.escape(hint)}</p></div>'
        '<div><div id="duel-chart" class="chart" tabindex="0" role="group" aria-roledescription="scatter chart" '
        'aria-labelledby="duel-said" aria-describedby="duel-hint">'
        '<svg viewBox="0 0 480 440" aria-hidden="true" focusable="false"></svg>'
        '<p class="tip" hidden></p></div><p id="duel-point" class="hint" role="status"></p></div></div>'
        '<details id="duel-list" class="screen"><summary>The points as a table</summary></details></div>'
    )


def _table(scores, others, best) -> str:
    """Win rates against every other model, the best baseline of each metric in bold."""
    columns = [Column("Against", "Ours is compared with this model", number=False)]
    columns += [Column(m.label, m.meaning) for m in map(glossary.metric, scores.metrics)]
    rows = []
    for rival, found in zip(others, duels.table_of(scores, scores.metrics, others)):
        row = [markup.model_mark(rival)]
        for duel, top in zip(found, best):
            text = f"{100 * duel.rate:.0f} %" if duel.conditions else "–"
            small = f"{duel.wins:,} of {duel.conditions:,}" + (f", {duel.ties:,} ties" if duel.ties else "")
            row.append(Cell(text, duel.rate, small if duel.conditions else "", best=rival == top))
        rows.append(row)
    words = (
        f"Share of conditions in which {glossary.ours()} is better, over the conditions where both have a value; ties "
        "are no wins. Bold is the best baseline of a metric."
    )
    return "<h3>Win rates against every model</h3>" + markup.table("wins", columns, rows, caption=words)

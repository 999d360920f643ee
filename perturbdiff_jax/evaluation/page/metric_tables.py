"""The metric tables: every model's means with intervals, by condition and over all cell types together.

Each function goes from the results to HTML; nothing here raises for a part that is missing.
"""

import math

from perturbdiff_jax.evaluation.page import drawing, facts, figures, glossary, markup, verdict
from perturbdiff_jax.evaluation.page.glossary import CEILING, HEADLINE
from perturbdiff_jax.evaluation.page.markup import Cell, Column
from perturbdiff_jax.evaluation.page.picture_sections import MOST_ROWS, NO_BASELINES, NO_PICTURES
from perturbdiff_jax.evaluation.page.run_files import Results


def metrics_section(results: Results):
    """(id, heading, inner HTML): models by metrics with intervals, the ceiling apart, what every metric means."""
    heading, models = ("metrics", "Metrics"), results.models
    if "summary" in results.absent or not models:
        return *heading, markup.absent(results.absent.get("summary", "summary.json names no model."))
    names, empty = _named(models)
    parts = [
        markup.paragraph("Bold is the best model of each column; below the value stands its 95 % interval."),
        means_table(
            "models",
            models,
            names,
            caption="Mean over conditions, missing values left out. The ceiling scores one half of the real "
            "cells against the other and takes no part in the ranking.",
        ),
    ]
    if not verdict.baselines(models):
        parts.append(markup.absent(NO_BASELINES))
    partial = [name for name in names if _uncounted(results, name)]
    if partial:
        labels = ", ".join(
            f"{glossary.metric(n).label} ({verdict.count(models, glossary.ours(), n)})" for n in partial
        )
        total = len(results.metrics)
        parts.append(markup.paragraph(f"Defined for fewer than all {total} conditions: {labels}.", "hint"))
    if empty:
        labels = ", ".join(glossary.metric(name).label for name in empty)
        parts.append(markup.paragraph(f"Without a value for any model, and left out: {labels}.", "hint"))
    parts += [markup.paragraph(text, "hint") for text in _remarks(results.summary.get("settings"))]
    arrows = {1: " ↑", -1: " ↓", 0: ""}
    meanings = [(m.label + arrows[m.better], m.meaning) for m in map(glossary.metric, names)]
    parts.append(markup.fold("What each metric means", markup.definitions(meanings, "meaning")))
    if drawing.available():
        drawn = [panel for name in HEADLINE if (panel := figures.intervals(models, name))]
        parts += ["<h3>Headline metrics with their intervals</h3>", markup.panels(drawn)] if drawn else []
    else:
        parts.append(markup.absent(NO_PICTURES))
    return *heading, "".join([*parts, "<h3>All cell types together</h3>", pooled(results)])


def pooled(results: Results) -> str:
    """Means and rows of the scores over the cells of all cell types together, or why there are none."""
    if results.pooled is None:
        return markup.paragraph(results.absent["pooled"], "hint")
    text = (
        "Here the cells of all cell types are scored as if they were of one, as tools do that know no cell types; "
        "there is one row per perturbation."
    )
    parts = [markup.paragraph(text)]
    models = results.summary.get("pooled")
    if isinstance(models, dict) and models:
        caption = "Mean over perturbations, all cell types together"
        parts.append(means_table("pooled", models, _named(models)[0], caption=caption))
    table = results.pooled[results.pooled["model"].isin(glossary.predictions())].head(MOST_ROWS)
    names = glossary.order_metrics(table.columns.difference(["model", "cell_type", "perturbation"]))
    columns = [Column("Perturbation", number=False), Column("Model", number=False)]
    columns += [Column(m.label, m.meaning, m.better) for m in map(glossary.metric, names)]
    rows = [
        [markup.escape(row["perturbation"]), markup.model_mark(row["model"])]
        + [score_cell(name, float(row[name])) for name in names]
        for row in table.to_dict("records")
    ]
    caption = f"Scores of {len(rows):,} perturbations, all cell types together; all are in metrics_pooled.csv"
    every = markup.table("pooled-rows", columns, rows, caption=caption, tall=True)
    return "".join([*parts, markup.fold("Every perturbation", every)])


def means_table(name: str, models: dict, names: list[str], *, caption: str) -> str:
    """Table `name`: models of a summary by metrics `names`, the best of a column in bold, the ceiling below."""
    rivals = [model for model in glossary.predictions() if model in models]
    rivals += verdict.baselines(models)
    best = {metric: verdict.best(models, metric, rivals) for metric in names}
    tops = {metric: verdict.entry(models, model, metric)[0] for metric, model in best.items() if model}
    columns = [Column("Model", "Click a column head to sort.", number=False)]
    columns += [Column(m.label, m.meaning, m.better) for m in map(glossary.metric, names)]
    rows = [_model_row(models, model, names, tops) for model in rivals]
    foot = [_model_row(models, CEILING, names, {})] if CEILING in models else []
    return markup.table(name, columns, rows, foot=foot, strong=0, caption=caption)


def _named(models) -> tuple[list[str], list[str]]:
    """(metrics that a model has a value of, metrics without any), in the page's order."""
    names = glossary.order_metrics(name for rows in models.values() for name in rows)
    empty = [n for n in names if all(math.isnan(verdict.entry(models, model, n)[0]) for model in models)]
    return [name for name in names if name not in empty], empty


def _uncounted(results, name) -> bool:
    have = verdict.count(results.models, glossary.ours(), name)
    if name == "de_spearman_sig":  # one value per cell type: counted by cell types
        return False
    return results.metrics is not None and have is not None and have < len(results.metrics)


def _remarks(settings) -> list[str]:
    """What the evaluation noted about itself: problems, and baselines without a row for some conditions."""
    if not isinstance(settings, dict):
        return []
    problems, undefined = settings.get("problems") or [], settings.get("undefined_rows") or {}
    problems = problems if isinstance(problems, list) else [problems]
    remarks = [facts.show(problem) for problem in problems]
    if isinstance(undefined, dict) and undefined:
        remarks.append(
            f"Conditions that a baseline cannot predict, left out of its mean: {facts.show(undefined)}."
        )
    return remarks


def _model_row(models, model, names, tops) -> list:
    cells = []
    for name in names:
        found = verdict.entry(models, model, name)
        small = (
            "" if math.isnan(found[1]) or not glossary.metric(name).better else verdict.interval_words(found)
        )
        cells.append(Cell(verdict.figure(found[0]), found[0], small, best=tops.get(name) == found[0]))
    return [markup.model_mark(model), *cells]


def score_cell(name: str, value: float) -> Cell:
    """A score as a table cell; a count without decimals."""
    whole = not glossary.metric(name).better and value == round(value, 0)  # a count of genes
    return Cell(f"{value:,.0f}" if whole else verdict.figure(value), value)

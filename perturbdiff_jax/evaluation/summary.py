"""Means over perturbations with bootstrap intervals, comparison with the best baseline, printed table."""

import math
from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd

from perturbdiff_jax.evaluation.metrics import COUNTS, LOWER_IS_BETTER, METRICS, PER_CONTEXT
from perturbdiff_jax.evaluation.stages import stage

OURS = "perturbdiff"
CEILING = "ceiling"
RESAMPLES = 2_000
LEVEL = 0.95

# The printed table: blocks of four metrics with their column heads.
BLOCKS = (
    {
        "discrimination_score_l1": "discrimination l1",
        "pearson_delta": "Pearson delta",
        "energy": "energy",
        "r2": "R2",
    },
    {
        "mse": "MSE",
        "overlap_at_N": "overlap at N",
        "de_direction_match": "DE direction",
        "pr_auc": "PR AUC",
    },
)

Interval = dict[str, float | int]
Summary = dict[str, dict[str, Interval]]  # model -> metric -> mean, low, high, count


def interval(values: np.ndarray, seed: int = 0) -> Interval:
    """NaN-ignoring mean, 95 % percentile bootstrap interval (2,000 seeded resamples), count of `values` [n].

    One value has no interval (NaN); no value has no mean either.
    """
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return {"mean": math.nan, "low": math.nan, "high": math.nan, "count": 0}
    low = high = math.nan
    if values.size > 1:
        rng = np.random.default_rng(seed)
        means = values[rng.integers(values.size, size=(RESAMPLES, values.size))].mean(axis=1)
        low, high = np.percentile(means, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high), "count": int(values.size)}


@stage("intervals")
def summarise(rows: pd.DataFrame, seed: int = 0) -> Summary:
    """Summary of rows (columns model, cell_type, perturbation, METRICS): per model, in the rows' order.

    A metric that is one number per cell type (de_spearman_sig) counts once per cell type: its repeated rows
    would make the interval too narrow.
    """
    summary: Summary = {}
    for model, mine in rows.groupby("model", sort=False):
        summary[str(model)] = {}
        for metric in METRICS:
            values = mine[metric]
            if metric in PER_CONTEXT:
                values = values.groupby(mine["cell_type"]).mean()
            summary[str(model)][metric] = interval(values.to_numpy(dtype=float), seed)
    return summary


def better(metric: str, a: float, b: float) -> bool:
    """Whether value a is better than value b; NaN is never better, and anything is better than NaN."""
    if math.isnan(a) or math.isnan(b):
        return not math.isnan(a)
    return a < b if metric in LOWER_IS_BETTER else a > b


def by_cell_type(rows: pd.DataFrame, seed: int = 0) -> dict[str, Summary]:
    """The summary of each cell type's rows."""
    return {str(name): summarise(mine, seed) for name, mine in rows.groupby("cell_type", sort=False)}


def best_baseline(summary: Summary, metric: str, predictions: Collection[str] = (OURS,)) -> str | None:
    """Name of the baseline with the best mean; no prediction, not the ceiling; None when all are NaN."""
    best = None
    for model, metrics in summary.items():
        if model in (*predictions, CEILING) or math.isnan(metrics[metric]["mean"]):
            continue
        if best is None or better(metric, metrics[metric]["mean"], summary[best][metric]["mean"]):
            best = model
    return best


def compare(
    summary: Summary, name: str = OURS, predictions: Collection[str] = (OURS,)
) -> dict[str, dict[str, object]]:
    """Prediction `name` against the best baseline, per metric that has a direction and values on both sides.

    metric -> {"baseline": its name, "ahead": our mean is better, "separate": the intervals do not overlap}.
    """
    result = {}
    for metric in METRICS:
        rival = best_baseline(summary, metric, predictions)
        if metric in COUNTS or rival is None or name not in summary:
            continue
        ours, theirs = summary[name][metric], summary[rival][metric]
        if math.isnan(ours["mean"]):
            continue
        # A comparison with NaN is False: without an interval nothing counts as separate.
        separate = ours["low"] > theirs["high"] or ours["high"] < theirs["low"]
        ahead = better(metric, ours["mean"], theirs["mean"])
        result[metric] = {"baseline": rival, "ahead": ahead, "separate": separate}
    return result


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.4f}" if 0 < abs(value) < 0.1 else f"{value:.3f}"


def table(summary: Summary) -> list[str]:
    """Lines of the printed table: models as rows, main metrics as columns, mean [95 % interval], best with *.

    The star goes to the best mean of all but the ceiling.
    """
    lines = [""]
    for block in BLOCKS:
        stars = {metric: _best_means(summary, metric) for metric in block}
        cells = [["", *block.values()]]
        for model, metrics in summary.items():
            texts = [_cell(metrics[metric], model in stars[metric]) for metric in block]
            cells.append([model, *texts])
        widths = [max(map(len, column)) + 2 for column in zip(*cells)]
        lines += ["".join(text.ljust(w) for text, w in zip(row, widths)).rstrip() for row in cells]
        lines.append("")
    return [
        *lines,
        "mean [95 % bootstrap interval over perturbations]; * best without the ceiling; - undefined",
    ]


def _cell(value: Interval, best: bool) -> str:
    text = _number(value["mean"]) + ("*" if best else " ")
    if not math.isnan(value["low"]):
        text += f" [{_number(value['low'])}, {_number(value['high'])}]"
    return text


def _best_means(summary: Summary, metric: str) -> set[str]:
    means = {model: metrics[metric]["mean"] for model, metrics in summary.items() if model != CEILING}
    return {
        model
        for model, mean in means.items()
        if not math.isnan(mean) and not any(better(metric, other, mean) for other in means.values())
    }


def verdict(comparison: Mapping[str, Mapping[str, object]], name: str | None = None) -> list[str]:
    """Lines that say where ours (`name`) is ahead of the best baseline and whether the intervals are apart."""
    who = "" if name is None else f"{name}: "
    kinds: dict[str, list[str]] = {}
    for metric, found in comparison.items():
        place = "ahead of" if found["ahead"] else "behind"
        apart = "intervals apart" if found["separate"] else "intervals overlap or missing"
        kinds.setdefault(f"{place} the best baseline, {apart}", []).append(f"{metric} ({found['baseline']})")
    return [f"{who}{kind}: {', '.join(metrics)}" for kind, metrics in sorted(kinds.items())]


def undefined(rows: pd.DataFrame) -> dict[str, int]:
    """Rows per model where it says nothing (R2 and energy both NaN)."""
    empty = rows[["r2", "energy"]].isna().all(axis=1)
    return {str(model): int(count) for model, count in rows.loc[empty, "model"].value_counts().items()}


def notes(settings: Mapping[str, object]) -> list[str]:
    """Lines on what a reader of the table must know: cell counts that differ, empty rows, failed metrics."""
    lines = []
    predictions = settings.get("predictions") or {"": settings}
    for name, facts in predictions.items():
        differ = facts["conditions_with_other_cell_count"]
        if differ:
            who = f"{name}: " if len(predictions) > 1 else ""
            lines.append(
                f"note: {who}{differ} of {settings['conditions']} conditions have "
                f"other numbers of predicted than of real cells ({facts['predicted_cells']:,} and "
                f"{settings['real_cells']:,} in all); the number of significant genes depends on it"
            )
    for model, count in settings["undefined_rows"].items():
        why = "not in training"
        if model == "linear":
            why = "without an embedding from training"
        lines.append(f"note: {model}: undefined for {count} perturbations ({why}): rows left empty")
    lines += [f"warning: metric failed: {problem}" for problem in settings["problems"]]
    return lines

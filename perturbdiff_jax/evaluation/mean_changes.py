"""Mean change of genes against control, real beside predicted, condition by condition: what the page looks up.

A condition here is what the scores compare: a (cell type, perturbation) with its batches pooled. The table is bounded:
every gene of a small screen, else the genes that change most on either side. It must not know files.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from perturbdiff_jax.evaluation import spread
from perturbdiff_jax.evaluation.contexts import Context, Prediction, pool
from perturbdiff_jax.evaluation.metrics import mean_of

TOP = 50  # genes of largest change on each side of a condition
WHOLE = 100_000  # pairs of condition and gene; up to here every gene is kept
LEVEL = 0.8  # of the interval
COLUMNS = ("cell_type", "perturbation", "gene", "real_change", "pred_change", "low", "high")


def mean_changes(
    contexts: Sequence[Context],
    predicted: Mapping[str, Prediction],
    draws: Mapping[str, Mapping[int, Prediction]],
    error: spread.Error = spread.TRUSTED,
) -> pd.DataFrame:
    """COLUMNS of the kept genes of every condition, largest real change first.

    Args:
      contexts: real cells and their controls.
      predicted: cell type -> the prediction's cells per (batch, perturbation).
      draws: cell type -> number of a draw -> the same; empty for files that number no draws.
      error: what the model errs, which intervals count with (spread.py).

    Changes are differences of mean log1p expression from the pooled real control cells, of several draws their mean.
    low, high: the interval in which the mean change of as many cells as the real ones lies with probability LEVEL
    (spread.interval), NaN without draws.
    """
    pairs = sum(len(context.perturbations) * len(context.genes) for context in contexts)
    frames = []
    for context in contexts:
        control = mean_of(context.pooled_control())
        pooled = pool(predicted[context.cell_type])
        by_draw = [pool(part) for part in draws.get(context.cell_type, {}).values()]
        for name, cells in sorted(context.pooled_real().items()):
            if pooled[name] is None:
                continue
            real, change = mean_of(cells) - control, mean_of(pooled[name]) - control
            found = [part[name] for part in by_draw if part.get(name) is not None]
            low = high = np.full(len(control), np.nan)
            if found:
                known = spread.drawn(found, control)
                change = known.change
                low, high = spread.interval(known, LEVEL, error=error, cells=cells.shape[0])
            kept = kept_genes(real, change, pairs <= WHOLE)
            frame = {"gene": np.asarray(context.genes, dtype=object)[kept]}
            frame |= {"real_change": real[kept], "pred_change": change[kept]}
            frame |= {"low": low[kept], "high": high[kept]}
            frames.append(pd.DataFrame({"cell_type": context.cell_type, "perturbation": name, **frame}))
    return pd.concat(frames, ignore_index=True)


def kept_genes(real: np.ndarray, predicted: np.ndarray, whole: bool, top: int = TOP) -> np.ndarray:
    """Places of the genes to keep of changes [G] and [G], largest real change first: all, or the `top` of each side."""
    order = np.argsort(-np.abs(real), kind="stable")
    if whole:
        return order
    wanted = set(order[:top]) | set(np.argsort(-np.abs(predicted), kind="stable")[:top])
    return np.array([place for place in order if place in wanted], dtype=int)

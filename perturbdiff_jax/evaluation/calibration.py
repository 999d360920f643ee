"""Do several draws of a condition know how unsure they are? Their intervals and distances beside those of real cells.

For every held-out (batch, perturbation) of a context: how many genes' real mean change lies in the draws' 50, 80 and
95 % intervals (spread.py), how far draws lie from each other, and how far the real batches of that perturbation do. A
prediction whose draws are closer together than real batches are is too sure of itself.
"""

import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd

from perturbdiff_jax.evaluation import spread
from perturbdiff_jax.evaluation.contexts import Context, Prediction
from perturbdiff_jax.evaluation.metrics import mean_distance, mean_of
from perturbdiff_jax.evaluation.summary import Interval, interval
from perturbdiff_jax.evaluation.threads import blas_threads

EXPRESSED = 0.05  # mean log1p: a gene below it in the real cells and the controls is next to never seen
PAIRS = 10  # of draws whose distance is taken
COVERAGE = tuple(f"coverage_{100 * level:g}" for level in spread.LEVELS)
COLUMNS = (
    "cell_type",
    "batch",
    "perturbation",
    "draws",
    "genes",
    *COVERAGE,
    "spread",
    "error",
    "energy_between_draws",
    "energy_between_batches",
    "energy_to_real",
)


def calibrate(draws: Mapping[int, Prediction], context: Context, *, widen: float = 1.0) -> pd.DataFrame:
    """One row (COLUMNS) for each (batch, perturbation) of the context that at least two draws predict.

    Args:
      draws: number of a draw -> its cells per (batch, perturbation), log1p-normalised CSR [n, G].
      context: real cells and their controls.
      widen: factor on the half width of all intervals.

    coverage_*: share of genes (expressed, and not the same in all draws) whose real change lies in the interval;
    spread: mean over genes of the standard deviation between draws; error: mean |real change - mean of draws|;
    energy_between_draws: mean half energy distance of pairs of draws; energy_between_batches: that of this batch's real
    cells and those of the perturbation's other batches, NaN where there are none; energy_to_real: of draws and real.
    """
    rows = []
    means = {batch: mean_of(cells) for batch, cells in context.control.items()}
    with blas_threads(context.values):
        spreads = {key: mean_distance(cells, cells) for key, cells in context.real.items()}
        for key, real in sorted(context.real.items()):
            found = [part[key] for part in draws.values() if part.get(key) is not None]
            if len(found) > 1:
                base = means[key[0]]
                own = [mean_distance(cells, cells) for cells in found]
                to_real = [_energy(cells, real, a, spreads[key]) for cells, a in zip(found, own)]
                rows.append(
                    {
                        "cell_type": context.cell_type,
                        "batch": key[0],
                        "perturbation": key[1],
                        "draws": len(found),
                        **_intervals(
                            np.stack([mean_of(cells) for cells in found]), mean_of(real), base, widen
                        ),
                        "energy_between_draws": _between(found, own),
                        "energy_between_batches": _other_batches(context, key, spreads),
                        "energy_to_real": float(np.mean(to_real)),
                    }
                )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def summary(rows: pd.DataFrame, seed: int = 0) -> dict[str, Interval]:
    """Mean over conditions with bootstrap interval of every column of numbers of `calibrate`."""
    return {name: interval(rows[name].to_numpy(dtype=float), seed) for name in COLUMNS[3:]}


def lines(rows: pd.DataFrame) -> list[str]:
    """What `calibrate` found, in two sentences."""
    means = rows[list(COLUMNS[3:])].mean()
    nominal = ", ".join(f"{100 * level:g}" for level in spread.LEVELS)
    covered = ", ".join(f"{100 * means[name]:.0f}" for name in COVERAGE)
    said = [
        f"draws: {len(rows)} conditions with {means['draws']:.3g} each; their {nominal} % intervals hold the real mean "
        f"change of {covered} % of the genes"
    ]
    batches = means["energy_between_batches"]
    beside = "" if np.isnan(batches) else f", real batches {batches:.4f}"
    said.append(
        f"energy distance: draws of a condition lie {means['energy_between_draws']:.4f} apart{beside}"
    )
    return said


def _intervals(
    predicted: np.ndarray, real: np.ndarray, control: np.ndarray, widen: float
) -> dict[str, float]:
    kept = np.maximum(control, real) >= EXPRESSED
    changes, change = (predicted - control)[:, kept], (real - control)[kept]
    shares = {
        name: float(np.nanmean(spread.coverage(changes, change, level, widen)))
        for name, level in zip(COVERAGE, spread.LEVELS)
    }
    deviation = spread.between(changes)[1]
    error = np.abs(changes.mean(axis=0) - change)
    return {
        "genes": int(kept.sum()),
        **shares,
        "spread": float(deviation.mean()),
        "error": float(error.mean()),
    }


def _between(found, own: list[float]) -> float:
    pairs = list(itertools.combinations(range(len(found)), 2))[:PAIRS]
    return float(np.mean([_energy(found[i], found[j], own[i], own[j]) for i, j in pairs]))


def _other_batches(context: Context, key: tuple[str, str], spreads: Mapping) -> float:
    others = [other for other in context.real if other[1] == key[1] and other[0] != key[0]]
    apart = [
        _energy(context.real[key], context.real[other], spreads[key], spreads[other]) for other in others
    ]
    return float(np.mean(apart)) if apart else float("nan")


def _energy(x, y, spread_of_x: float, spread_of_y: float) -> float:
    return mean_distance(x, y) - 0.5 * spread_of_x - 0.5 * spread_of_y

"""Does a prediction know how unsure it is? Its intervals and the distances of its draws beside real cells.

For every held-out (batch, perturbation) of a context: how many genes' real mean change lies in the 50, 80 and 95 %
intervals (spread.py), with and without the model's error that was learned on other conditions; how far draws lie from
each other, and how far the real batches of that perturbation do. A prediction whose intervals hold less than they say
is too sure of itself.
"""

import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd

from perturbdiff_jax.evaluation import spread
from perturbdiff_jax.evaluation.contexts import Context, Prediction
from perturbdiff_jax.evaluation.metrics import mean_distance, mean_of
from perturbdiff_jax.evaluation.spread import TRUSTED, Error
from perturbdiff_jax.evaluation.stages import stage
from perturbdiff_jax.evaluation.summary import Interval, interval
from perturbdiff_jax.evaluation.threads import mapped, one_blas_thread

EXPRESSED = 0.05  # mean log1p: a gene below it in the real cells and the controls is next to never seen
PAIRS = 10  # of draws whose distance is taken
COVERAGE = tuple(f"coverage_{100 * level:g}" for level in spread.LEVELS)
PLAIN = tuple(f"plain_{100 * level:g}" for level in spread.LEVELS)
COLUMNS = (
    "cell_type",
    "batch",
    "perturbation",
    "draws",
    "genes",
    *COVERAGE,
    *PLAIN,
    "half_width_80",
    "spread",
    "error",
    "energy_between_draws",
    "energy_between_batches",
    "energy_to_real",
)


@stage("uncertainty")
def calibrate(draws: Mapping[int, Prediction], context: Context, *, error: Error = TRUSTED) -> pd.DataFrame:
    """One row (COLUMNS) for each (batch, perturbation) of the context that is predicted.

    Args:
      draws: number of a draw -> its cells per (batch, perturbation), log1p-normalised CSR [n, G].
      context: real cells and their controls.
      error: what the model errs, which intervals count with (spread.py).

    coverage_*: share of genes (expressed, and not the same in all cells) whose real change lies in the interval;
    plain_*: the same without the model error; half_width_80: mean over genes, log1p; spread: mean over genes of the
    standard deviation between draws, NaN with one; error: mean |real change - mean of draws|; energy_between_draws:
    mean half energy distance of pairs of draws; energy_between_batches: that of this batch's real cells and those of
    the perturbation's other batches, NaN where there are none; energy_to_real: of draws and real.
    """
    if not draws:
        return pd.DataFrame(columns=list(COLUMNS))
    means = {batch: mean_of(cells) for batch, cells in context.control.items()}
    values = context.values * len(draws)

    def row(key: tuple[str, str]) -> dict:
        real, found = context.real[key], predicted[key]
        own = [mean_distance(cells, cells) for cells in found]
        to_real = [_energy(cells, real, a, spreads[key]) for cells, a in zip(found, own)]
        base = means[key[0]]
        return {
            "cell_type": context.cell_type,
            "batch": key[0],
            "perturbation": key[1],
            "draws": len(found),
            **_intervals(spread.drawn(found, base), real, base, error),
            "energy_between_draws": _between(found, own),
            "energy_between_batches": _other_batches(context, key, spreads),
            "energy_to_real": float(np.mean(to_real)),
        }

    parts = {
        key: [part[key] for part in draws.values() if part.get(key) is not None]
        for key in sorted(context.real)
    }
    predicted = {key: found for key, found in parts.items() if found}
    with one_blas_thread():
        real = list(context.real.values())
        spreads = dict(zip(context.real, mapped(lambda cells: mean_distance(cells, cells), real, values)))
        return pd.DataFrame(mapped(row, predicted, values), columns=list(COLUMNS))


def summary(rows: pd.DataFrame, seed: int = 0) -> dict[str, Interval]:
    """Mean over conditions with bootstrap interval of every column of numbers of `calibrate`."""
    return {name: interval(rows[name].to_numpy(dtype=float), seed) for name in COLUMNS[3:]}


def lines(rows: pd.DataFrame, error: Error) -> list[str]:
    """What `calibrate` found, in a sentence or two."""
    means = rows[list(COLUMNS[3:])].mean()

    def shares(names: tuple[str, ...]) -> str:
        return ", ".join(f"{100 * means[name]:.0f}" for name in names)

    nominal = ", ".join(f"{100 * level:g}" for level in spread.LEVELS)
    known = error != TRUSTED
    counted = f"; {shares(PLAIN)} % without the model's error" if known else " (its error is not known)"
    said = [
        f"uncertainty: {len(rows)} conditions with {means['draws']:.3g} draws each; the {nominal} % intervals hold the "
        f"real mean change of {shares(COVERAGE)} % of the genes{counted}"
    ]
    if np.isfinite(means["energy_between_draws"]):
        batches = means["energy_between_batches"]
        beside = "" if np.isnan(batches) else f", real batches {batches:.4f}"
        said.append(
            f"energy distance: draws of a condition lie {means['energy_between_draws']:.4f} apart{beside}"
        )
    return said


def expressed(control: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Genes [G] bool that are seen at all in mean control cells [G] or mean real cells [G]."""
    return np.maximum(control, real) >= EXPRESSED


def _intervals(draws: spread.Drawn, real, control: np.ndarray, error: Error) -> dict[str, float]:
    truth = mean_of(real)
    kept = expressed(control, truth)
    draws, change, cells = draws.at(kept), (truth - control)[kept], real.shape[0]
    shares = {}
    for names, counted in ((COVERAGE, error), (PLAIN, TRUSTED)):
        for name, level in zip(names, spread.LEVELS):
            shares[name] = _mean(spread.coverage(draws, change, level, error=counted, cells=cells))
    low, high = spread.interval(draws, 0.8, error=error, cells=cells)
    return {
        "genes": int(kept.sum()),
        **shares,
        "half_width_80": _mean(0.5 * (high - low)),
        "spread": _mean(draws.between),
        "error": _mean(np.abs(draws.change - change)),
    }


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else float("nan")


def _between(found, own: list[float]) -> float:
    pairs = list(itertools.combinations(range(len(found)), 2))[:PAIRS]
    return _mean(np.array([_energy(found[i], found[j], own[i], own[j]) for i, j in pairs]))


def _other_batches(context: Context, key: tuple[str, str], spreads: Mapping) -> float:
    others = [other for other in context.real if other[1] == key[1] and other[0] != key[0]]
    apart = [
        _energy(context.real[key], context.real[other], spreads[key], spreads[other]) for other in others
    ]
    return float(np.mean(apart)) if apart else float("nan")


def _energy(x, y, spread_of_x: float, spread_of_y: float) -> float:
    return mean_distance(x, y) - 0.5 * spread_of_x - 0.5 * spread_of_y

"""What draws of one condition say about another population of it: mean change, interval, direction, calls.

A draw is a whole population of a condition (new noise, another order of control cells, perhaps another batch's
covariate); what is compared is the mean cell. Gene by gene, the mean of another population of n cells lies around the
mean of K draws of m cells with the variance

    max(s^2 - v / m, 0)    populations differ by more than chance: s is the deviation between draws, v that of cells
  + v / n                  the other population is a sample of n cells
  + s^2 / K                the mean over draws is not known better
  + e v + f c^2          the model errs: as the mean of a sample of 1 / e cells does, and by a share of the change c

and is taken as a t variable with the degrees of freedom of Welch and Satterthwaite (only s is known from few; its share
of the variance is taken over all genes, because that of one gene is as uncertain as s is). The model error, e and f, is
learned on held-out conditions (`model_error`); without it the model is trusted. It is a share of the variance of cells
and of changes, not of s^2, so that it holds for any number of cells and draws, and for a single one.

Pure numpy and scipy: knows neither files nor models. Expression is log1p-normalised.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse as sp
from scipy import stats

from perturbdiff_jax.evaluation.metrics import mean_of

LEVELS = (0.5, 0.8, 0.95)
LEARNED_AT = 0.8  # level at which the model error is learned
STRONGEST = 20  # genes of a condition whose intervals have to hold as often as those of all genes
SIGNIFICANT = 0.05  # adjusted p below which a gene is called
_GENES = 256  # ranked at once
_MOST = 1e6  # of either part of the model error
_ROUNDS = 6


@dataclasses.dataclass(frozen=True)
class Error:
    """What a model errs: shares of the variance of cells (e) and of the squared change (f)."""

    cells: float = 0.0
    change: float = 0.0

    @classmethod
    def read(cls, told: object) -> "Error | None":
        """That of a record {"cells": e, "change": f}; None for anything else."""
        try:
            found = cls(float(told["cells"]), float(told["change"]))
        except (TypeError, KeyError, ValueError, IndexError):
            return None
        return found if 0 <= found.cells < math.inf and 0 <= found.change < math.inf else None

    def told(self) -> str:
        """In words: "as much as the mean of 50 cells, and by 20 % of a change"."""
        parts = []
        if self.cells > 0:
            parts.append(f"as much as the mean of {1 / self.cells:.0f} cells")
        if self.change > 0:
            parts.append(f"by {100 * math.sqrt(self.change):.0f} % of a change")
        return ", and ".join(parts) or "no more than its draws say"


TRUSTED = Error()


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Draws of one condition, gene by gene: arrays [G] float64."""

    change: np.ndarray  # mean over draws of the mean cell, less the control's
    between: np.ndarray  # standard deviation of the mean cell between draws; NaN with one draw
    within: np.ndarray  # variance of cells, mean over draws
    draws: int
    cells: float  # of a draw

    def at(self, genes: np.ndarray) -> "Drawn":
        """Of some genes only."""
        parts = (self.change[genes], self.between[genes], self.within[genes])
        return Drawn(*parts, self.draws, self.cells)


def drawn(populations: Sequence[sp.csr_matrix | np.ndarray], control: np.ndarray | float = 0.0) -> Drawn:
    """Describes draws, each [n, G] cells, against the mean control cell [G]."""
    means = np.stack([mean_of(cells) for cells in populations])
    few = len(means) < 2
    return Drawn(
        change=means.mean(axis=0) - control,
        between=np.full(means.shape[1], np.nan) if few else means.std(axis=0, ddof=1),
        within=np.mean([_variance(cells, mean) for cells, mean in zip(populations, means)], axis=0),
        draws=len(means),
        cells=float(np.mean([cells.shape[0] for cells in populations])),
    )


def _variance(cells: sp.csr_matrix | np.ndarray, mean: np.ndarray) -> np.ndarray:
    count = cells.shape[0]
    squares = cells.astype(np.float64)
    squares = squares.multiply(squares) if sp.issparse(squares) else np.square(squares)
    return np.maximum(mean_of(squares) - mean**2, 0.0) * (count / max(1, count - 1))


def deviation(
    draws: Drawn, *, error: Error = TRUSTED, cells: float | None = None
) -> tuple[np.ndarray, float]:
    """Standard deviation [G] of another population's mean change around `draws.change`, and degrees of freedom
    (one number; infinite where the deviation between draws plays no part).

    Args:
      draws: what is known.
      error: what the model errs.
      cells: of the other population; by default as many as a draw has.
    """
    chance = draws.within / draws.cells
    between = chance if draws.draws < 2 else draws.between**2
    from_draws = np.maximum(between - chance, 0.0) + between / draws.draws
    whole = from_draws + draws.within / (cells or draws.cells)
    whole = whole + error.cells * draws.within + error.change * draws.change**2
    seen, share = draws.within > 0, 1.0  # draws of one cell each show nothing but how they differ
    if seen.any():
        share = np.mean(from_draws[seen] / draws.within[seen]) / np.mean(whole[seen] / draws.within[seen])
    freedom = (draws.draws - 1) / share**2 if draws.draws > 1 and share > 0 else np.inf
    return np.sqrt(whole), freedom


def interval(
    draws: Drawn, level: float, *, error: Error = TRUSTED, cells: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Ends [G] of the interval in which another population's mean change lies with probability `level`."""
    scale, freedom = deviation(draws, error=error, cells=cells)
    half = scale * stats.t.ppf(0.5 * (1.0 + level), freedom)
    return draws.change - half, draws.change + half


def directions(draws: Drawn, *, error: Error = TRUSTED) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [G] that another population's mean change is above 0 and below 0.

    A gene without change and without spread (never expressed) is neither up nor down.
    """
    scale, freedom = deviation(draws, error=error)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(scale > 0, draws.change / scale, np.sign(draws.change) * np.inf)
    still = (draws.change == 0) & (scale == 0)
    up = np.where(still, 0.0, stats.t.cdf(ratio, freedom))
    return up, np.where(still, 0.0, 1.0 - up)


def called(cells: sp.csr_matrix, control: sp.csr_matrix) -> np.ndarray:
    """Genes [G] bool whose expression differs between cells [n, G] and control cells [m, G].

    Two-sided Wilcoxon rank-sum test (normal approximation, corrected for ties and continuity), Benjamini-Hochberg over
    genes, 0.05: the field's usual call (method 9). A gene that is constant over all cells is not called.
    """
    first, second = sp.csc_matrix(cells), sp.csc_matrix(control)
    values = np.ones(first.shape[1])
    for start in range(0, len(values), _GENES):
        part = slice(start, start + _GENES)
        x, y = first[:, part].toarray(), second[:, part].toarray()
        found = stats.mannwhitneyu(x, y, axis=0, method="asymptotic").pvalue
        values[part] = np.nan_to_num(found, nan=1.0)  # nothing to rank in a constant gene
    return stats.false_discovery_control(values) < SIGNIFICANT


def coverage(
    draws: Drawn, truth: np.ndarray, level: float, *, error: Error = TRUSTED, cells: float | None = None
) -> np.ndarray:
    """Whether each entry of `truth` [G], a mean change over `cells` cells, lies in `interval`: 0, 1.

    NaN for genes without any spread (never expressed in any draw), which say nothing about the interval.
    """
    low, high = interval(draws, level, error=error, cells=cells)
    inside = ((truth >= low) & (truth <= high)).astype(float)
    return np.where(high > low, inside, np.nan)


def model_error(known: Sequence[tuple[Drawn, np.ndarray, float]], level: float = LEARNED_AT) -> Error | None:
    """The smallest error with which intervals cover a share `level` of all genes and of the STRONGEST of a condition.

    Args:
      known: for each condition its draws, the true mean change [G] and the number of cells that it is the mean of.
      level: the share asked for, as a mean over conditions.

    Returns:
      The error, or None when no condition has a gene with spread.
    """
    strongest = []
    for draws, truth, cells in known:
        top = np.argsort(-np.abs(draws.change), kind="stable")[:STRONGEST]
        strongest.append((draws.at(top), truth[top], cells))

    def of_all(cells: float, change: float) -> float:
        return _share(known, level, Error(cells, change))

    def of_strongest(cells: float, change: float) -> float:
        return _share(strongest, level, Error(cells, change))

    if math.isnan(of_all(0.0, 0.0)):
        return None
    cells = change = 0.0
    for _ in range(_ROUNDS):  # the two pull in opposite directions and settle
        cells = _least(functools.partial(of_all, change=change), level)
        change = _least(functools.partial(of_strongest, cells), level)
    return Error(_least(functools.partial(of_all, change=change), level), change)


def _share(known: Sequence[tuple[Drawn, np.ndarray, float]], level: float, error: Error) -> float:
    found = [coverage(draws, truth, level, error=error, cells=cells) for draws, truth, cells in known]
    means = [np.nanmean(inside) for inside in found if np.isfinite(inside).any()]
    return float(np.mean(means)) if means else math.nan


def _least(share: Callable[[float], float], level: float) -> float:
    """The smallest value, to a part in some ten thousand, with which a share that grows with it is `level`."""
    if not share(0.0) < level:
        return 0.0
    low, high = 0.0, 1e-3
    while share(high) < level and high < _MOST:
        low, high = high, 4.0 * high
    for _ in range(16):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if share(middle) < level else (low, middle)
    return high

"""What several draws of one condition say together: mean change, spread, direction, intervals, calls.

A draw is a whole population of a condition (new noise, another order of control cells, perhaps another batch's
covariate); what is compared between draws is the mean cell. Draws are taken as a normal sample of the populations that
another batch or donor could show: with K of them, another one lies within mean +- t_(K-1) sd sqrt(1 + 1/K).

Pure numpy and scipy: knows neither files nor models. Expression is log1p-normalised.
"""

import math

import numpy as np
import scipy.sparse as sp
from scipy import stats

LEVELS = (0.5, 0.8, 0.95)
SIGNIFICANT = 0.05  # adjusted p below which a gene is called
_GENES = 256  # ranked at once


def between(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over draws of mean cells [K, G] -> ([G], [G]); one draw has no deviation (NaN)."""
    if len(means) < 2:
        return means.mean(axis=0), np.full(means.shape[1], np.nan)
    return means.mean(axis=0), means.std(axis=0, ddof=1)


def interval(
    means: np.ndarray, level: float, widen: float | np.ndarray = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Ends [G] of the interval in which the mean cell of another population lies with probability `level`.

    `widen` multiplies the half width: 1 trusts the draws, a factor learned on held-out conditions (`factor`) does not.
    """
    centre, deviation = between(means)
    half = widen * deviation * _quantile(len(means), level)
    return centre - half, centre + half


def directions(changes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [G] that another population's change is above 0 and below 0, from changes [K, G].

    A gene that changes in no draw is neither up nor down. With one draw the direction is what it shows: 0 or 1.
    """
    centre, deviation = between(changes)
    if len(changes) < 2:
        return (centre > 0).astype(float), (centre < 0).astype(float)
    scale = deviation * math.sqrt(1.0 + 1.0 / len(changes))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(scale > 0, centre / scale, np.sign(centre) * np.inf)
    still = (changes == 0).all(axis=0)
    up = np.where(still, 0.0, stats.t.cdf(ratio, len(changes) - 1))
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


def coverage(means: np.ndarray, truth: np.ndarray, level: float, widen: float = 1.0) -> np.ndarray:
    """Whether each entry of `truth` [G] lies within `interval` of draws [K, G]; NaN where draws do not differ.

    Genes without any spread (never expressed in any draw) say nothing about the interval.
    """
    low, high = interval(means, level, widen)
    inside = ((truth >= low) & (truth <= high)).astype(float)
    return np.where(high > low, inside, np.nan)


def factor(errors: list[np.ndarray], level: float) -> float:
    """The `widen` with which intervals would have covered a share `level` of what is known.

    Args:
      errors: one array [G] for each known condition: |truth - mean of draws| in units of the half width of `interval`
        at `level` (`standardised`); NaN is left out.
      level: the share asked for.
    """
    joined = np.concatenate(errors)
    joined = joined[np.isfinite(joined)]
    if not joined.size:
        return math.nan
    # The rank that also covers one more value of the same kind with at least the level (split conformal).
    rank = min(math.ceil((joined.size + 1) * level), joined.size) - 1
    return float(np.partition(joined, rank)[rank])


def standardised(means: np.ndarray, truth: np.ndarray, level: float) -> np.ndarray:
    """|truth - mean of draws| [G] in half widths of `interval` at `level`; NaN where draws do not differ."""
    centre, deviation = between(means)
    half = deviation * _quantile(len(means), level)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(half > 0, np.abs(truth - centre) / half, np.nan)


def _quantile(draws: int, level: float) -> float:
    if draws < 2:
        return math.nan
    return float(stats.t.ppf(0.5 * (1.0 + level), draws - 1)) * math.sqrt(1.0 + 1.0 / draws)

"""Intervals, directions and calls from several draws, against simulations and scipy's own functions."""

import numpy as np
import pytest
import scipy.sparse as sp
from scipy import stats

from perturbdiff_jax.evaluation import spread

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("level", spread.LEVELS)
@pytest.mark.parametrize("draws", [2, 5, 20])
def test_another_population_lies_in_the_interval_as_often_as_said(draws, level):
    genes = 20_000
    centre, scale = RNG.normal(size=genes), RNG.lognormal(size=genes)
    means = centre + scale * RNG.normal(size=(draws, genes))
    truth = centre + scale * RNG.normal(size=genes)
    assert spread.coverage(means, truth, level).mean() == pytest.approx(level, abs=0.015)
    wider = spread.coverage(means, truth, level, widen=2.0).mean()
    assert wider > level + 0.04 or (level == 0.95 and wider > level)


def test_the_interval_is_the_textbook_one():
    means = np.array([[1.0], [2.0], [6.0]])
    low, high = spread.interval(means, 0.8)
    want = stats.t.interval(0.8, 2, loc=3.0, scale=np.std([1, 2, 6], ddof=1) * np.sqrt(4 / 3))
    np.testing.assert_allclose([low[0], high[0]], want)


def test_directions_are_the_textbook_ones():
    up, down = spread.directions(np.array([[1.0, -1.0], [2.0, -2.0], [6.0, -6.0]]))
    want = stats.t.cdf(3.0 / (np.std([1, 2, 6], ddof=1) * np.sqrt(4 / 3)), 2)
    np.testing.assert_allclose([*up, *down], [want, 1 - want, 1 - want, want])


def test_one_draw_has_no_spread_but_a_direction():
    means = np.array([[0.5, -0.5, 0.0]])
    assert np.isnan(spread.between(means)[1]).all() and np.isnan(spread.interval(means, 0.5)).all()
    up, down = spread.directions(means)
    np.testing.assert_array_equal(up, [1, 0, 0])
    np.testing.assert_array_equal(down, [0, 1, 0])


def test_directions_are_probabilities_of_another_population():
    genes, draws = 50_000, 4
    centre = RNG.normal(scale=2.0, size=genes)
    changes = centre + RNG.normal(size=(draws, genes))
    another = centre + RNG.normal(size=genes)
    up, down = spread.directions(changes)
    np.testing.assert_allclose(up + down, 1.0)
    sure = up > 0.9
    assert sure.mean() > 0.1
    # Genes said to be up with probability p are up in a share p of new populations.
    for low, high in ((0.1, 0.3), (0.4, 0.6), (0.7, 0.9)):
        inside = (up > low) & (up < high)
        # The prior over genes is centred at 0, which a probability without a prior does not know.
        assert (another[inside] > 0).mean() == pytest.approx(up[inside].mean(), abs=0.08)
    still = spread.directions(np.array([[0.0, 1.0], [0.0, 1.0]]))
    np.testing.assert_array_equal(still, [[0, 1], [0, 0]])


def test_genes_without_spread_say_nothing_about_coverage():
    means = np.array([[0.0, 1.0], [0.0, 2.0]])
    covered = spread.coverage(means, np.array([0.0, 1.5]), 0.8)
    assert np.isnan(covered[0]) and covered[1] == 1


def test_a_learned_factor_restores_the_level():
    conditions, draws, genes = 40, 5, 500
    known, new = [], []
    for kept in (known, new):
        for _ in range(conditions):
            centre = RNG.normal(size=genes)
            means = centre + 0.4 * RNG.normal(
                size=(draws, genes)
            )  # draws that are too sure by a factor of 2.5
            kept.append((means, centre + RNG.normal(size=genes)))
    raw = np.mean([spread.coverage(*one, 0.8) for one in new])
    widen = spread.factor([spread.standardised(*one, 0.8) for one in known], 0.8)
    mended = np.mean([spread.coverage(*one, 0.8, widen) for one in new])
    assert raw < 0.6 and mended == pytest.approx(0.8, abs=0.02)
    assert np.isnan(spread.factor([np.array([np.nan])], 0.8))


def test_calls_are_those_of_the_rank_sum_test_gene_by_gene():
    genes = 300
    shift = np.where(np.arange(genes) < 60, 1.5, 0.0)
    cells = np.maximum(RNG.normal(size=(80, genes)) + shift, 0)
    control = np.maximum(RNG.normal(size=(70, genes)), 0)
    cells[:, -1] = control[:, -1] = 0.0  # constant: no test
    p = [stats.mannwhitneyu(a, b, method="asymptotic").pvalue for a, b in zip(cells.T[:-1], control.T[:-1])]
    want = stats.false_discovery_control([*p, 1.0]) < 0.05
    found = spread.called(sp.csr_matrix(cells), sp.csr_matrix(control))
    np.testing.assert_array_equal(found, want)
    assert found[:60].sum() > 50 and found[60:].sum() < 10 and not found[-1]

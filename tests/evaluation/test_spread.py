"""Intervals, directions and calls from several draws, against simulations and scipy's own functions."""

import numpy as np
import pytest
import scipy.sparse as sp
from scipy import stats

from perturbdiff_jax.evaluation import spread

RNG = np.random.default_rng(0)


def populations(draws, cells, centre, set_level, cell_level):
    """[draws, cells, genes]: every population is moved by itself, then every cell."""
    moved = centre + set_level * RNG.normal(size=(draws, 1, len(centre)))
    return moved + cell_level * RNG.normal(size=(draws, cells, len(centre)))


@pytest.mark.parametrize("level", spread.LEVELS)
@pytest.mark.parametrize(("draws", "share"), [(2, 3.0), (2, 0.2), (5, 1.0), (20, 0.0)])
@pytest.mark.parametrize(("cells", "others"), [(30, 30), (30, 300), (300, 30)])
def test_another_population_lies_in_the_interval_as_often_as_said(level, draws, share, cells, others):
    """`share`: how far populations differ, in deviations of the mean of 30 cells; none, much, for few draws too."""
    genes = 4000
    centre, scale = RNG.normal(size=genes), RNG.lognormal(size=genes)
    apart = share * scale / np.sqrt(30)
    found = spread.drawn(list(populations(draws, cells, centre, apart, scale)))
    truth = populations(1, others, centre, apart, scale)[0].mean(axis=0)
    inside = spread.coverage(found, truth, level, cells=others).mean()
    # A variance that is cut off at 0 errs on the safe side; few small draws are a poor guide to large populations.
    least = level - (0.07 if cells < others and share >= 1 else 0.03)
    assert least < inside < level + (0.05 if cells == others and share >= 1 else 0.15)


def test_the_interval_by_hand():
    first, second = np.array([[1.0], [3.0]]), np.array([[5.0], [7.0]])
    found = spread.drawn([sp.csr_matrix(first), sp.csr_matrix(second)], np.array([0.5]))
    assert (found.change[0], found.between[0] ** 2, found.within[0]) == (3.5, pytest.approx(8.0), 2.0)
    assert (found.draws, found.cells) == (2, 2)
    from_draws = (8 - 2 / 2) + 8 / 2
    whole = from_draws + 2 / 4 + 0.1 * 2 + 0.02 * 3.5**2
    low, high = spread.interval(found, 0.8, error=spread.Error(0.1, 0.02), cells=4)
    assert stats.t.ppf(0.9, (whole / from_draws) ** 2) > 2  # few draws: far from a normal variable
    want = stats.t.interval(0.8, (whole / from_draws) ** 2, loc=3.5, scale=np.sqrt(whole))
    np.testing.assert_allclose([low[0], high[0]], want)
    up, down = spread.directions(found, error=spread.Error(0.1, 0.02))
    whole = from_draws + 2 / 2 + 0.1 * 2 + 0.02 * 3.5**2
    np.testing.assert_allclose(up, stats.t.cdf(3.5 / np.sqrt(whole), (whole / from_draws) ** 2))
    np.testing.assert_allclose(up + down, 1.0)


def test_draws_more_alike_than_chance_are_as_unsure_as_chance():
    alike = [np.array([[0.0], [2.0]]), np.array([[2.0], [0.0]])]
    found = spread.drawn(alike)
    assert found.between[0] == 0
    np.testing.assert_allclose(spread.deviation(found)[0], np.sqrt(2.0 / 2))
    assert np.isinf(spread.deviation(found)[1])


def test_draws_of_a_single_cell_are_the_textbook_case():
    found = spread.drawn([np.array([[value]]) for value in (1.0, 2.0, 6.0)])
    low, high = spread.interval(found, 0.8)
    want = stats.t.interval(0.8, 2, loc=3.0, scale=np.std([1, 2, 6], ddof=1) * np.sqrt(4 / 3))
    np.testing.assert_allclose([low[0], high[0]], want)


def test_one_draw_is_a_sample_of_its_cells():
    cells = RNG.normal(size=(50, 3)) + np.array([0.0, 2.0, -2.0])
    cells[:, 0] = 0.0
    found = spread.drawn([sp.csr_matrix(cells)])
    assert np.isnan(found.between).all()
    low, high = spread.interval(found, 0.95)
    want = stats.norm.interval(
        0.95, cells[:, 1:].mean(axis=0), np.sqrt(2 / 50) * cells[:, 1:].std(axis=0, ddof=1)
    )
    np.testing.assert_allclose([low[1:], high[1:]], want)
    up, down = spread.directions(found)
    assert up[0] == down[0] == 0 and up[1] > 0.999 and down[2] > 0.999
    assert np.isnan(spread.coverage(found, np.zeros(3), 0.8)).tolist() == [True, False, False]


def test_directions_are_probabilities_of_another_population():
    genes, draws = 20_000, 4
    centre, scale = RNG.normal(scale=2.0, size=genes), np.ones(genes)
    found = spread.drawn(list(populations(draws, 20, centre, scale, scale)))
    another = populations(1, 20, centre, scale, scale)[0].mean(axis=0)
    up, down = spread.directions(found)
    np.testing.assert_allclose(up + down, 1.0)
    assert (up > 0.9).mean() > 0.1
    # Genes said to be up with probability p are up in a share p of new populations.
    for low, high in ((0.1, 0.3), (0.4, 0.6), (0.7, 0.9)):
        inside = (up > low) & (up < high)
        # The prior over genes is centred at 0, which a probability without a prior does not know.
        assert (another[inside] > 0).mean() == pytest.approx(up[inside].mean(), abs=0.08)


def worlds(conditions, draws, cells, error):
    """Conditions whose model is wrong by the mean of 1 / error.cells cells and a share of changes."""
    for _ in range(conditions):
        scale = RNG.lognormal(size=400)
        change = scale * RNG.normal(size=400) * (RNG.random(400) < 0.3)
        wrong = np.sqrt(error.cells) * scale * RNG.normal(size=400)
        wrong += np.sqrt(error.change) * np.abs(change) * RNG.normal(size=400)
        found = spread.drawn(list(populations(draws, cells, change + wrong, 0.0, scale)))
        yield found, populations(1, 40, change, 0.0, scale)[0].mean(axis=0), 40


@pytest.mark.parametrize(
    "true", [spread.Error(0.05, 0.0), spread.Error(0.03, 0.1)], ids=["of cells", "of both"]
)
def test_a_learned_model_error_restores_all_levels_for_any_number_of_cells_and_draws(true):
    error = spread.model_error(list(worlds(40, 5, 40, true)))
    # Genes that are predicted to change most err along with it, so that the two parts are not told apart exactly.
    assert 0.5 * true.cells < error.cells < 1.1 * true.cells
    assert error.change == pytest.approx(true.change, abs=0.12)
    for draws, cells in ((5, 40), (2, 400), (1, 40), (8, 10)):
        new = list(worlds(20, draws, cells, true))
        for top in (None, 20):
            rows = [np.argsort(-np.abs(d.change))[:top] for d, _, _ in new]
            for level in spread.LEVELS:
                trusting, mended = (
                    np.mean(
                        [spread.coverage(d, t, level, cells=n, error=e)[r] for (d, t, n), r in zip(new, rows)]
                    )
                    for e in (spread.TRUSTED, error)
                )
                # A population of ten cells is not a good guide to the variance of cells; few genes are few.
                assert mended == pytest.approx(level, abs=0.06 if cells > 10 and top is None else 0.13)
                assert trusting < level - 0.01 or cells == 10


def test_model_errors_at_the_ends():
    found = spread.model_error(list(worlds(10, 4, 40, spread.TRUSTED)))
    assert found.cells < 0.006 and found.change < 0.02
    still = spread.drawn([np.zeros((4, 2))] * 2)
    assert spread.model_error([(still, np.ones(2), 4)]) is None and spread.model_error([]) is None
    sure = [(one, truth + 1e6, cells) for one, truth, cells in worlds(2, 2, 10, spread.TRUSTED)]
    assert spread.model_error(sure).cells >= 1e6  # an end to the search


def test_errors_as_records_and_in_words():
    assert spread.Error.read({"cells": np.float64(0.02), "change": "0.04"}) == spread.Error(0.02, 0.04)
    for none in (
        None,
        0.02,
        {},
        {"cells": 1.0},
        {"cells": -1.0, "change": 0.0},
        {"cells": np.nan, "change": 0.0},
        [],
    ):
        assert spread.Error.read(none) is None
    assert spread.Error(0.02, 0.04).told() == "as much as the mean of 50 cells, and by 20 % of a change"
    assert spread.Error(0.0, 0.04).told() == "by 20 % of a change"
    assert spread.TRUSTED.told() == "no more than its draws say"


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

"""The rank-sum test against scipy's, gene by gene, and of copies against the same cells written out."""

import numpy as np
import pytest
from scipy import stats

from perturbdiff_jax.evaluation.populations import Copies, as_cells
from perturbdiff_jax.evaluation.rank_test import Reference, rank_test


def counts(seed, cells, genes=30):
    """Many zeros and many ties; gene 0 has no zeros, 1 is 0 everywhere, 2 is constant, 3 is 0 in even seeds only."""
    rng = np.random.default_rng(seed)
    x = rng.poisson(rng.gamma(0.5, 2.0, genes), (cells, genes)).astype(np.float32)
    x[:, 0] += 1
    x[:, 1], x[:, 2] = 0, 3
    x[:, 3] = 0 if seed % 2 == 0 else 1 + np.arange(cells) % 3
    return np.log1p(x)


def scipys(x, y):
    with np.errstate(invalid="ignore"):  # constant genes
        return stats.mannwhitneyu(x.astype(float), y.astype(float), axis=0, method="asymptotic")


@pytest.mark.parametrize("sizes", [(25, 60), (60, 25), (1, 40), (40, 1), (300, 200)])
@pytest.mark.parametrize("seeds", [(0, 1), (1, 0), (2, 4)])
def test_u_and_p_are_scipys(sizes, seeds):
    x, y = (counts(seed, size) for seed, size in zip(seeds, sizes))
    u, p = rank_test(as_cells(x), Reference.of(as_cells(y)))
    wanted = scipys(x, y)
    np.testing.assert_array_equal(u, wanted.statistic)
    moves = np.ptp(np.concatenate([x, y]), axis=0) > 0
    np.testing.assert_allclose(p[moves], wanted.pvalue[moves], rtol=1e-12)
    assert (p[~moves] == 1.0).all() and not moves[[1, 2]].any()


def test_values_far_apart_and_equal_to_the_last_bit_are_told_apart():
    one = np.float32(1.0)
    above = np.nextafter(one, np.float32(2))
    y = np.array([[one], [above], [np.float32(1e-38)], [np.float32(14)]])
    u, _ = rank_test(as_cells(np.array([[above]])), Reference.of(as_cells(y)))
    assert u[0] == 2.5  # above two of four and level with one


@pytest.mark.parametrize("times", [(5,), (3, 1, 6)])
def test_copies_are_tested_like_the_cells_that_they_stand_for(times):
    points, reference = as_cells(counts(3, len(times))), Reference.of(as_cells(counts(4, 50)))
    copies = Copies(points, np.array(times))
    for found, wanted in zip(rank_test(copies, reference), rank_test(as_cells(copies.toarray()), reference)):
        np.testing.assert_array_equal(found, wanted)


def test_cells_without_any_value_are_tested():
    nothing, some = as_cells(np.zeros((4, 30))), as_cells(counts(5, 20))
    for x, y in ((nothing, some), (some, nothing), (nothing, nothing)):
        u, p = rank_test(x, Reference.of(y))
        wanted = scipys(x.toarray(), y.toarray())
        np.testing.assert_array_equal(u, wanted.statistic)
        moves = np.ptp(np.concatenate([x.toarray(), y.toarray()]), axis=0) > 0
        np.testing.assert_allclose(p, np.where(moves, wanted.pvalue, 1.0), rtol=1e-12)

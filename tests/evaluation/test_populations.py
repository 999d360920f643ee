"""Populations that are held as what they are made of, against the same cells written out."""

import numpy as np
import pytest
import scipy.sparse as sp

from perturbdiff_jax.evaluation import metrics
from perturbdiff_jax.evaluation.contexts import pool
from perturbdiff_jax.evaluation.populations import Copies, Moved, as_cells, join, stack, written_out


def cells(seed, count=12, genes=9):
    rng = np.random.default_rng(seed)
    return as_cells(np.maximum(rng.normal(0.3, 1.0, (count, genes)), 0.0))


def same(a, b):
    assert a.shape == b.shape
    for name in ("indptr", "indices", "data"):
        one, other = getattr(a, name), getattr(b, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_moved_cells_are_moved_and_cut_off_at_zero():
    source, shift = cells(0), np.linspace(-1.0, 1.0, 9)
    moved = Moved(((source, np.array([3, 3, 0]), shift),))
    wanted = np.maximum(source.toarray()[[3, 3, 0]].astype(float) + shift, 0.0)
    assert moved.shape == (3, 9)
    np.testing.assert_array_equal(moved.toarray(), wanted.astype(np.float32))
    same(written_out(moved), as_cells(wanted))
    empty = Moved(((source, np.array([1, 2]), np.full(9, -9.0)),))
    same(written_out(empty), as_cells(np.zeros((2, 9))))


def test_batches_are_joined_within_their_kind():
    a, b = cells(1), cells(2, count=5)
    same(join([a, b]), stack([a, b]))
    copies = join([Copies.of(np.arange(9.0), 2), Copies.of(np.ones(9), 3)])
    np.testing.assert_array_equal(copies.toarray(), [np.arange(9.0)] * 2 + [np.ones(9)] * 3)
    parts = [Moved(((a, np.array([1]), np.ones(9)),)), Moved(((b, np.array([4, 0]), np.zeros(9)),))]
    np.testing.assert_array_equal(join(parts).toarray(), np.vstack([part.toarray() for part in parts]))
    pooled = pool({("x", "P"): copies, ("y", "P"): None, ("x", "Q"): parts[0], ("y", "Q"): parts[1]})
    assert pooled["P"] is None and pooled["Q"].shape == (3, 9)


@pytest.mark.parametrize("counts", [[1000], [3, 500, 1]])
def test_the_mean_of_copies_is_that_of_the_cells_in_float32(counts):
    copies = Copies(cells(3, count=len(counts)), np.array(counts))
    written = as_cells(copies.toarray())
    assert copies.shape == written.shape == (sum(counts), 9)
    np.testing.assert_array_equal(copies.mean32(), np.asarray(written.mean(axis=0)).ravel())
    np.testing.assert_array_equal(metrics.mean_of(copies), metrics.mean_of(written))


def test_distances_of_copies_are_those_of_the_cells(monkeypatch):
    monkeypatch.setattr(metrics, "_CHUNK", 4)
    copies = Copies(cells(4, count=6), np.array([7, 1, 2, 30, 1, 9]))
    written, other = as_cells(copies.toarray()), cells(5, count=11)
    for x, y in ((copies, other), (other, copies), (copies, copies), (copies, sp.csr_matrix(other))):
        full = [written if part is copies else part for part in (x, y)]
        assert metrics.mean_distance(x, y) == pytest.approx(metrics.mean_distance(*full), rel=1e-12)
    assert metrics.energy(copies, other) == pytest.approx(metrics.energy(written, other), rel=1e-10)


def test_a_set_and_itself_are_half_as_much_work_and_the_same(monkeypatch):
    monkeypatch.setattr(metrics, "_CHUNK", 5)
    x = cells(6, count=13)
    assert metrics.mean_distance(x, x) == pytest.approx(metrics.mean_distance(x, x.copy()), rel=1e-12)

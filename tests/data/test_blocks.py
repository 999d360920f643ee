"""Rows out of blocks are the cells that were put in, in every stored kind, form and number of pieces."""

import numpy as np
import pytest
import scipy.sparse as sp
from cells_in_memory import KINDS, dense_of, raw_cells

from perturbdiff_jax.data.loading import blocks as blocks_module
from perturbdiff_jax.data.loading.blocks import copy_rows, joined, make_block
from perturbdiff_jax.data.loading.selection import Selection
from perturbdiff_jax.data.raw_cells import RawCells
from perturbdiff_jax.errors import RequestError


def taken_back(chosen: Selection, run: int, raw: RawCells, form: str) -> np.ndarray:
    """[U, G] dense of one run's distinct cells, from the arrays that a selection fills."""
    cells, genes = chosen.n_cells[run], raw.genes
    wide, narrow = chosen.kinds()
    runs = len(chosen.n_cells)
    if chosen.is_dense:
        data = np.zeros((runs, max(chosen.n_cells), genes), np.uint8)
        chosen.take_rows("narrow", data)
        parts = (data[run, :cells], None, None)
    else:
        used = np.diff(chosen.ends)
        first, last = np.full((runs, used.max()), 7, wide), np.full((runs, used.max()), 7, narrow)
        chosen.take(first, last)
        first, last = first[run, : used[run]], last[run, : used[run]]
        low = sum(chosen.n_cells[:run])
        pointers = np.concatenate([[0], np.cumsum(chosen.row_nnz[low : low + cells])])
        if form == "dense":
            return sp.csr_matrix((last, first, pointers), shape=(cells, genes)).toarray()
        if narrow == np.int8:
            words = first.view(np.uint32)
            parts = (words >> 16, words & 0xFFFF, pointers)
        else:
            parts = (first.view(np.float32 if raw.scale is None else np.uint32), last, pointers)
    scale = None
    if raw.scale is not None:
        scale = np.zeros((runs, max(chosen.n_cells)), np.float32)
        chosen.take_rows("scale", scale)
        scale = scale[run, :cells]
    return dense_of(RawCells(*parts, scale, genes), 4.0)


def asked(sizes, runs=3, count=40, seed=0):
    """(which, rows) with repeats, unordered."""
    rng = np.random.default_rng(seed)
    which = rng.integers(0, len(sizes), (runs, 2, count // 2)).astype(np.int32)
    return which, (rng.random(which.shape) * np.array(sizes)[which]).astype(np.int64)


@pytest.mark.parametrize("form", ["packed", "dense"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_selection_holds_each_cell_once_and_says_where(kind, form):
    raws = [raw_cells(kind, cells=n, genes=9, seed=n) for n in (12, 1, 30)]
    blocks = [make_block(raw, form, 4.0) for raw in raws]
    which, rows = asked([len(raw) for raw in raws])
    chosen = Selection(blocks, which, rows)
    wanted = [dense_of(raw, 4.0) for raw in raws]
    for run in range(3):
        got = taken_back(chosen, run, raws[0], form)
        assert len({*zip(which[run].ravel().tolist(), rows[run].ravel().tolist())}) == chosen.n_cells[run]
        for at in np.ndindex(rows.shape[1:]):
            cell = wanted[which[run][at]][rows[run][at]]
            np.testing.assert_allclose(got[chosen.row_map[run][at]], cell, rtol=1e-6)


@pytest.mark.parametrize("kind", ["words", "log1p values"])
def test_pieces_behave_as_one_block(kind):
    """Cells beyond 32-bit row pointers lie in several pieces; here the limit is a few stored values."""
    raw = raw_cells(kind)
    whole = make_block(raw, "packed", 4.0)
    cut = make_block(raw, "packed", 4.0, largest=25)
    assert len(whole.pieces) == 1 < 5 < len(cut.pieces) and len(whole) == len(cut) == len(raw)
    assert max(int(piece.pointers[-1]) for piece in cut.pieces) <= 25
    which, rows = asked([len(raw), len(raw)])
    for pair in ([whole, whole], [cut, cut], [whole, cut]):
        chosen = Selection(pair, which, rows)
        for run in range(3):
            got = taken_back(chosen, run, raw, "packed")[chosen.row_map[run]]
            np.testing.assert_allclose(got, dense_of(raw, 4.0)[rows[run]], rtol=1e-6)
    same = Selection([whole, whole], which, rows)  # the same cells under two numbers are still the same cells
    assert same.n_cells == [len(set(rows[run].ravel().tolist())) for run in range(3)]


def test_joined_blocks_number_their_rows_through():
    raws = [raw_cells(cells=n, seed=n) for n in (5, 7, 9)]
    block = joined([make_block(raw, "packed", 4.0) for raw in raws])
    assert len(block) == 21 and block.nbytes == sum(make_block(raw, "packed", 4.0).nbytes for raw in raws)
    rows = np.random.default_rng(0).permutation(21)[None]
    chosen = Selection([block], np.zeros_like(rows), rows)
    got = taken_back(chosen, 0, raws[0], "packed")[chosen.row_map[0]]
    np.testing.assert_allclose(got, np.concatenate([dense_of(raw, 4.0) for raw in raws])[rows[0]], rtol=1e-6)


def test_the_fast_copy_is_there_and_equals_the_public_one(monkeypatch):
    """scipy may move its private function: then the loader gets slower, not wrong, and this test says so."""
    assert blocks_module.csr_row_index is not None
    piece = make_block(raw_cells(seed=3), "packed", 4.0).pieces[0]
    rows = np.array([3, 0, 59, 3, 17], np.int32)
    length = int(piece.row_nnz[rows].sum())
    outs = []
    for function in (blocks_module.csr_row_index, None):
        monkeypatch.setattr(blocks_module, "csr_row_index", function)
        out = (np.zeros(length, np.int32), np.ones(length, np.int8))
        copy_rows(piece.pointers, piece.wide, piece.narrow, rows, out)
        outs.append(out)
    np.testing.assert_array_equal(outs[0][0], outs[1][0])
    lists = [piece.wide[piece.pointers[r] : piece.pointers[r + 1]] for r in rows]
    np.testing.assert_array_equal(outs[0][0], np.concatenate(lists))
    assert (outs[0][0] < 0).any()  # counts of 32,768 and more set the sign bit of a word


def test_what_is_read_is_left_alone():
    for kind in KINDS:
        for form in ("packed", "dense"):
            raw, twin = raw_cells(kind), raw_cells(kind)
            make_block(raw, form, 4.0)
            for name in ("data", "indices", "indptr", "scale"):
                np.testing.assert_array_equal(getattr(raw, name), getattr(twin, name))


def test_bytes_in_memory():
    raw = raw_cells()
    values, cells = len(raw.data), len(raw)
    assert make_block(raw, "packed", 1.0).nbytes == 4 * values + 4 * (cells + 1) + 8 * cells
    assert make_block(raw, "dense", 1.0).nbytes == 8 * values + 4 * (cells + 1) + 4 * cells
    dense = raw_cells("dense")
    assert make_block(dense, "packed", 1.0).nbytes == dense.data.size + 4 * cells


def test_rows_outside_and_unknown_forms_are_refused():
    blocks = [make_block(raw_cells(cells=n), "packed", 4.0) for n in (5, 8)]
    for rows in ([[0, 5]], [[-1, 2]]):
        with pytest.raises(IndexError, match=r"row 5 of 5|below 0"):
            Selection(blocks, np.zeros((1, 2), int), np.array(rows))
    with pytest.raises(RequestError, match=r"unknown form of cells 'sparse'.*\n.*packed, dense"):
        make_block(raw_cells(), "sparse", 4.0)

"""Draws become batches: the same cells dense on the host and packed for a device, in few shapes."""

import types

import numpy as np
import pytest
from cells_in_memory import KINDS, dense_of, random_draw, raw_cells, store_of

from perturbdiff_jax.data.loading.batcher import Batcher
from perturbdiff_jax.data.loading.blocks import make_block
from perturbdiff_jax.errors import RequestError

B, S = 4, 6


def made(kind="words", form="packed", seed=0, repeats=True, cells=60, **options):
    """(raws, draw, batch) of two blocks of cells."""
    raws = [raw_cells(kind, cells=cells, seed=n) for n in (1, 2)]
    batcher = Batcher(store_of(raws[0]), form, 4.0, **options)
    draw = random_draw([batcher.block(raw) for raw in raws], B, S, seed, repeats)
    return raws, draw, batcher.batch(draw)


def expected(raws, rows, reverse=False):
    cells = [dense_of(raw, 4.0) for raw in (raws[::-1] if reverse else raws)]
    return np.stack([[cells[w][r] for w, r in zip(*pair)] for pair in zip(rows.which, rows.rows)])


def unpacked(packed, row_map, genes, divisor=4.0):
    """[B, S, G] from a packed batch, one stored value at a time."""
    runs = len(packed.data)
    out = np.zeros((*row_map.shape, genes), np.float32)
    for b, s in np.ndindex(row_map.shape):
        d, row = b // (len(row_map) // runs), row_map[b, s]
        if packed.row_nnz is None:
            out[b, s] = packed.data[d, row]
        else:
            low = packed.row_nnz[d, :row].sum()
            for k in range(low, low + packed.row_nnz[d, row]):
                value = packed.data[d, k]
                if packed.indices is None:
                    out[b, s, value & 0xFFFF] = value >> 16
                else:
                    out[b, s, packed.indices[d, k]] = value
        if packed.scale is not None:
            out[b, s] = np.log1p(out[b, s] * packed.scale[d, row])
    return out / np.float32(divisor)


@pytest.mark.parametrize("kind", KINDS)
def test_dense_batches_hold_the_drawn_cells(kind):
    raws, draw, batch = made(kind, "dense")
    np.testing.assert_allclose(batch.perturbed, expected(raws, draw.perturbed), rtol=1e-6)
    np.testing.assert_allclose(batch.control, expected(raws, draw.control, reverse=True), rtol=1e-6)
    assert batch.perturbed.dtype == batch.control.dtype == np.float32
    np.testing.assert_array_equal(batch.mask, draw.mask)
    codes = {"perturbation": draw.group % 4, "cell_type": draw.group % 2, "batch": draw.group // 3}
    for name, code in codes.items():
        assert getattr(batch, name).tolist() == code.tolist() and getattr(batch, name).dtype == np.int32


@pytest.mark.parametrize("runs", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_batches_hold_the_drawn_cells_once(kind, runs):
    raws, draw, batch = made(kind, blocks=runs)
    genes = raws[0].genes
    sides = ((draw.perturbed, batch.perturbed), (draw.control, batch.control))
    for reverse, (rows, row_map) in enumerate(sides):
        np.testing.assert_allclose(
            unpacked(batch, row_map, genes), expected(raws, rows, bool(reverse)), rtol=1e-6
        )
        assert row_map.dtype == np.int32 and row_map.shape == (B, S)
    assert {len(batch.data)} == {runs}
    if batch.row_nnz is not None:
        assert batch.row_nnz.shape == (runs, 2 * S * B // runs)
        assert (batch.indices is None) == (kind == "words")
    for run in range(runs):
        sets = slice(run * B // runs, (run + 1) * B // runs)
        pairs = {
            (id(rows.blocks[w]), int(r))
            for rows in (draw.perturbed, draw.control)
            for w, r in zip(rows.which[sets].flat, rows.rows[sets].flat)
        }
        used = np.unique([batch.perturbed[sets], batch.control[sets]])
        assert used.tolist() == list(range(len(pairs)))  # no row twice, none for nothing


def test_kinds_of_the_arrays():
    kinds = {
        "words": (np.uint32, None),
        "wide counts": (np.uint32, np.uint16),
        "many genes": (np.uint32, np.uint32),
        "log1p values": (np.float32, np.uint16),
        "dense": (np.uint8, None),
    }
    for kind, (data, indices) in kinds.items():
        batch = made(kind)[2]
        assert batch.data.dtype == data and (batch.scale is None) == (kind == "log1p values")
        assert (None if batch.indices is None else batch.indices.dtype) == indices


def test_lengths_are_few_and_near_what_is_used():
    cells = raw_cells(cells=400, genes=40)
    batcher = Batcher(store_of(cells), "packed", 4.0, blocks=2)
    block = batcher.block(cells)
    lengths = []
    for seed in range(30):
        batch = batcher.batch(random_draw([block], 8, 16, seed, repeats=False))
        lengths.append(batch.data.shape)
        used = batch.row_nnz.sum(axis=1).max()
        expected = 2 * 16 * 4 * cells.indptr[-1] / 400
        step, slack = np.ceil(expected / 8), np.ceil(expected * 0.02)
        assert used <= batch.data.shape[1] < used + step and (batch.data.shape[1] - slack) % step == 0
        for run in range(2):
            assert not batch.data[run, batch.row_nnz[run].sum() :].any()
    assert len(set(lengths)) <= 3


@pytest.mark.parametrize("kind", KINDS)
def test_matched_pairing_orders_the_controls_alike_in_both_forms(kind):
    results = {}
    for form in ("dense", "packed"):
        raws, draw, batch = made(kind, form, seed=4, repeats=False, pairing="matched")
        genes = raws[0].genes
        pair = [batch.perturbed, batch.control]
        results[form] = pair if form == "dense" else [unpacked(batch, rows, genes) for rows in pair]
    for one, other in zip(*results.values()):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    perturbed, control = results["dense"]
    drawn = expected(raws, draw.control, reverse=True)
    for x, y, before in zip(perturbed, control, drawn):
        assert sorted(y.sum(axis=1).tolist()) == pytest.approx(sorted(before.sum(axis=1).tolist()))
        cost = ((x[:, None] - y[None]) ** 2).sum(axis=-1)
        for i in range(S):
            for j in range(i):  # no exchange of two control cells is nearer
                assert cost[i, i] + cost[j, j] <= cost[i, j] + cost[j, i] + 1e-4


def test_groups_that_mix_batches_bring_a_code_for_every_cell():
    raw = raw_cells()
    store = store_of(raw)
    store.groups.batch[:] = -1
    store.batch_codes = lambda rows: rows % 5
    for form in ("dense", "packed"):
        batcher = Batcher(store, form, 4.0)
        draw = random_draw([batcher.block(raw)], B, S)
        batch = batcher.batch(draw)
        np.testing.assert_array_equal(batch.batch, draw.cells % 5)
        assert batch.batch.dtype == np.int32 and batch.perturbation.shape == (B,)


def test_one_block_on_both_sides_is_shipped_once():
    raw = raw_cells()
    batcher = Batcher(store_of(raw), "packed", 4.0)
    block = batcher.block(raw)
    draw = random_draw([block], B, S)
    rows = types.SimpleNamespace(blocks=[block], which=draw.perturbed.which, rows=draw.perturbed.rows)
    batch = batcher.batch(types.SimpleNamespace(**(vars(draw) | {"control": rows})))
    np.testing.assert_array_equal(batch.perturbed, batch.control)


def test_wrong_requests_are_named():
    raw = raw_cells()
    batcher = Batcher(store_of(raw), "packed", 4.0, blocks=3)
    with pytest.raises(ValueError, match="4 sets cannot be cut into 3 equal runs"):
        batcher.batch(random_draw([make_block(raw, "packed", 4.0)], B, S))
    with pytest.raises(RequestError, match="unknown pairing 'match'"):
        Batcher(store_of(raw), "packed", 4.0, pairing="match")

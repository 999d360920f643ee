"""Packed batches unpacked on the device: the host's dense cells again, on one device and on eight.

Host and device do the same float32 operations; only log1p comes from two libraries, whose results may differ in the
last bits. Hence 1e-6 relative (eight units in the last place), not equality.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturbdiff_jax import sharding
from perturbdiff_jax.data.loading.batcher import Batcher
from perturbdiff_jax.kernels.densify import densify, row_of_value

sys.path.append(str(pathlib.Path(__file__).parents[1] / "data"))
from cells_in_memory import KINDS, random_draw, raw_cells, store_of

B, S = 8, 6


def both(kind, runs, seed=0, repeats=True):
    """(the batch dense on the host, the same packed, G)."""
    raws = [raw_cells(kind, seed=n) for n in (1, 2)]
    batches = []
    for form in ("dense", "packed"):
        batcher = Batcher(store_of(raws[0]), form, 10.0, blocks=runs)
        batches.append(batcher.batch(random_draw([batcher.block(raw) for raw in raws], B, S, seed, repeats)))
    return *batches, raws[0].genes


@pytest.mark.parametrize("runs", [1, 2, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_the_device_makes_what_the_host_makes(kind, runs):
    dense, packed, genes = both(kind, runs)
    got = jax.jit(lambda batch: densify(batch, genes=genes, divisor=10.0))(packed)
    for name in ("perturbed", "control"):
        wanted = getattr(dense, name)
        assert wanted.any() and getattr(got, name).dtype == jnp.float32
        np.testing.assert_allclose(getattr(got, name), wanted, rtol=1e-6)
    for name in ("perturbation", "cell_type", "batch", "mask"):
        np.testing.assert_array_equal(getattr(got, name), getattr(dense, name))
    assert got.source is None


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_sent_between_devices(kind):
    dense, packed, genes = both(kind, 8)
    mesh = sharding.make_mesh()
    place = sharding.batch_sharding(mesh)
    function = jax.jit(
        lambda batch: densify(batch, genes=genes, divisor=10.0), in_shardings=place, out_shardings=place
    )
    placed = jax.device_put(packed, place)
    text = function.lower(placed).compile().as_text()
    for word in ("all-gather", "all-to-all", "all-reduce", "collective-permute", "reduce-scatter"):
        assert word not in text
    got = function(placed)
    assert {shard.data.shape for shard in got.perturbed.addressable_shards} == {(1, S, genes)}
    np.testing.assert_allclose(got.perturbed, dense.perturbed, rtol=1e-6)


def test_what_fills_the_arrays_up_touches_no_cell():
    """Behind the last stored value stand large numbers for gene 0; nothing of them may arrive."""
    for kind in ("words", "wide counts", "log1p values"):
        dense, packed, genes = both(kind, 2, repeats=False)
        # The last row is a cell.
        assert packed.perturbed.max() + packed.control.max() > packed.row_nnz.shape[1]
        for run, used in enumerate(packed.row_nnz.sum(axis=1)):
            assert used < packed.data.shape[1]
            packed.data[run, used:] = 99 if kind == "log1p values" else 99 << 16
        got = jax.jit(lambda batch, genes=genes: densify(batch, genes=genes, divisor=10.0))(packed)
        np.testing.assert_allclose(got.perturbed, dense.perturbed, rtol=1e-6)
        np.testing.assert_allclose(got.control, dense.control, rtol=1e-6)


def test_row_of_value():
    row_nnz = jnp.array([0, 2, 0, 0, 3, 1, 0])
    assert row_of_value(row_nnz, 9).tolist() == [1, 1, 4, 4, 4, 5, 7, 7, 7]
    assert row_of_value(row_nnz, 6).tolist() == [1, 1, 4, 4, 4, 5]  # full: no value behind the last
    assert row_of_value(jnp.zeros(3, jnp.int32), 2).tolist() == [3, 3]

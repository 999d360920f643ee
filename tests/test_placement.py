"""Batches on their way to the devices: every row on the device that needs it, packed arrays of one length."""

import dataclasses
import pathlib
import sys

import jax
import numpy as np
import pytest

from perturbdiff_jax import placement, sharding
from perturbdiff_jax.data.loading.batcher import Batcher
from perturbdiff_jax.kernels.densify import densify
from perturbdiff_jax.sharding import MeshOptions, make_mesh

sys.path.append(str(pathlib.Path(__file__).parent / "data"))
from cells_in_memory import random_draw, raw_cells, store_of

SETS, SIZE, GENES = 16, 4, 10


def drawn(form, runs, seed=0):
    cells = raw_cells(cells=200, genes=GENES)
    batcher = Batcher(store_of(cells), form, 10.0, blocks=runs)
    return batcher.batch(random_draw([batcher.block(cells)], SETS, SIZE, seed))


@pytest.mark.parametrize("options", [{}, {"fsdp": 2, "tensor": 2}, {"data": 1, "tensor": 8}])
@pytest.mark.parametrize("form", ["dense", "packed"])
def test_rows_of_a_process_land_where_a_plain_placement_puts_them(options, form):
    mesh = make_mesh(MeshOptions(**options))
    local = drawn(form, sharding.runs_of(mesh))
    placed = placement.from_local(local, mesh)
    plain = jax.device_put(local, sharding.batch_sharding(mesh))
    for one, other in zip(jax.tree.leaves(placed), jax.tree.leaves(plain), strict=True):
        assert one.sharding.is_equivalent_to(other.sharding, one.ndim)
        for mine, theirs in zip(one.addressable_shards, other.addressable_shards, strict=True):
            assert mine.device == theirs.device
            np.testing.assert_array_equal(mine.data, theirs.data)


def test_a_lengthened_batch_is_the_same_cells():
    packed = drawn("packed", 4)
    values, cells = placement.length_of(packed)
    assert (values, cells) == (packed.data.shape[1], packed.row_nnz.shape[1])
    longer = placement.lengthened(packed, (values + 37, cells + 5))
    assert placement.length_of(longer) == (values + 37, cells + 5)
    one, other = (densify(batch, genes=GENES, divisor=10.0) for batch in (packed, longer))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert placement.lengthened(packed, (values, cells)).data is packed.data
    dense = drawn("dense", 4)
    assert placement.length_of(dense) == (0, 0) and placement.lengthened(dense, (9, 9)) is dense


class Source:
    """Batches whose packed arrays have other lengths at every step, as on the other processes of a run."""

    def __init__(self, form):
        self.form = form

    def __getitem__(self, step):
        batch = drawn(self.form, 8, seed=step)
        longer = placement.length_of(batch)[0] + 10 * (step % 3)
        return placement.lengthened(batch, (longer, placement.length_of(batch)[1]))


@pytest.mark.parametrize("form", ["dense", "packed"])
@pytest.mark.parametrize("first, stop", [(0, 7), (3, 4), (2, 2)])
def test_steps_come_in_order_and_as_they_are_made_with_one_process_or_several(form, first, stop, monkeypatch):
    mesh, source = make_mesh(), Source(form)
    alone = list(placement.placed(source, mesh, first, stop))
    monkeypatch.setattr(jax, "process_count", lambda: 2)  # the way of several, walked by one
    together = list(placement.placed(source, mesh, first, stop))
    assert [step for step, _ in alone] == [step for step, _ in together] == list(range(first, stop))
    for (step, one), (_, other) in zip(alone, together):
        expected = dataclasses.asdict(source[step])
        for name, array in expected.items():
            for batch in (one, other):
                found = getattr(batch, name)
                assert (array is None) == (found is None)
                np.testing.assert_array_equal(found, array)


def test_the_largest_need_of_all_is_agreed_on():
    """Eight devices say what they need, as those of several processes would."""
    mesh = make_mesh()
    lengths = placement._Lengths(mesh)
    packed = drawn("packed", 8)
    lengths.say(5, packed)
    assert lengths.agreed(5) == placement.length_of(packed) and lengths.agreed(6) == (0, 0)
    needs = jax.device_put(
        np.stack([np.arange(8), 10 - np.arange(8)], axis=1).astype(np.int32), lengths._every
    )
    np.testing.assert_array_equal(lengths._largest(needs), [7, 10])


def test_gathered_is_whole_on_one_device():
    mesh = make_mesh(MeshOptions(fsdp=8))
    tree = {"head/out/linear/kernel": np.arange(128.0, dtype=np.float32).reshape(16, 8)}
    cut = jax.device_put(tree, sharding.state_shardings(tree, mesh))
    assert not cut["head/out/linear/kernel"].is_fully_replicated
    (whole,) = placement.gathered(cut, mesh).values()
    assert len(whole.devices()) == 1
    np.testing.assert_array_equal(whole, tree["head/out/linear/kernel"])

"""Control cells in memory: how much of each group, what stays and what goes."""

import types

import numpy as np
from fake_store import fake_store

from perturbdiff_jax.data.loading.control_pool import ControlPool, control_bytes, slab_cells
from perturbdiff_jax.data.loading.sampler import Sampler


def table_of(*sizes):
    """A table of groups of 5 cells, each with a control group of one of the sizes."""
    return [row for n, size in enumerate(sizes) for row in ((n, 0, "control", size), (n, 1, "train", 5))]


def test_slabs_are_as_large_as_fits():
    groups = fake_store(table_of(100, 1000, 5000)).groups

    def slab(budget):
        return slab_cells(groups, cells_per_set=8, bytes_per_cell=10, budget=budget)

    assert slab(61_000) is None
    assert slab(60_999) == 4096  # 100 + 1,000 + 4,096 cells are 51,960 bytes
    assert slab(51_959) == 2048
    assert slab(1) == 32  # never below four sets


def test_groups_that_serve_only_themselves_need_no_room():
    groups = fake_store(table_of(100, 1000)).groups
    groups.control = np.arange(4, dtype=np.int32)
    assert slab_cells(groups, cells_per_set=8, bytes_per_cell=10, budget=1) is None
    assert control_bytes(groups, 10) == 0
    groups.control[1] = 0
    assert control_bytes(groups, 10) == 1000 and control_bytes(groups, 10, 30) == 300


def pool_of(sizes, budget, slab=None, expected=10):
    store = fake_store(table_of(*sizes))
    sampler = Sampler(store.groups, None, seed=0, slab_cells=slab)

    def make(raw):
        return types.SimpleNamespace(raw=raw, nbytes=10 * len(raw))

    return store, ControlPool(store, sampler, make, bytes_per_cell=expected, budget=budget)


def rows_in(block):
    return (np.rint(block.raw.lognorm()[:, 0].toarray()[:, 0]) - 1).astype(int).tolist()


def test_the_pool_lets_the_least_recently_used_go_and_stays_within_its_budget():
    store, pool = pool_of([30, 40, 50, 60], budget=1300)
    for group in (0, 2, 4, 0, 6):
        (block,) = pool.blocks([pool.key(group, 7)])
        start = store.groups.start[group]
        assert rows_in(block) == list(range(start, start + store.groups.size[group]))
        assert pool.nbytes <= 1300
    assert store.fetched == [30, 40, 50, 60]
    pool.blocks([pool.key(0, 8)])  # was used after 2 and 4, which are gone
    assert store.fetched == [30, 40, 50, 60]
    pool.blocks([pool.key(2, 8)])
    assert store.fetched == [30, 40, 50, 60, 40] and pool.nbytes <= 1300


def test_the_pool_keeps_what_one_batch_needs_even_above_its_budget():
    _, pool = pool_of([30, 40, 50, 60], budget=100)
    assert [len(rows_in(b)) for b in pool.blocks([pool.key(g, 0) for g in (0, 2, 4)])] == [30, 40, 50]
    pool.blocks([pool.key(6, 0)])
    assert pool.nbytes == 600


def test_a_block_counts_as_what_it_is_once_it_is_there():
    _, pool = pool_of([30, 40], budget=10_000, expected=3)
    pool.ask([pool.key(0, 0), pool.key(2, 0)])
    assert pool.nbytes == 210
    pool.blocks([pool.key(0, 0)])
    assert pool.nbytes == 420


def test_readings_that_nobody_waits_for_count_as_well():
    _, pool = pool_of([30, 40, 50, 60], budget=1000)
    for group in (0, 2, 4, 6):
        pool.ask([pool.key(group, 0)])
        assert pool.nbytes <= 1000


def test_slabs_are_read_anew_in_every_epoch_and_whole_groups_are_not():
    store, pool = pool_of([30, 100], budget=10_000, slab=64)
    found = []
    for epoch in range(5):
        whole, slab = pool.blocks([pool.key(0, epoch), pool.key(2, epoch)])
        rows = rows_in(slab)
        assert len(rows) == 64 and len(rows_in(whole)) == 30
        steps = np.diff(rows)
        assert ((steps == 1) | (steps == -99)).all()  # neighbours, around the end of the group
        found.append(rows[0])
    assert store.fetched.count(30) == 1 and len(set(found)) > 2
    assert any((np.diff(rows_in(pool.blocks([pool.key(2, e)])[0])) == -99).any() for e in range(20))

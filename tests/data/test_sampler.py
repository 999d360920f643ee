"""Plans of windows: the properties of a set, each against counting by hand on small uneven groups."""

import numpy as np
import pytest
from fake_store import TABLE, fake_store, random_table

from perturbdiff_jax.data.loading.index import index_sets
from perturbdiff_jax.data.loading.lanes import Lanes, Lines
from perturbdiff_jax.data.loading.sampler import SET, Sampler, joined_ranges
from perturbdiff_jax.data.loading.tiers import store_rows

S = 8


class Planned:
    """All sets of an epoch, planned by lane and window: group, epoch, mask, rows and control_rows of the store."""

    def __init__(self, store, epoch, *, seed=0, shuffle=True, lanes=1, window=10**6, slab=None, **options):
        options = {"split": "train", "cells_per_set": S, "segment_cells": 30} | options
        index = index_sets(store.groups, **options)
        lines = Lines(index, Lanes(index.n_sets, lanes), seed=seed, window_cells=window, shuffle=shuffle)
        sampler = Sampler(store.groups, index, seed=seed, slab_cells=slab, shuffle=shuffle)
        parts = []
        for lane in range(lanes):
            position = lines.lanes.first(lane, epoch)
            while position < lines.lanes.first(lane, epoch + 1):
                window = lines.window(lane, position)
                plan = sampler.plan(window)
                parts.append((plan, sampler.ranges(window)))
                position = window.stop
        table = np.concatenate([plan.table for plan, _ in parts])
        places, partners = (
            np.concatenate([getattr(p, n) for p, _ in parts]) for n in ("places", "control_places")
        )
        self.index, self.parts = index, parts
        self.group = table.view(SET)["group"][:, 0]
        self.mask = np.arange(options["cells_per_set"]) < table.view(SET)["real"]
        self.rows, self.control_rows = store_rows(table, places, partners)


def small(epoch=0, with_controls=False, table=TABLE, **options):
    return Planned(fake_store(table), epoch, with_controls=with_controls, **options)


def test_stream_is_pinned():
    """A change here means that resumed runs no longer repeat unbroken ones: never change the figures."""
    plan = small(3, True, seed=3)
    (of_five,) = np.flatnonzero(plan.group == 4)  # a control group of 5 cells
    of_two = np.flatnonzero(plan.group == 2)[0]
    assert plan.group.tolist() == PINNED[0]
    assert plan.rows[[of_five, of_two]].tolist() == PINNED[1]
    assert plan.control_rows[[of_five, of_two]].tolist() == PINNED[2]


PINNED = (
    [0, 1, 0, 7, 4, 9, 9, 0, 1, 2, 8, 0, 5, 0, 1, 9, 9],
    [[79, 80, 77, 78, 76, 76, 79, 78], [59, 64, 60, 57, 61, 58, 63, 62]],
    [[77, 78, 76, 79, 80, 80, 77, 79], [27, 17, 19, 20, 30, 15, 18, 25]],
)


@pytest.mark.parametrize("with_controls", [False, True])
@pytest.mark.parametrize("epoch", [0, 1, 5])
@pytest.mark.parametrize("shape", [{}, {"lanes": 4, "window": 40, "piece_cells": 16}])
def test_every_cell_once_an_epoch_with_mask_1(with_controls, epoch, shape):
    for table in (TABLE, random_table()):
        store = fake_store(table)
        plan = Planned(store, epoch, with_controls=with_controls, **shape)
        split = store.groups.split[store.group_of]
        expected = np.flatnonzero((split == 0) | (with_controls & (split == 3)))
        np.testing.assert_array_equal(np.sort(plan.rows[plan.mask]), expected)


def test_sets_never_mix_groups_and_fillings_come_from_their_own():
    store, plan = fake_store(), small(with_controls=True)
    assert (store.group_of[plan.rows] == plan.group[:, None]).all() and not plan.mask.all()


def test_real_cells_are_different_and_only_a_groups_last_set_is_filled():
    plan = small()
    for group in np.unique(plan.group):
        mine = plan.mask[plan.group == group]
        filled = mine[~mine.all(axis=1)]
        assert filled.sum(axis=1).tolist() == ([TABLE[group][3] % S] if TABLE[group][3] % S else [])
        assert (np.diff(filled.astype(int), axis=1) <= 0).all()  # the real ones first
    for rows, mask in zip(plan.rows, plan.mask):
        assert len(set(rows[mask])) == mask.sum()


def test_ranges_hold_the_cells_at_their_base():
    """What is read is exactly what the plan counts on, also where a piece wraps around the end of its group."""
    store = fake_store(random_table(largest=90))
    wrapped = 0
    for epoch in range(4):
        plan = Planned(store, epoch, lanes=2, window=100, piece_cells=24, with_controls=True)
        for part, ranges in plan.parts:
            rows = np.concatenate([np.arange(low, high) for low, high in ranges])
            sets = part.table.view(SET)[:, 0]
            cells, controls = store_rows(part.table, part.places, part.control_places)
            np.testing.assert_array_equal(rows[part.places + sets["base"][:, None]], cells)
            own = sets["control"] < 0
            inside = (part.control_places + sets["base"][:, None])[own]
            np.testing.assert_array_equal(rows[inside], controls[own])
            assert len(set(rows)) == len(rows)  # read once
            wrapped += (sets["begin"] + 24 > sets["around"]).sum()
    assert wrapped


def test_joined_ranges_join_neighbours_and_cut_wrapping_ones():
    def ranges(*rows):
        return joined_ranges(*np.array(rows).T)

    assert ranges((0, 0, 5, 5), (5, 0, 3, 3), (20, 0, 2, 2)) == [(0, 8), (20, 22)]
    assert ranges((10, 7, 6, 10)) == [(17, 20), (10, 13)]
    assert ranges((10, 0, 10, 10), (20, 4, 3, 9)) == [(10, 20), (24, 27)]


def test_a_cut_group_is_cut_elsewhere_in_every_epoch():
    table = [(0, 0, "control", 9), (0, 1, "train", 48)]
    together = []
    for epoch in range(30):
        plan = small(epoch, table=table, piece_cells=16)
        assert len(plan.index.size) == 3
        together.append(tuple(sorted(plan.rows[plan.group == 1].min(axis=1))))
    assert len(set(together)) > 5


def test_controls_come_from_the_matched_control_group():
    store, plan = fake_store(), small(with_controls=True)
    for group, rows in zip(plan.group, plan.control_rows):
        assert (store.group_of[rows] == store.groups.control[group]).all()
        if TABLE[store.groups.control[group]][3] >= S:
            assert len(set(rows.tolist())) == S


def test_controls_are_drawn_anew_in_every_set_and_epoch():
    found = set()
    for epoch in range(3):
        plan = small(epoch)
        found |= {tuple(rows) for rows in plan.control_rows[plan.group == 1].tolist()}
    assert len(found) == 9  # three sets of the group in each of three epochs


def test_slabs_bound_the_controls_of_an_epoch_and_move_on():
    store, used = fake_store(), []
    for epoch in range(12):
        plan = small(epoch, slab=16)
        rows = plan.control_rows[np.isin(plan.group, [1, 2])]  # of the control group with 40 cells
        assert all(len(set(row)) == S for row in rows.tolist())
        low = min(range(40), key=lambda low: max((row - low) % 40 for row in rows.reshape(-1).tolist()))
        assert max((row - low) % 40 for row in rows.reshape(-1).tolist()) < 16
        used.append(set(rows.reshape(-1).tolist()))
        others = plan.control_rows[plan.group == 9]
        assert (store.group_of[others] == 8).all()  # a smaller control group is used whole
    assert set.union(*used) == set(range(40)) and len({min(u) for u in used}) > 4


@pytest.mark.parametrize("shape", [{}, {"shuffle": False}, {"piece_cells": 16, "lanes": 3}])
def test_a_control_cell_is_never_its_own_partner(shape):
    seen = set()
    for epoch in range(20):
        plan = small(epoch, True, **shape)
        for group, rows, partners, mask in zip(plan.group, plan.rows, plan.control_rows, plan.mask):
            size = TABLE[group][3]
            if TABLE[group][2] != "control" or size == 1:
                continue
            assert (rows != partners).all()
            if size >= S:
                assert len(set(partners[mask].tolist())) == mask.sum()
            if size >= 2 * S and mask.all() and "piece_cells" not in shape:
                assert not set(rows.tolist()) & set(partners.tolist())
            seen |= set(partners.tolist()) if group == 0 else set()
    assert seen == set(range(40))


def test_a_control_group_of_one_cell_is_its_own_partner():
    plan = small(with_controls=True)
    (only,) = np.flatnonzero(plan.group == 8)
    assert set(plan.rows[only]) == set(plan.control_rows[only]) and plan.mask[only].sum() == 1


def test_seeds_and_epochs_differ_and_sets_are_shuffled_across_groups():
    first, again, other, second = small(seed=1), small(seed=1), small(seed=2), small(1, seed=1)
    np.testing.assert_array_equal(first.rows, again.rows)
    np.testing.assert_array_equal(first.control_rows, again.control_rows)
    for changed in (other, second):
        assert (changed.rows != first.rows).any() and (changed.control_rows != first.control_rows).any()
        assert (changed.group != first.group).any()
    assert (np.diff(first.group) < 0).any()


def test_cells_of_a_group_meet_in_other_sets_in_another_epoch():
    table, together = [(0, 0, "control", 9), (0, 1, "train", 16)], []
    for epoch in range(4):
        together.append({frozenset(rows) for rows in small(epoch, table=table).rows.tolist()})
    assert not together[0] & together[1] and not together[2] & together[3]


def test_every_cell_is_as_likely_at_every_place_of_its_group():
    table = [(0, 0, "control", 1), (0, 1, "train", 12)]
    counts = np.zeros((12, 12))
    for epoch in range(600):
        plan = small(epoch, table=table)
        order = np.argsort(~plan.mask.all(axis=1), kind="stable")  # the full set, then the filled one
        counts[np.arange(12), plan.rows[order].reshape(-1)[:12] - 1] += 1
    assert abs(((counts - 50) ** 2 / 50).sum() - 121) < 5 * np.sqrt(2 * 121)


def test_the_draws_do_not_depend_on_lanes_and_windows():
    """Only the order of sets does: cells and controls of a set have keys of their own."""
    wide, narrow = small(2, True), small(2, True, lanes=5, window=20)
    for one in (wide, narrow):
        one.order = np.lexsort([*one.control_rows.T, *one.rows.T, one.group])
    for name in ("group", "mask", "rows", "control_rows"):
        np.testing.assert_array_equal(getattr(wide, name)[wide.order], getattr(narrow, name)[narrow.order])


def test_unshuffled_keeps_the_stores_order():
    plan = small(shuffle=False)
    real = plan.rows[plan.mask]
    assert (np.diff(real) > 0).all() and (np.diff(plan.group) >= 0).all()

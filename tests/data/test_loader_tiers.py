"""Streaming: the same batches as from memory, in any order and from several threads, within the budgets."""

import concurrent.futures
import types

import numpy as np
import pytest
from fake_store import FakeStore, fake_store, random_table

from perturbdiff_jax.data.loader import SetSource, ordered
from perturbdiff_jax.data.loading import windows
from perturbdiff_jax.data.loading.prefetch import prefetch
from perturbdiff_jax.data.loading.reading import Reading
from perturbdiff_jax.data.loading.set_stream import GIB, Reach
from perturbdiff_jax.data.loading.tiers import chosen_tier
from perturbdiff_jax.errors import RequestError

FIELDS = ("perturbed", "control", "perturbation", "cell_type", "batch", "mask")
SHORT = Reach(window=200, piece=32, segment=50)
CASES = [
    {},
    {"train_on_controls": True},
    {"control_memory": 1e-6},  # slabs of 32 cells, far too many for the pool
    {"control_memory": 9e-6, "sets_per_batch": 6},
    {"cells_per_set": 3, "sets_per_batch": 64},
    {"pairing": "matched", "min_cells": 5},
]


def source(store=None, **changed):
    options = {"cells_per_set": 8, "sets_per_batch": 8, "seed": 0, "reach": SHORT, "tier": "streamed"}
    return SetSource(store or fake_store(random_table()), **{**options, **changed})


def assert_same(one, other):
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=field)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_streamed_is_resident_batch_for_batch(case):
    streamed, resident = source(**case), source(tier="resident", **case)
    assert (streamed.tier.name, resident.tier.name) == ("streamed", "resident")
    for step in range(2 * len(resident) + 1):
        one, other = streamed.draw(step), resident.draw(step)
        np.testing.assert_array_equal(one.perturbed.cells, other.perturbed.cells)
        np.testing.assert_array_equal(one.control.cells, other.control.cells)
        assert_same(streamed[step], resident[step])


def test_a_packed_batch_is_the_same_too():
    streamed, resident = (source(tier=tier, densify="device", blocks=2) for tier in ("streamed", "resident"))
    for step in (0, 5):
        one, other = streamed[step], resident[step]
        assert one.perturbed.shape == (8, 8) and (one.mask == other.mask).all()
        assert one.row_nnz.sum() == other.row_nnz.sum()


def test_any_order_of_asking_gives_the_same_batches():
    made, again = source(), source()
    forward = [made[step] for step in range(20)]
    for step in np.random.default_rng(0).permutation(20).tolist():
        assert_same(again[step], forward[step])


@pytest.mark.parametrize("case", [{}, {"tier": "resident"}, {"control_memory": 1e-6}], ids=str)
def test_threads_asking_for_random_steps_get_the_same_batches(case):
    expected = [batch for _, batch in zip(range(24), source(**case))]
    made = source(**case)

    def ask(seed):
        for step in np.random.default_rng(seed).integers(0, 24, 40).tolist():
            assert_same(made[step], expected[step])

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(ask, seed) for seed in range(4)]:
            done.result()


def test_every_window_is_read_once_when_steps_follow_each_other():
    store = fake_store(random_table(groups=120))
    made = source(store)
    steps = len(made) * 2
    for step in range(steps):
        made[step]
    controls = store.groups.size[store.groups.is_control].sum()
    # What is read ahead at the end, and segments on the border of two lanes, come on top of two epochs.
    most = 2 * made.n_cells + 3 * 8 * 2 * 90 + controls
    assert 2 * made.n_cells < sum(store.fetched) < most
    store.fetched.clear()
    made[steps - 1], made[steps - 1]
    assert not store.fetched


def test_the_next_windows_are_asked_for_before_they_are_used(monkeypatch):
    store, waited = fake_store(random_table(groups=120)), []
    plain = FakeStore.fetch

    def fetch(self, ranges):
        number, result = len(waited), plain(self, ranges).result
        waited.append(False)
        return types.SimpleNamespace(result=lambda: (waited.__setitem__(number, True), result())[1])

    monkeypatch.setattr(FakeStore, "fetch", fetch)
    made, ahead = source(store), []
    for step in range(30):
        asked = len(waited)
        made[step]
        ahead.append(waited[:asked].count(False))
    assert max(ahead[1:]) >= 4 and np.mean(ahead[1:]) > 2


def test_controls_are_read_ahead_only_where_they_can_stay():
    """A pool that is too small would lose what was read ahead before it is used."""
    for memory, slab, fits in ((1.0, None, True), (6e-6, 32, True), (1e-6, 32, False)):
        made, asked = source(control_memory=memory), []
        assert made.tier.windows._sampler.slab_cells == slab
        made[0]
        plain = made.tier.pool.ask
        made.tier.pool.ask = lambda keys, asked=asked, plain=plain: asked.append(len(keys)) or plain(keys)
        made.tier.read_ahead([(made.tier.windows.at(0, 0), 0, made.tier.windows.at(0, 0).window.stop)], None)
        assert bool(asked) == fits and made.tier.pool.nbytes > 0


def test_few_windows_are_kept_of_a_lane():
    made = source()
    for step in np.random.default_rng(0).integers(0, 500, 60).tolist():
        made[step]
    assert {len(kept) for kept in made.tier.windows._kept} == {windows.KEPT}


def test_of_a_lane_the_windows_used_last_are_kept():
    made = source()
    at = made.tier.windows.at
    first = [at(0, 0)]
    while len(first) < 4:
        first.append(at(0, first[-1].window.stop))
        assert at(0, 0) is first[0]
    assert at(0, first[3].window.first) is first[3] and at(0, first[1].window.first) is not first[1]


def test_an_ordered_split_is_streamed_and_nothing_behind_its_end_is_read():
    store = fake_store(random_table())
    options = {"cells_per_set": 8, "reach": SHORT}
    streamed = ordered(store, "test", sets_per_batch=5, tier="streamed", **options)
    resident = ordered(fake_store(random_table()), "test", sets_per_batch=5, tier="resident", **options)
    assert len(list(streamed)) == len(resident) > 3
    for one, other in zip(streamed, resident):
        assert_same(one, other)
    store.fetched.clear()
    streamed = ordered(store, "test", sets_per_batch=1, tier="streamed", **options)
    list(streamed)
    serving = np.unique(store.groups.control[store.groups.split == 2])
    assert sum(store.fetched) == streamed.n_cells + store.groups.size[serving].sum()


def test_an_error_of_a_read_comes_at_its_step_and_the_step_can_be_asked_for_again():
    """The damaged window is read ahead, in the steps before; they must not fail."""
    store, whole = fake_store(random_table()), source()
    windows_of = [{(p.window.lane, p.window.first) for p in used(whole, step)} for step in range(40)]
    failing = next(step for step in range(5, 40) if not windows_of[step] <= set.union(*windows_of[:step]))
    lane, first = next(iter(windows_of[failing] - set.union(*windows_of[:failing])))
    planned = whole.tier.windows.at(lane, first)
    low, _ = whole.tier.windows._sampler.ranges(planned.window)[0]
    before = [window for step in windows_of[:failing] for window in step]
    assert not any(low in rows_read(whole, *window) for window in before)
    store.damaged = {low}
    made, seen = source(store), []
    with pytest.raises(RequestError, match=rf"fake\.store: cell {low} is damaged"):
        for step, _ in prefetch(made, 0, stop_step=40):
            seen.append(step)
    assert seen == list(range(failing))
    with pytest.raises(RequestError, match="damaged"):
        made[failing]
    store.damaged = set()
    assert_same(made[failing], whole[failing])


def used(made, step):
    """The windows that a step takes sets from; one set of a lane is in one window."""
    return [made.tier.windows.at(lane, step) for lane in range(8)]


def rows_read(made, lane, first):
    planned = made.tier.windows.at(lane, first)
    return {row for pair in made.tier.windows._sampler.ranges(planned.window) for row in range(*pair)}


def test_a_read_that_cannot_even_begin_fails_when_it_is_waited_for():
    def fetch(ranges):
        raise OSError("no such bucket")

    reading = Reading(types.SimpleNamespace(fetch=fetch), [(0, 1)], None)
    for _ in range(2):
        with pytest.raises(OSError, match="no such bucket"):
            reading.block()


def test_a_damaged_control_group_is_tried_again():
    store = fake_store(random_table())
    made = source(store)
    cell = int(source().draw(0).control.cells[0, 0])
    store.damaged = {cell}
    with pytest.raises(RequestError, match="damaged"):
        made[0]
    store.damaged = set()
    assert_same(made[0], source()[0])


def test_the_tier_is_chosen_by_bytes():
    assert chosen_tier("auto", 100, 100) == "resident" and chosen_tier("auto", 101, 100) == "streamed"
    assert chosen_tier("streamed", 1, 100) == "streamed" and chosen_tier("resident", 101, 100) == "resident"
    store = fake_store()
    # As stored for a device; eight bytes a value when the host makes the matrices.
    for densify, nbytes in (("device", store.nbytes), ("host", 8 * store.nnz)):
        options = {"tier": "auto", "densify": densify}
        made = [source(store, memory=nbytes / GIB * share, **options) for share in (1.01, 0.99)]
        assert [m.tier.name for m in made] == ["resident", "streamed"]
        assert made[1].cells is None


def test_windows_of_wide_stores_are_smaller_and_pieces_no_larger():
    for per_cell, window in ((10, 65_536), (2**10, 2**14), (2**20, 4096)):
        reach = Reach().settled(types.SimpleNamespace(nbytes=per_cell * 1000, n_cells=1000))
        assert (reach.window, reach.piece, reach.segment) == (window, window, 4096)

"""Dealing sets to lanes and cutting windows: every set once an epoch, whatever the numbers."""

import itertools

import numpy as np
import pytest
from fake_store import fake_store, random_table

from perturbdiff_jax.data.loading.index import index_sets
from perturbdiff_jax.data.loading.lanes import Lanes, Lines, lane_count
from perturbdiff_jax.errors import RequestError

NUMBERS = [(1, 1), (1, 64), (7, 3), (64, 64), (100, 8), (63, 64), (1001, 16)]


def made_index(segment=30, piece=48):
    groups = fake_store(random_table(largest=90)).groups
    return index_sets(groups, split="train", cells_per_set=8, piece_cells=piece, segment_cells=segment)


def lines(lanes=8, window=150, seed=0, shuffle=True, **changed):
    index = made_index(**changed)
    return index, Lines(index, Lanes(index.n_sets, lanes), seed=seed, window_cells=window, shuffle=shuffle)


def windows_of(made, lane, epoch):
    """All windows of a lane's stretch of an epoch, in order."""
    found, position = [], made.lanes.first(lane, epoch)
    while position < made.lanes.first(lane, epoch + 1):
        found.append(made.window(lane, position))
        position = found[-1].stop
    return found


def ids_of(window):
    return np.concatenate([np.arange(low, high) for low, high in window.spans.tolist()])


@pytest.mark.parametrize(
    ("batch", "lanes"), [(1, 1), (4, 4), (64, 64), (96, 48), (100, 50), (128, 64), (67, 1)]
)
def test_lanes_are_the_largest_divisor_up_to_64(batch, lanes):
    assert lane_count(batch) == lanes


def test_a_batch_without_sets_is_refused():
    with pytest.raises(RequestError, match="sets_per_batch = 0"):
        lane_count(0)


@pytest.mark.parametrize(("sets", "count"), NUMBERS)
def test_stretches_of_an_epoch_are_the_whole_line(sets, count):
    lanes = Lanes(sets, count)
    for epoch in (0, 1, 2, 17, 10**9):
        stretches = [lanes.stretch(lane, epoch) for lane in range(count)]
        assert stretches[0][0] == 0 and stretches[-1][1] == sets
        assert all(a[1] == b[0] for a, b in itertools.pairwise(stretches))
        for lane, (low, high) in enumerate(stretches):
            assert high - low == lanes.first(lane, epoch + 1) - lanes.first(lane, epoch)


@pytest.mark.parametrize(("sets", "count"), NUMBERS)
def test_lanes_do_not_drift_and_positions_know_their_epoch(sets, count):
    lanes = Lanes(sets, count)
    for epoch in range(6):
        served = [lanes.first(lane, epoch) for lane in range(count)]
        assert max(served) - min(served) <= 1
    for lane in {0, count // 2, count - 1}:
        for position in range(3 * sets // count + 2):
            epoch = lanes.epoch_of(lane, position)
            assert lanes.first(lane, epoch) <= position < lanes.first(lane, epoch + 1)


@pytest.mark.parametrize("lanes", [1, 3, 8, 64])
@pytest.mark.parametrize("window", [1, 150, 10**6])
def test_every_set_is_in_one_window_of_an_epoch(lanes, window):
    index, made = lines(lanes, window)
    for epoch in (0, 1, 5):
        ids = []
        for lane in range(lanes):
            for found in windows_of(made, lane, epoch):
                assert (found.lane, found.epoch) == (lane, epoch)
                ids.append(ids_of(found))
                assert len(ids[-1]) == found.stop - found.first > 0
        assert sorted(np.concatenate(ids)) == list(range(index.n_sets))


def test_a_window_is_found_from_each_of_its_positions():
    _, made = lines()
    for found in windows_of(made, 3, 2):
        for position in range(found.first, found.stop):
            again = made.window(3, position)
            assert (again.number, again.first, again.stop) == (found.number, found.first, found.stop)
            np.testing.assert_array_equal(again.spans, found.spans)


def test_windows_are_cut_at_segments_where_enough_cells_have_passed():
    index, made = lines(lanes=1, window=150)
    segment_of = {int(index.first_set[first]): n for n, first in enumerate(index.first_piece[:-1])}
    before, last = 0, -1
    for found in windows_of(made, 0, 4):
        for place, (low, high) in enumerate(found.spans.tolist()):
            segment = segment_of[low]
            assert high == index.first_set[index.first_piece[segment + 1]]
            if place == 0:
                mark = before // 150
                assert mark > last
            assert before // 150 == mark
            before += 8 * (high - low)
        last = mark
    assert before == 8 * index.n_sets and last > 3


def test_epochs_and_seeds_order_segments_anew_and_unshuffled_keeps_the_stores_order():
    orders = [ids_of(lines(lanes=1, window=10**6, seed=s)[1].window(0, 0)) for s in (0, 0, 1)]
    assert (orders[0] == orders[1]).all() and (orders[0] != orders[2]).any()
    index, made = lines(lanes=1, window=10**6)
    assert (ids_of(made.window(0, index.n_sets)) != orders[0]).any()
    _, plain = lines(lanes=1, window=150, shuffle=False)
    ids = [ids_of(found) for found in windows_of(plain, 0, 1)]
    assert (np.concatenate(ids) == np.arange(index.n_sets)).all() and len(ids) > 3

"""Group bookkeeping against plain loops over the table."""

import itertools

import numpy as np
import pytest
from fake_store import TABLE, fake_store, random_table

from perturbdiff_jax.data.loading.index import index_sets
from perturbdiff_jax.errors import RequestError


def listed(groups, n, with_controls=False):
    """[(group, set in group)] of the train split, by a loop."""
    sets = []
    for group, (_, perturbation, split, size) in enumerate(TABLE):
        if split == "train" or (with_controls and perturbation == 0):
            sets += [(group, k) for k in range(0, size) if k * n < size]
    return sets


@pytest.mark.parametrize("n", [1, 4, 8, 100])
@pytest.mark.parametrize("with_controls", [False, True])
def test_locate_walks_through_every_set_in_order(n, with_controls):
    groups = fake_store().groups
    index = index_sets(groups, split="train", cells_per_set=n, with_controls=with_controls)
    sets = listed(groups, n, with_controls)
    assert index.n_sets == len(sets)
    position, inside = index.locate(np.arange(index.n_sets))
    assert list(zip(index.group[position], inside)) == sets
    last_position, last_inside = index.locate(index.n_sets - 1)
    assert (index.group[last_position], last_inside) == sets[-1]


def test_counts_and_padding_share_agree_with_a_hand_count():
    index = index_sets(fake_store().groups, split="train", cells_per_set=8)
    # train groups of 17, 8, 3, 1 and 30 cells: 3 + 1 + 1 + 1 + 4 sets
    assert (index.n_cells, index.n_sets) == (59, 10)
    assert index.padding_share == pytest.approx(21 / 80)


def test_min_cells_leaves_out_and_max_cells_cuts():
    groups = fake_store().groups
    assert index_sets(groups, split="train", cells_per_set=8, min_cells=8).size.tolist() == [17, 8, 30]
    assert index_sets(groups, split="train", cells_per_set=8, max_cells=8).size.tolist() == [8, 8, 3, 1, 8]


def test_control_split_is_the_control_groups():
    assert index_sets(fake_store().groups, split="control", cells_per_set=8).group.tolist() == [0, 4, 8]


def test_split_without_cells_names_it_and_what_there_is():
    store = fake_store([row for row in TABLE if row[2] != "validation"])
    with pytest.raises(RequestError) as error:
        index_sets(store.groups, split="validation", cells_per_set=8, name=store.path)
    message = str(error.value)
    assert "fake.store" in message and "'validation'" in message and "test 15" in message
    assert len(message.splitlines()) <= 2


def test_controls_do_not_stand_in_for_an_empty_split():
    store = fake_store([row for row in TABLE if row[2] != "train"])
    with pytest.raises(RequestError, match="'train' has no cells"):
        index_sets(store.groups, split="train", cells_per_set=8, with_controls=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"split": "trian"}, "unknown split 'trian'.*'train'"),
        ({"cells_per_set": 0}, "cells_per_set = 0"),
        ({"min_cells": 0}, "min_cells = 0"),
        ({"max_cells": 0}, "max_cells = 0"),
        ({"piece_cells": 0}, "piece_cells = 0"),
        ({"segment_cells": -1}, "segment_cells = -1"),
        ({"min_cells": 31}, "min_cells = 31(.|\n)*30"),
    ],
)
def test_wrong_requests_are_named(changed, message):
    with pytest.raises(RequestError, match=message):
        index_sets(fake_store().groups, **{"split": "train", "cells_per_set": 8, **changed})


def pieces_of(size, n, most, **more):
    """(offset, size) of the pieces of one group, and its index."""
    groups = fake_store([(0, 0, "control", 3), (0, 1, "train", size)]).groups
    index = index_sets(groups, split="train", cells_per_set=n, piece_cells=most, **more)
    assert set(index.group) == {1}
    return list(zip(index.offset.tolist(), index.size.tolist())), index


@pytest.mark.parametrize("size", [1, 8, 40, 41, 79, 80, 81, 397])
@pytest.mark.parametrize("most", [8, 19, 40, 1000])
def test_pieces_cover_a_group_in_whole_sets_of_nearly_equal_number(size, most):
    pieces, index = pieces_of(size, 8, most)
    end = 0
    for offset, cells in pieces:
        assert offset == end and cells <= max(8, most)
        end = offset + cells
    assert end == size and all(cells % 8 == 0 for _, cells in pieces[:-1])
    sets = np.diff(index.first_set)
    assert index.n_sets == -(-size // 8) and sets.max() - sets.min() <= 1
    assert (index.used == size).all()


def test_pieces_of_the_cells_used_only():
    pieces, index = pieces_of(100, 8, 16, max_cells=20)
    assert pieces == [(0, 8), (8, 12)] and index.used.tolist() == [20, 20]


@pytest.mark.parametrize("least", [1, 20, 60, 10_000])
def test_segments_join_neighbours_up_to_a_size_and_leave_pieces_alone(least):
    groups = fake_store(random_table(largest=90)).groups
    index = index_sets(groups, split="train", cells_per_set=8, piece_cells=48, segment_cells=least)
    borders = index.first_piece
    assert borders[0] == 0 and borders[-1] == len(index.size) and (np.diff(borders) > 0).all()
    is_part = index.size < index.used
    for number, (low, high) in enumerate(itertools.pairwise(borders)):
        if is_part[low]:
            assert high == low + 1
            continue
        assert not is_part[low:high].any()
        assert index.size[low : high - 1].sum() < least  # not longer than needed
        closed = index.size[low:high].sum() >= least
        last = number == len(borders) - 2 or is_part[high]
        assert closed or last
    assert is_part.any()

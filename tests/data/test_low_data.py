"""Low-data training cells: how many of each perturbation, which of them, and what is left alone."""

import itertools

import numpy as np
import pytest
import scipy.stats
import uneven_screens

from perturbdiff_jax.data.low_data import kept_cells, low_data
from perturbdiff_jax.data.storage.members import Members
from perturbdiff_jax.errors import RequestError

TRAIN = 0
# Of 100 cells 7 % are 7, also where 0.07 * 100 is 7.000000000000001.
EXACT = [
    (0.07, 100, 7),
    (0.01, 100, 1),
    (0.01, 101, 2),
    (0.01, 1, 1),
    (0.29, 100, 29),
    (0.5, 3, 2),
    (1.0, 9, 9),
]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where what is prepared once lies."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(params=["one store", "merged"])
def store(request, build, kept):
    from perturbdiff_jax.data.store import Store

    folder = kept / request.param
    if folder.exists():
        return Store.open(folder / ("s0" if request.param == "one store" else "all"))
    make = uneven_screens.prepared if request.param == "one store" else uneven_screens.merged
    return make(build, folder)


def members(sizes, split=TRAIN, perturbation=1):
    """Training groups of one perturbation, a context each."""
    at = np.arange(len(sizes))
    return Members(
        part=np.zeros(len(sizes), np.int32),
        row=np.cumsum(sizes) - sizes,
        size=np.array(sizes, np.int64),
        group=at,
        perturbation=np.full(len(sizes), perturbation, np.int32),
        cell_type=at.astype(np.int32),
        batch=np.zeros(len(sizes), np.int32),
        split=np.full(len(sizes), split, np.int8),
    )


def by_perturbation(store):
    found = {}
    for (name, _, _, split), cells in uneven_screens.named_groups(store).items():
        if split == TRAIN:
            found.setdefault(name, set()).update(cells)
    return found


def untouched(store):
    return {key: cells for key, cells in uneven_screens.named_groups(store).items() if key[-1] != TRAIN}


@pytest.mark.parametrize(("fraction", "cells", "wanted"), EXACT)
def test_a_share_is_rounded_up(fraction, cells, wanted):
    for sizes in ([cells], [cells - cells // 3, cells // 3]):
        sizes = [size for size in sizes if size]
        assert kept_cells(members(sizes), fraction=fraction, seed=0)[1].sum() == wanted


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.3, 0.9])
def test_every_perturbation_keeps_its_share_and_all_else_stays(store, fraction):
    share = low_data(store, fraction=fraction)
    before, after = by_perturbation(store), by_perturbation(share)
    assert len({len(cells) for cells in before.values()}) == 3
    assert {name: len(cells) for name, cells in after.items()} == {
        name: -(-len(cells) * round(100 * fraction) // 100) for name, cells in before.items()
    }
    assert all(after[name] <= before[name] for name in before) and all(after.values())
    # The same cells in the same order, so that what is drawn from them is the same as well.
    assert untouched(share) == untouched(store) and len(untouched(store)) > 4
    assert share.perturbations == store.perturbations and share.genes == store.genes


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_a_larger_share_has_the_cells_of_a_smaller_one(store, seed):
    fractions = (0.01, 0.05, 0.2, 0.21, 0.6, 0.99, 1.0)
    cells = [by_perturbation(low_data(store, fraction=fraction, seed=seed)) for fraction in fractions]
    for less, more in itertools.pairwise(cells):
        assert all(less[name] <= more[name] for name in less)
    assert (
        sum(map(len, cells[0].values()))
        < sum(map(len, cells[2].values()))
        < sum(map(len, cells[-1].values()))
    )


def test_the_seed_alone_decides(store):
    one, again, other = (by_perturbation(low_data(store, fraction=0.2, seed=seed)) for seed in (4, 4, 5))
    assert one == again and one != other
    assert low_data(store, fraction=1) is store


def test_contexts_get_cells_as_a_uniform_draw_gives_them():
    """Against the hypergeometric distribution of scipy, over 3,000 seeds."""
    sizes, keep = [30, 59, 10, 1], 10
    drawn = np.array([kept_cells(members(sizes), fraction=0.1, seed=seed)[1] for seed in range(3000)])
    assert (drawn.sum(axis=1) == keep).all()
    for counts, size in zip(drawn.T, sizes):
        expected = 3000 * scipy.stats.hypergeom(sum(sizes), size, keep).pmf(np.arange(keep + 1))
        seen = np.bincount(counts, minlength=keep + 1)
        # Neither is far from the other: rare counts are put together.
        rare = expected < 8
        seen = [*seen[~rare], seen[rare].sum()]
        expected = [*expected[~rare], expected[rare].sum()]
        assert np.abs(np.subtract(seen, expected)).max() < 5 * max(expected) ** 0.5
        assert np.sum(np.subtract(seen, expected) ** 2 / np.maximum(expected, 1)) < 40


def test_every_cell_of_a_perturbation_is_as_likely_as_any_other():
    sizes = [7, 2, 11]
    table, seen = members(sizes), np.zeros(20)
    for seed in range(4000):
        begin, size = kept_cells(table, fraction=0.3, seed=seed)
        for row, cells, first, count in zip(table.row, sizes, begin, size):
            seen[row + (first + np.arange(count)) % cells] += 1
    assert seen.sum() == 4000 * 6
    # Standard deviation of one cell's count: sqrt(4000 * 0.3 * 0.7) = 29.
    assert np.abs(seen - 1200).max() < 5 * 29


def test_perturbations_are_drawn_apart():
    """The stream of one says nothing of another's."""
    one, other = (
        np.array(
            [kept_cells(members([50, 50], perturbation=code), fraction=0.2, seed=s)[1][0] for s in range(400)]
        )
        for code in (1, 2)
    )
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.2 and one.std() > 1


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan"), "half", None, True])
def test_a_fraction_that_is_none_is_refused(store, fraction):
    with pytest.raises(RequestError, match=r"fraction=.*must be above 0 and at most 1"):
        low_data(store, fraction=fraction)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, True])
def test_a_seed_that_is_none_is_refused(store, seed):
    with pytest.raises(RequestError, match=r"fraction_seed=.*whole numbers from 0 to 4294967295"):
        low_data(store, fraction=0.5, seed=seed)

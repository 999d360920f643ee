"""Keyed draws: pinned words, exact permutations and samples, each against counting by hand."""

import itertools

import numpy as np
import pytest

from perturbdiff_jax.data.loading import draws
from perturbdiff_jax.data.loading.draws import (
    below,
    fold,
    folded,
    permuted,
    sampled,
    shuffled,
    words,
    words_at,
)


def keys_of(n, seed=0):
    return folded(fold(seed, 77), np.arange(n))


def chi_square(counts):
    expected = counts.sum() / counts.size
    return ((counts - expected) ** 2).sum() / expected


def test_words_are_splitmix64():
    # First outputs of the published generator for the seed 1234567.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert words(1234567, 4).tolist() == expected


def test_words_agree_with_whole_number_arithmetic():
    key, state, expected = fold(5, 4, 3), fold(5, 4, 3), []
    for _ in range(20):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        expected.append(z ^ (z >> 31))
    assert words(key, 20).tolist() == expected
    assert words_at(np.uint64(key), np.array([19, 3])).tolist() == [expected[19], expected[3]]


def test_streams_are_pinned():
    """A change here means that resumed runs no longer repeat unbroken ones: never change the figures."""
    keys = keys_of(2)
    assert fold(0, 1, 2) == 17934310068023128246
    assert permuted(keys, np.array([5, 4])).tolist() == PINNED["permuted"]
    for size, expected in PINNED["sampled"].items():
        assert sampled(keys[:1], np.array([size]), 4)[0].tolist() == expected, size


PINNED = {
    "permuted": [4, 2, 0, 3, 1, 1, 0, 2, 3],
    "sampled": {
        3: [1, 2, 1, 2],
        9: [4, 8, 2, 6],
        99: [61, 78, 46, 76],
        9999: [1969, 3719, 418, 3484],
    },
}


def test_fold_separates_order_and_length_and_takes_any_seed():
    keys = [fold(1, 2), fold(2, 1), fold(1), fold(1, 2, 0), fold(-1, 2), fold(2**70 + 1, 2, 3)]
    assert len(set(keys)) == len(keys) and all(0 <= key < 2**64 for key in keys)


def test_folding_many_is_folding_each():
    a, b = np.array([0, 5, -1, 2**40]), np.array([3, 3, 7, 0])
    assert folded(fold(9, 8), a, b).tolist() == [fold(9, 8, x, y) for x, y in zip(a.tolist(), b.tolist())]


def test_below_is_even_and_never_reaches_the_size():
    drawn = below(words(fold(1), 60_000), np.int64(7))
    assert drawn.min() == 0 and drawn.max() == 6 and chi_square(np.bincount(drawn)) < 25
    assert below(np.array([2**64 - 1], np.uint64), np.int64(2**31 - 1)).tolist() == [2**31 - 2]


def test_shuffled_is_a_permutation_and_uniform():
    counts = np.zeros((4, 4))
    for key in range(4000):
        order = shuffled(fold(key), 4)
        assert sorted(order) == [0, 1, 2, 3]
        counts[np.arange(4), order] += 1
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000 * 0.75)


def test_permuted_pieces_are_permutations_that_do_not_know_of_each_other():
    sizes = np.random.default_rng(0).integers(1, 40, 300)
    keys = keys_of(300)
    together = np.split(permuted(keys, sizes), np.cumsum(sizes)[:-1])
    for key, size, order in zip(keys, sizes, together):
        assert sorted(order.tolist()) == list(range(size))
        np.testing.assert_array_equal(order, permuted(np.array([key]), np.array([size])))


def test_all_permutations_of_four_are_equally_likely():
    orders = permuted(keys_of(24_000), np.full(24_000, 4)).reshape(-1, 4)
    counts = dict.fromkeys(itertools.permutations(range(4)), 0)
    for order in orders.tolist():
        counts[tuple(order)] += 1
    assert chi_square(np.array(list(counts.values()))) < 50  # 23 degrees of freedom: 1 in 1,000 is 49.7


def test_a_large_piece_is_as_often_ascending_as_descending():
    """Too few random bits would leave runs of cells in their own order."""
    up = np.diff(permuted(keys_of(1), np.array([120_000]))) > 0
    assert abs(up.sum() - 60_000) < 5 * np.sqrt(120_000 / 12)


def test_equal_bits_do_not_lose_a_cell(monkeypatch):
    monkeypatch.setattr(draws, "WORD_BITS", 2)
    assert sorted(permuted(keys_of(1), np.array([500])).tolist()) == list(range(500))


def test_too_many_cells_for_one_sort_are_refused():
    with pytest.raises(ValueError, match="too many"):
        permuted(keys_of(1), np.array([draws.LARGEST_PIECE + 1]))


@pytest.mark.parametrize("size", [8, 9, 31, 32, 40, 511, 512, 513, 5000, 10**6, 2**31 - 1])
def test_samples_have_no_repeats_when_there_are_enough(size):
    drawn = sampled(keys_of(300), np.full(300, size), 8)
    assert drawn.min() >= 0 and drawn.max() < size and drawn.dtype == np.int32
    assert all(len(set(row)) == 8 for row in drawn.tolist())


@pytest.mark.parametrize("size", [8, 20, 32, 50, 520, 1000])
def test_every_number_is_equally_likely_at_every_place(size):
    n = 250 * size
    drawn = sampled(keys_of(n), np.full(n, size), 8)
    for place in (0, 7):
        counts = np.bincount(drawn[:, place], minlength=size)
        assert abs(chi_square(counts) - (size - 1)) < 5 * np.sqrt(2 * size)


@pytest.mark.parametrize("size", [5, 9, 13])
def test_ordered_pairs_are_equally_likely(size):
    """5 is sorted as a whole, 9 and 13 are drawn with repeats drawn again."""
    drawn = sampled(keys_of(60_000), np.full(60_000, size), 2)
    counts = np.bincount(drawn[:, 0] * size + drawn[:, 1], minlength=size * size)
    pairs = counts.reshape(size, size)[~np.eye(size, dtype=bool)]
    assert abs(chi_square(pairs) - len(pairs)) < 5 * np.sqrt(2 * len(pairs))


def test_samples_with_replacement_when_there_are_not_enough():
    drawn = sampled(keys_of(1000), np.full(1000, 3), 8)
    assert chi_square(np.bincount(drawn.reshape(-1))) < 20
    assert sampled(keys_of(1), np.array([1]), 8).tolist() == [[0] * 8]


def test_a_sample_does_not_depend_on_its_company():
    sizes = np.random.default_rng(1).choice([1, 3, 8, 20, 40, 100, 2000, 90_000], 400)
    keys = keys_of(400)
    together = sampled(keys, sizes, 8)
    for key, size, row in zip(keys, sizes, together):
        np.testing.assert_array_equal(row, sampled(np.array([key]), np.array([size]), 8)[0])


def test_samples_larger_than_what_is_drawn_at_once(monkeypatch):
    sizes = np.tile([20, 300, 70_000], 50)
    expected = sampled(keys_of(150), sizes, 16)
    monkeypatch.setattr(draws, "AT_ONCE", 16)
    np.testing.assert_array_equal(sampled(keys_of(150), sizes, 16), expected)

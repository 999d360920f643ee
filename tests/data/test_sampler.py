"""The draws: pinned words, exact shuffles, and the properties of a set, each against counting by hand."""

import numpy as np
import pytest
from fake_store import TABLE, fake_store

from perturbdiff_jax.data.index import index_sets
from perturbdiff_jax.data.sampler import Sampler, chosen, fold, shuffled, words

S = 8


def sampler(seed=0, with_controls=False, shuffle=True, n=S, table=TABLE):
    groups = fake_store(table).groups
    index = index_sets(groups, split="train", cells_per_set=n, with_controls=with_controls)
    return Sampler(groups, index, seed=seed, shuffle=shuffle)


def epoch_plan(made, epoch=0):
    return made.plan(epoch * made.index.n_sets, made.index.n_sets)


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


def test_stream_is_pinned():
    """A change here means that resumed runs no longer repeat unbroken ones: never change the figures."""
    plan = sampler(seed=3, with_controls=True).plan(13, 2)  # a control group of 5 cells, then group 2
    assert fold(0, 1, 2) == 17934310068023128246 and plan.group.tolist() == [4, 2]
    assert plan.rows.tolist() == [[76, 78, 77, 79, 80, 78, 77, 76], [57, 62, 64, 60, 59, 58, 61, 63]]
    assert plan.control_rows.tolist() == [[79, 80, 76, 78, 77, 80, 76, 79], [7, 15, 9, 4, 0, 5, 3, 39]]


def test_chosen_is_pinned_in_each_of_its_three_ways():
    assert chosen(fold(1), 3, 4).tolist() == [0, 2, 1, 0]
    assert chosen(fold(1), 9, 4).tolist() == [5, 4, 7, 1]
    assert chosen(fold(1), 99, 4).tolist() == [15, 89, 49, 93]


def test_fold_separates_order_and_length_and_takes_any_seed():
    keys = [fold(1, 2), fold(2, 1), fold(1), fold(1, 2, 0), fold(-1, 2), fold(2**70 + 1, 2, 3)]
    assert len(set(keys)) == len(keys) and all(0 <= key < 2**64 for key in keys)


def test_shuffled_is_a_permutation_and_uniform():
    counts = np.zeros((4, 4))
    for key in range(4000):
        order = shuffled(fold(key), 4)
        assert sorted(order) == [0, 1, 2, 3]
        counts[np.arange(4), order] += 1
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000 * 0.75)


@pytest.mark.parametrize("n", [8, 20, 33, 1000])
def test_chosen_without_replacement_when_there_are_enough(n):
    counts = np.zeros(n)
    for key in range(400):
        drawn = chosen(fold(key), n, 8)
        assert len(set(drawn.tolist())) == 8 and drawn.min() >= 0 and drawn.max() < n
        counts[drawn] += 1
    mean = 400 * 8 / n
    assert np.abs(counts - mean).max() < 5 * np.sqrt(mean) + 1


def test_chosen_with_replacement_when_there_are_not():
    drawn = np.concatenate([chosen(fold(key), 3, 8) for key in range(100)])
    assert set(drawn.tolist()) == {0, 1, 2} and np.abs(np.bincount(drawn) - 800 / 3).max() < 80


@pytest.mark.parametrize("with_controls", [False, True])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_every_cell_once_an_epoch_with_mask_1(with_controls, epoch):
    plan = epoch_plan(sampler(with_controls=with_controls), epoch)
    expected = set()
    groups = fake_store().groups
    for group, (_, perturbation, split, size) in enumerate(TABLE):
        if split == "train" or (with_controls and perturbation == 0):
            expected |= set(range(groups.start[group], groups.start[group] + size))
    real = plan.rows[plan.mask == 1].tolist()
    assert len(real) == len(expected) and set(real) == expected
    assert set(np.unique(plan.mask)) <= {0.0, 1.0}


def test_sets_never_mix_groups_and_fillings_come_from_their_own():
    store, plan = fake_store(), epoch_plan(sampler(with_controls=True))
    for group, rows in zip(plan.group, plan.rows):
        assert (store.group_of[rows] == group).all()
    assert (plan.mask == 0).any()


def test_real_cells_stand_before_fillings_and_only_a_groups_last_set_has_any():
    plan = epoch_plan(sampler())
    for group in np.unique(plan.group):
        filled = [mask for mask in plan.mask[plan.group == group] if mask.min() == 0]
        size = TABLE[group][3]
        assert len(filled) == (1 if size % S else 0)
        for mask in filled:
            assert mask.tolist() == [1.0] * (size % S) + [0.0] * (S - size % S)


def test_controls_come_from_the_matched_control_group():
    store, plan = fake_store(), epoch_plan(sampler(with_controls=True))
    for group, rows in zip(plan.group, plan.control_rows):
        assert (store.group_of[rows] == store.groups.control[group]).all()
        if TABLE[store.groups.control[group]][3] >= S:
            assert len(set(rows.tolist())) == S


def test_controls_are_drawn_anew_in_every_set_and_epoch():
    made, draws = sampler(), set()
    for epoch in range(3):
        plan = epoch_plan(made, epoch)
        draws |= {tuple(rows) for rows in plan.control_rows[plan.group == 1]}
    assert len(draws) == 9  # three sets of the group in each of three epochs


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_control_cell_is_never_its_own_partner(shuffle):
    made = sampler(with_controls=True, shuffle=shuffle)
    seen = set()
    for epoch in range(20):
        plan = epoch_plan(made, epoch)
        for group, rows, partners, mask in zip(plan.group, plan.rows, plan.control_rows, plan.mask):
            size = TABLE[group][3]
            if TABLE[group][2] != "control" or size == 1:
                continue
            assert (rows != partners).all()
            if size >= S:
                assert len(set(partners[mask == 1].tolist())) == mask.sum()
            if size >= 2 * S and mask.all():
                assert not set(rows.tolist()) & set(partners.tolist())
            seen |= set(partners.tolist()) if group == 0 else set()
    assert seen == set(range(40))


def test_a_control_group_of_one_cell_is_its_own_partner():
    plan = epoch_plan(sampler(with_controls=True))
    (only,) = np.flatnonzero(plan.group == 8)
    assert set(plan.rows[only]) == set(plan.control_rows[only]) and plan.mask[only].sum() == 1


def test_seeds_and_epochs_differ_and_sets_are_shuffled_across_groups():
    first, again, other = epoch_plan(sampler(1)), epoch_plan(sampler(1)), epoch_plan(sampler(2))
    second = epoch_plan(sampler(1), epoch=1)
    np.testing.assert_array_equal(first.rows, again.rows)
    np.testing.assert_array_equal(first.control_rows, again.control_rows)
    for changed in (other, second):
        assert (changed.rows != first.rows).any() and (changed.control_rows != first.control_rows).any()
        assert (changed.group != first.group).any()
    assert (np.diff(first.group) < 0).any()


def test_cells_of_a_group_meet_in_other_sets_in_another_epoch():
    made, together = sampler(table=[(0, 0, "control", 9), (0, 1, "train", 16)]), []
    for epoch in range(4):
        together.append({frozenset(rows) for rows in epoch_plan(made, epoch).rows.tolist()})
    assert not together[0] & together[1] and not together[2] & together[3]


def test_unshuffled_keeps_the_stores_order():
    plan = epoch_plan(sampler(shuffle=False))
    real = plan.rows[plan.mask == 1]
    assert (np.diff(real) > 0).all() and (np.diff(plan.group) >= 0).all()

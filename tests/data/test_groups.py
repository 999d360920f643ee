"""Grouping of cells and the controls that serve a context; the oracle is a loop over a table of labels."""

import dataclasses
import json

import numpy as np
import pytest

from perturbdiff_jax.data import groups as groups_module
from perturbdiff_jax.data.groups import Groups, group_cells, resolve_controls


def codes(cells=300, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 4, cells), rng.integers(0, 3, cells), rng.integers(0, 2, cells)


def test_groups_are_ranges_of_one_condition_in_order():
    perturbation, cell_type, batch = codes()
    order, groups = group_cells(perturbation, cell_type, batch, control=2, seed=0)
    assert sorted(order) == list(range(300))
    assert groups.start[0] == 0 and (groups.start + groups.size)[-1] == 300
    seen = []
    for group in range(len(groups)):
        cells = order[groups.start[group] : groups.start[group] + groups.size[group]]
        found = {(cell_type[i], batch[i], perturbation[i]) for i in cells}
        assert found == {(groups.cell_type[group], groups.batch[group], groups.perturbation[group])}
        assert groups.is_control[group] == (groups.perturbation[group] == 2)
        seen.append(
            (groups.cell_type[group], groups.batch[group], not groups.is_control[group], found.pop()[2])
        )
    assert seen == sorted(set(seen))  # context-major, controls first, each group once


def test_order_inside_a_group_is_seeded_and_random():
    labels = codes()
    order, groups = group_cells(*labels, control=0, seed=0)
    again, _ = group_cells(*labels, control=0, seed=0)
    other, _ = group_cells(*labels, control=0, seed=1)
    np.testing.assert_array_equal(order, again)
    assert (order != other).any()
    first = order[: groups.size[0]]
    assert (np.diff(first) < 0).any(), "the file's order was kept"


def test_order_inside_a_group_does_not_depend_on_other_cells():
    perturbation, cell_type, batch = codes()
    order, groups = group_cells(perturbation, cell_type, batch, control=0, seed=3)
    keep = np.flatnonzero(perturbation != 3)
    part, fewer = group_cells(perturbation[keep], cell_type[keep], batch[keep], control=0, seed=3)
    kept = np.repeat(groups.perturbation != 3, groups.size)
    np.testing.assert_array_equal(order[kept], keep[part])
    assert len(fewer) < len(groups)


def test_groups_are_shuffled_alike_in_any_portion(monkeypatch):
    order, table = group_cells(*codes(), control=0, seed=0)
    monkeypatch.setattr(groups_module, "AT_ONCE", 40)
    np.testing.assert_array_equal(group_cells(*codes(), control=0, seed=0)[0], order)
    # Every place of a group is as likely as any other for its first cell.
    whole = np.zeros(200_000, dtype=int)
    found = group_cells(whole, np.arange(200_000) // 5, whole, control=0, seed=0)[0].reshape(-1, 5)
    counts = np.bincount(found[:, 0] % 5, minlength=5)
    assert (found // 5 == np.arange(40_000)[:, None]).all() and len(table) > 1
    assert abs(counts / 8_000 - 1).max() < 0.05


def test_fallback_rules_in_their_order():
    # contexts (cell type, batch): control sizes, 0 = none
    sizes = {(0, 0): 5, (0, 1): 0, (1, 1): 3, (2, 1): 9, (3, 2): 0, (3, 0): 4, (4, 3): 0}
    rows = [(c, b, True, n) for (c, b), n in sizes.items() if n] + [(c, b, False, 2) for c, b in sizes]
    cell_type, batch, is_control, size = (np.array(column) for column in zip(*rows, strict=True))
    serving, rule = resolve_controls(cell_type, batch, is_control, size)
    found = {}
    for group, (c, b, _, _) in enumerate(rows):
        found[(c, b)] = (int(cell_type[serving[group]]), int(batch[serving[group]]), int(rule[group]))
        assert is_control[serving[group]]
        if is_control[group]:
            assert serving[group] == group
    assert found == {
        (0, 0): (0, 0, 0),
        (1, 1): (1, 1, 0),
        (2, 1): (2, 1, 0),
        (3, 0): (3, 0, 0),
        (0, 1): (2, 1, 1),  # same batch before same cell type, the larger of two
        (3, 2): (3, 0, 2),  # nobody in that batch: same cell type
        (4, 3): (2, 1, 3),  # neither: the largest of all
    }
    with pytest.raises(ValueError, match="no control"):
        resolve_controls(cell_type, batch, np.zeros(len(rows), bool), size)


def test_fallback_rules_against_a_loop():
    rng = np.random.default_rng(4)
    cell_type, batch, is_control = rng.integers(0, 9, 200), rng.integers(0, 12, 200), rng.random(200) < 0.1
    size = rng.integers(1, 6, 200)
    serving, rule = resolve_controls(cell_type, batch, is_control, size)
    controls = np.flatnonzero(is_control)
    for group in range(200):
        same_type = cell_type[controls] == cell_type[group]
        same_batch = batch[controls] == batch[group]
        for number, fits in enumerate((same_type & same_batch, same_batch, same_type, same_type | True)):
            if fits.any():
                best = max(controls[fits], key=lambda g: (size[g], -g))
                assert (serving[group], rule[group]) == (best, number)
                break
    assert set(rule) == {0, 1, 2, 3}


def test_rows_know_their_group():
    _, groups = group_cells(*codes(), control=1, seed=0)
    owner = np.repeat(np.arange(len(groups)), groups.size)
    np.testing.assert_array_equal(groups.of(np.arange(300).reshape(3, 100)), owner.reshape(3, 100))


def test_the_table_survives_json():
    _, groups = group_cells(*codes(), control=1, seed=0)
    again = Groups.from_json(json.loads(json.dumps(groups.to_json())))
    for field in dataclasses.fields(Groups):
        before, after = getattr(groups, field.name), getattr(again, field.name)
        np.testing.assert_array_equal(before, after)
        assert before.dtype == after.dtype, field.name

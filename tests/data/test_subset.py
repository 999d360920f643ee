"""A part of a store's cells as a store: rows, groups, controls, stored values."""

import numpy as np
import pytest
import uneven_screens

from perturbdiff_jax.data.storage.subset import stored_members, subset, without_held_out
from perturbdiff_jax.data.storage.view import regroup


@pytest.fixture(params=["dense", "csr", "merged"])
def store(request, build, tmp_path):
    if request.param == "merged":
        return uneven_screens.merged(build, tmp_path)
    if request.param == "dense":
        return uneven_screens.prepared(build, tmp_path)

    def sparse(**options):
        adata = build(**options)
        adata.X = adata.X.multiply(np.arange(adata.n_vars) % 4 == 0).tocsr()
        return adata

    made = uneven_screens.prepared(sparse, tmp_path)
    assert not made.is_dense
    return made


def drawn(store, seed=0):
    """(begin, size) of random stretches of every member, some empty, some past the end; controls stay."""
    rng, members = np.random.default_rng(seed), stored_members(store)
    begin = rng.integers(0, members.size)
    size = rng.integers(0, members.size + 1)
    control = members.split == 3
    return np.where(control, 0, begin), np.where(control, members.size, size)


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_those_asked_for_in_the_stores_order(store, seed):
    begin, size = drawn(store, seed)
    members = stored_members(store)
    parts = getattr(store, "parts", [store])
    wanted = set()
    for part, row, cells, first, count in zip(members.part, members.row, members.size, begin, size):
        names = parts[part].obs.index[row : row + cells]
        wanted |= {names[(first + step) % cells] for step in range(count)}
    view = subset(store, begin, size)
    label = {name: name.rsplit(":", 1)[-1] for name in [*view.obs.index, *store.obs.index]}
    kept = [label[name] for name in view.obs.index]
    assert (
        kept == [label[name] for name in store.obs.index if label[name] in wanted]
        and 0 < len(kept) < store.n_cells
    )
    rows = [row for row, name in enumerate(store.obs.index) if label[name] in wanted]
    np.testing.assert_array_equal(view.load().toarray(), store.load().toarray()[rows])
    np.testing.assert_array_equal(
        view.batch_codes(np.arange(view.n_cells)), store.batch_codes(np.array(rows))
    )


def test_groups_are_numbered_anew_and_keep_their_facts(store):
    view, before = subset(store, *drawn(store)), store.groups
    groups = view.groups
    assert len(groups) < len(before) and (groups.size > 0).all()
    assert (groups.start == np.cumsum(groups.size) - groups.size).all() and groups.size.sum() == view.n_cells
    facts = ("perturbation", "cell_type", "batch", "split", "fallback", "is_control")
    table = {tuple(getattr(before, f)[g] for f in facts[:3]): g for g in range(len(before))}
    for group in range(len(groups)):
        old = table[tuple(getattr(groups, f)[group] for f in facts[:3])]
        assert all(getattr(groups, f)[group] == getattr(before, f)[old] for f in facts)
        serving, was = groups.control[group], before.control[old]
        assert all(getattr(groups, f)[serving] == getattr(before, f)[was] for f in facts)
    assert set(np.unique(view.members.group)) == set(range(len(groups)))


def test_stored_values_are_those_of_the_cells(store):
    members = stored_members(store)
    whole = subset(store, np.zeros(len(members.size), np.int64), members.size)
    assert (whole.nnz, whole.nbytes) == (store.nnz, store.nbytes)
    part = subset(store, *drawn(store))
    assert (
        part.nnz == pytest.approx(store.nnz * part.n_cells / store.n_cells, rel=0.1)
        and part.nbytes < store.nbytes
    )
    if not store.is_dense and not hasattr(store, "parts"):
        halves = [
            subset(store, begin, np.where(members.split == 3, members.size, n))
            for begin, n in (
                (np.zeros_like(members.size), members.size // 2),
                (members.size // 2, members.size - members.size // 2),
            )
        ]
        controls = subset(store, 0 * members.size, np.where(members.split == 3, members.size, 0))
        assert halves[0].nnz + halves[1].nnz - controls.nnz == pytest.approx(store.nnz, abs=2)
        assert controls.nnz == len(controls.load().data)


def test_a_part_of_a_part_can_be_grouped_anew(store):
    part = subset(store, *drawn(store, 2))
    again = without_held_out(part)
    assert set(again.groups.split) == {0, 3} and again.nnz < part.nnz
    trained = {
        name
        for key, names in uneven_screens.named_groups(part).items()
        if key[-1] in (0, 3)
        for name in names
    }
    assert set(again.obs.index) == trained
    mixed = regroup(again, "cell_type")
    assert set(mixed.obs.index) == trained and mixed.nnz == again.nnz and mixed.thinned
    by_name = dict(zip(again.obs.index, again.load().toarray()))
    np.testing.assert_array_equal(mixed.load().toarray(), [by_name[name] for name in mixed.obs.index])


def test_controls_that_serve_cannot_be_left_out(store):
    members = stored_members(store)
    with pytest.raises(ValueError, match="control group"):
        subset(store, 0 * members.size, np.where(members.split == 3, 0, members.size))

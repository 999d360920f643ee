"""The same cells in other groups: who is in which group, in which order, and with which controls."""

import numpy as np
import pytest
from made_stores import OPTIONS

from perturbdiff_jax.data.conditions import CONTROL, SPLITS, TEST, TRAIN
from perturbdiff_jax.data.prepare import PrepareOptions, prepare
from perturbdiff_jax.data.storage import members as store_members
from perturbdiff_jax.data.storage.view import regroup
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.errors import RequestError


def made(adata, save, path, **options):
    return prepare([save(adata)], path, PrepareOptions(**OPTIONS, **options), echo=lambda line: None)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Where what is prepared once lies."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def store(build, save, kept):
    """Test perturbations in batch b2 only; 20 cells a group, so that pieces of 8 mix."""
    rule = {"fraction": 0.4, "context": {"batch": "b2"}, "seed": 1}
    done = (kept / "store").exists()
    return Store.open(kept / "store") if done else made(build(cells=20), save, kept / "store", holdout=rule)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(store_members, "PIECE", 8)


def facts(view, group):
    """(perturbations, cell types, batches) by name of a group's cells, from obs."""
    rows = slice(int(view.groups.start[group]), int(view.groups.start[group] + view.groups.size[group]))
    obs = view.obs.iloc[rows]
    return set(obs["pert"]), set(obs["kind"]), set(obs["donor"])


def is_whole(view, store):
    """Every cell of the store is a row of the view once, and is read as what it is."""
    rows = view.obs.index.to_series().map({name: row for row, name in enumerate(store.obs.index)}).to_numpy()
    assert sorted(rows) == list(range(store.n_cells)) and view.n_cells == store.n_cells
    np.testing.assert_array_equal(view.load().toarray(), store.load().toarray()[rows])
    assert (view.groups.start == np.cumsum(view.groups.size) - view.groups.size).all()
    return rows


def test_as_stored_is_the_store_itself(store):
    assert regroup(store, "context") is store
    with pytest.raises(RequestError, match="Did you mean 'cell_type'"):
        regroup(store, "celltype")


def test_without_batch(store):
    view = regroup(store, "cell_type")
    rows = is_whole(view, store)
    groups = view.groups
    split_of = np.repeat(store.groups.split, store.groups.size)[rows]
    seen = set()
    for group in range(len(groups)):
        perturbations, kinds, batches = facts(view, group)
        names = (view.perturbations[groups.perturbation[group]], view.cell_types[groups.cell_type[group]])
        assert ({names[0]}, {names[1]}) == (perturbations, kinds)
        inside = slice(int(groups.start[group]), int(groups.start[group] + groups.size[group]))
        assert set(split_of[inside]) == {groups.split[group]}, "a group mixes splits"
        assert groups.batch[group] == -1
        assert groups.is_control[group] == (names[0] == "control") == (groups.split[group] == CONTROL)
        serving = groups.control[group]
        assert groups.is_control[serving] and groups.cell_type[serving] == groups.cell_type[group]
        if groups.is_control[group]:
            assert batches == {"b1", "b2"} and serving == group
        seen.add((*names, SPLITS[groups.split[group]]))
    assert len(seen) == len(groups)
    assert ("P1", "T", "train") in seen and any(split == "test" for *_, split in seen)


def test_pretraining_mixes_everything_but_splits(store):
    view = regroup(store, "pretraining")
    rows = is_whole(view, store)
    groups = view.groups
    assert [(view.cell_types[c], SPLITS[s]) for c, s in zip(groups.cell_type, groups.split)] == [
        (kind, split) for kind in ("B", "T") for split in ("train", "test")
    ]
    perturbations, kinds, batches = facts(view, 0)
    assert perturbations == set(store.perturbations) and kinds == {"B"} and batches == {"b1", "b2"}
    assert (groups.control == np.arange(4)).all() and (groups.perturbation == 0).all()
    assert groups.is_control.tolist() == [True, False, True, False]
    codes = np.where(store.groups.split == CONTROL, TRAIN, store.groups.split)
    split_of = np.repeat(codes, store.groups.size)[rows]
    np.testing.assert_array_equal(split_of, np.repeat(groups.split, groups.size))
    assert (split_of == TEST).any()


def test_batches_of_mixed_cells(store):
    view = regroup(store, "cell_type")
    rows = np.arange(view.n_cells).reshape(-1, 4)[:, ::-1]
    names = np.array(store.batches)[view.batch_codes(rows)]
    assert (names == view.obs["donor"].to_numpy(str)[rows]).all()


def test_pieces_are_dealt(store):
    """The first cells of a mixed group are a sample of it, in an order that only the seed decides."""
    view, again = regroup(store, "pretraining"), regroup(store, "pretraining")
    np.testing.assert_array_equal(view.runs.row, again.runs.row)
    pieces = view.obs["donor"].to_numpy(str)[: view.groups.size[0]].reshape(-1, 4)
    assert (pieces[1:, 0] != pieces[:-1, 0]).sum() > 5, "batches lie one after the other"
    assert view.runs.size[view.runs.start < view.groups.size[0]].max() == 8


def test_reading_in_pieces(store):
    view = regroup(store, "pretraining")
    whole = view.read_raw(0, view.n_cells).lognorm().toarray()
    for ranges in ([(3, 50), (60, 61), (20, 70)], [(0, 1), (view.n_cells - 1, view.n_cells), (9, 9)], []):
        found = view.fetch(ranges).result().lognorm().toarray()
        rows = np.concatenate([np.zeros(0, int), *(np.arange(*pair) for pair in ranges)])
        np.testing.assert_array_equal(found, whole[rows])
    with pytest.raises(ValueError, match="rows"):
        view.fetch([(0, view.n_cells + 1)])


def test_obs_in_pieces(store):
    view = regroup(store, "pretraining")
    for ranges in ([(3, 50), (60, 61), (20, 70)], [(9, 9)]):
        rows = np.concatenate([np.zeros(0, int), *(np.arange(*pair) for pair in ranges)])
        assert view.obs_of(ranges).equals(view.obs.iloc[rows])


def test_log_values_and_csr_in_pieces(build, save, tmp_path):
    adata = build(cells=20)
    adata.X.data = np.log1p(np.random.default_rng(0).random(adata.X.nnz)).astype(np.float32)
    store = made(adata, save, tmp_path / "store")
    assert not store.is_dense and not store.is_counts
    is_whole(regroup(store, "cell_type"), store)


def test_groups_of_one_member_stay_whole(build, save, tmp_path):
    store = made(build(contexts=(("T", "b1"), ("B", "b2")), cells=20), save, tmp_path / "store")
    view = regroup(store, "cell_type")
    assert (view.runs.size == 20).all()
    np.testing.assert_array_equal(view.load().toarray(), store.load().toarray())


def test_controls_are_lent_where_the_store_says(build, save, tmp_path):
    adata = build(contexts=(("T", "b2"), ("B", "b1"), ("N", "b2"), ("N", "b3")), cells=12)
    lacking = (adata.obs["kind"] == "N") & (adata.obs["pert"] == "control")
    store = made(adata[~lacking].copy(), save, tmp_path / "store")
    view = regroup(store, "cell_type")
    for group in range(len(view.groups)):
        kind = view.cell_types[view.groups.cell_type[group]]
        lender = view.cell_types[view.groups.cell_type[view.groups.control[group]]]
        assert (lender, int(view.groups.fallback[group])) == (("T", 1) if kind == "N" else (kind, 0))
    assert regroup(store, "pretraining").groups.is_control.all()


def test_large_groups_are_cut_into_larger_pieces():
    size = np.array([70_000, 70_000, 100, 100], dtype=np.int64)
    row = np.cumsum(size) - size
    code = np.zeros(4, dtype=np.int32)
    members = store_members.Members(code, row, size, np.arange(4), code, code, np.arange(4), code)
    runs = store_members.dealt(members, np.array([0, 0, 1, 1]), seed=0)
    assert set(runs.size[runs.start < 140_000]) == {256, 70_000 % 256}
    assert set(runs.size[runs.start >= 140_000]) == {8, 100 % 8}
    cells = np.concatenate([np.arange(r, r + n) for r, n in zip(runs.row, runs.size)])
    assert sorted(cells) == list(range(size.sum()))
    assert (runs.batch[runs.start < 140_000] == 1).any() and set(runs.batch) == {0, 1, 2, 3}

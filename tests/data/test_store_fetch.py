"""Reading cells as they are stored: any ranges, at once, from several threads, and what is said of damage."""

import concurrent.futures
import shutil

import anndata
import numpy as np
import pytest
import scipy.sparse as sp

from perturbdiff_jax.data.storage.fetch import merged
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.errors import RequestError


def test_fetch_gives_raw_rows_of_many_ranges_in_their_order(made):
    store, adata = made
    counts = adata.X.toarray()[store.obs["source_row"]]
    start, size = store.groups.start, store.groups.size
    groups = [(int(start[g]), int(start[g] + size[g])) for g in (3, 4, 1)]
    for ranges in (
        groups,
        [(5, 9), (9, 9), (9, 30), (2, 4), (2, 3)],
        [(50, store.n_cells), (0, 1)],
        [(7, 7)],
        [],
    ):
        cells = store.fetch(ranges).result()
        rows = np.concatenate([np.zeros(0, int), *(np.arange(*pair) for pair in ranges)])
        assert len(cells) == len(rows) and cells.is_dense == store.is_dense and cells.genes == adata.n_vars
        whole = (
            cells.data
            if store.is_dense
            else sp.csr_matrix((cells.data, cells.indices, cells.indptr), counts[rows].shape)
        )
        np.testing.assert_array_equal(whole if store.is_dense else whole.toarray(), counts[rows])
        np.testing.assert_allclose(cells.scale, 1e4 / counts[rows].sum(axis=1), rtol=1e-6)
        assert (
            cells.data.dtype,
            np.dtype(np.uint16) if store.is_dense else cells.indices.dtype,
        ) == store.dtypes
    assert store.read_raw(0, store.n_cells).nbytes == store.nbytes
    for wrong in ((-1, 3), (5, 4), (0, store.n_cells + 1)):
        with pytest.raises(ValueError, match="rows"):
            store.fetch([(0, 2), wrong])


def test_a_fetch_can_be_shared_between_threads(sparse):
    store, _ = sparse
    truth = store.read_raw(3, 60)
    fetches = [store.fetch([(3, 20), (20, 60)]) for _ in range(20)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda fetch: fetch.result(), fetches * 4))
    for number, cells in enumerate(found):
        np.testing.assert_array_equal(cells.data, truth.data)
        assert cells is found[number % 20]


def test_adjacent_reads_are_one():
    a, b = object(), object()
    reads = [(a, 0, 3), (a, 3, 3), (a, 3, 5), (b, 5, 6), (b, 9, 9), (a, 6, 8), (a, 9, 10)]
    assert merged(reads) == [(a, 0, 5), (b, 5, 6), (a, 6, 8), (a, 9, 10)]


def test_whole_groups_need_no_row_pointers(sparse):
    store, _ = sparse
    truth = store.read_raw(0, 14)
    shutil.rmtree(store.path / "X/indptr/c")
    again = Store.open(store.path)
    np.testing.assert_array_equal(again.read_raw(0, 14).data, truth.data)
    with pytest.raises(RequestError, match="does not fit X/indptr"):
        again.read_raw(1, 14)


def test_damage_is_said_when_the_cells_are_asked_for(made):
    store, _ = made
    file = next(path for path in (store.path / "X").rglob("c/**/*") if path.is_file())
    file.write_bytes(file.read_bytes()[:-20])
    fetch = Store.open(store.path).fetch([(1, 8)])
    with pytest.raises(RequestError, match="damaged: its arrays cannot be read") as caught:
        fetch.result()
    assert str(store.path) in str(caught.value) and len(str(caught.value)) < 500


def test_obs_of_some_cells(made):
    store, _ = made
    for ranges in ([(3, 9), (9, 9), (40, 60), (0, 2)], [(5, 6)], []):
        rows = np.concatenate([np.zeros(0, int), *(np.arange(*pair) for pair in ranges)])
        assert store.obs_of(ranges).equals(store.obs.iloc[rows])
    whole = anndata.read_zarr(store.path).obs
    assert store.obs.index.equals(whole.index) and store.obs.astype(str).equals(whole.astype(str))
    with pytest.raises(ValueError, match="rows"):
        store.obs_of([(0, store.n_cells + 1)])


def test_batches_of_cells(made):
    store, _ = made
    rows = np.array([[0, store.n_cells - 1], [8, 57]])
    names = np.array(store.batches)[store.batch_codes(rows)]
    assert (names == store.obs["donor"].to_numpy(str)[rows]).all()

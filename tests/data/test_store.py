"""The store on disk: a round trip through anndata and through our reader, nothing half-written, damage
found."""

import json
import os
import shutil

import anndata
import numpy as np
import pandas as pd
import pytest
from made_stores import OPTIONS

from perturbdiff_jax.data.prepare import PrepareOptions, prepare
from perturbdiff_jax.data.storage import writer as store_writer
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.errors import RequestError


def refusal(path):
    with pytest.raises(RequestError) as caught:
        Store.open(path)
    assert str(path) in str(caught.value) and len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


@pytest.mark.filterwarnings("error::zarr.errors.ZarrUserWarning")
def test_anndata_reads_the_cells_back(made):
    store, adata = made
    back = anndata.read_zarr(store.path)
    rows = back.obs["source_row"].to_numpy()
    assert sorted(rows) == list(range(adata.n_obs))
    assert back.obs_names.tolist() == adata.obs_names[rows].tolist()
    assert back.var_names.tolist() == adata.var_names.tolist()
    np.testing.assert_array_equal(back.to_df().to_numpy(), adata.X.toarray()[rows])
    for key in ("pert", "kind", "donor"):
        assert isinstance(back.obs[key].dtype, pd.CategoricalDtype)
        assert back.obs[key].tolist() == adata.obs[key].iloc[rows].tolist()
    totals = np.asarray(adata.X.sum(axis=1)).ravel()[rows]
    extra = back.uns["perturbdiff"]
    np.testing.assert_allclose(extra["scale"], 1e4 / totals, rtol=1e-6)
    assert isinstance(back.X, np.ndarray) == store.is_dense == ("row_nnz" not in extra)
    if not store.is_dense:
        np.testing.assert_array_equal(extra["row_nnz"], np.diff(back.X.indptr))


def test_reading_gives_log1p_of_normalised_counts(made):
    store, adata = made
    counts = adata.X.toarray()
    truth = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)[store.obs["source_row"]]
    whole = store.load()
    assert whole.dtype == np.float32 and whole.has_sorted_indices
    np.testing.assert_allclose(whole.toarray(), truth, rtol=1e-5)
    for start, stop in ((0, 1), (3, 50), (60, 60), (100, adata.n_obs)):
        np.testing.assert_array_equal(store.read(start, stop).toarray(), whole[start:stop].toarray())
    with pytest.raises(ValueError, match="rows"):
        store.read(5, adata.n_obs + 1)


def test_groups_hold_what_they_say(made):
    store, adata = made
    assert store.n_cells == adata.n_obs and store.genes == adata.var_names.tolist()
    assert store.perturbations == ["control", "P1", "P2", "P3"] and store.control == "control"
    assert store.cell_types == ["B", "T"] and store.batches == ["b1", "b2"]
    for group in range(len(store.groups)):
        cells = store.to_anndata([group])
        names = {"pert": store.perturbations[store.groups.perturbation[group]]}
        names["kind"] = store.cell_types[store.groups.cell_type[group]]
        names["donor"] = store.batches[store.groups.batch[group]]
        assert cells.n_obs == store.groups.size[group] == 7
        for key, name in names.items():
            assert set(cells.obs[key]) == {name}


def test_to_anndata_takes_groups_in_any_order(made):
    store, _ = made
    start, size, whole = store.groups.start, store.groups.size, store.load().toarray()
    cells = store.to_anndata([9, 2])
    rows = np.r_[start[9] : start[9] + size[9], start[2] : start[2] + size[2]]
    np.testing.assert_array_equal(cells.X.toarray(), whole[rows])
    assert cells.obs_names.tolist() == store.obs.index[rows].tolist()
    assert store.to_anndata([]).shape == (0, len(store.genes))


def test_arrays_are_sharded_and_compressed_as_planned(sparse):
    store, _ = sparse
    for name, dtype in (("data", "uint16"), ("indices", "uint16"), ("indptr", "int64")):
        metadata = json.loads((store.path / "X" / name / "zarr.json").read_text())
        assert metadata["zarr_format"] == 3 and metadata["data_type"] == dtype
        (codec,) = metadata["codecs"]
        assert codec["name"] == "sharding_indexed" and codec["configuration"]["chunk_shape"] == [16_384]
        blosc = codec["configuration"]["codecs"][-1]
        assert blosc["name"] == "blosc"
        assert (blosc["configuration"]["cname"], blosc["configuration"]["shuffle"]) == ("lz4", "shuffle")


def test_log_values_round_trip(adata, save, tmp_path):
    adata.X.data = np.log1p(np.random.default_rng(0).random(adata.X.nnz)).astype(np.float32)
    store = prepare([save(adata)], tmp_path / "s", PrepareOptions(**OPTIONS), echo=lambda line: None)
    assert store.manifest["values"]["encoding"] == "lognorm" and not store.is_dense
    rows = store.obs["source_row"].to_numpy()
    np.testing.assert_array_equal(store.load().toarray(), adata.X.toarray()[rows])
    assert store.read_raw(3, 9).scale is None
    back = anndata.read_zarr(store.path)
    assert "scale" not in back.uns["perturbdiff"] and back.X.dtype == np.float32


def test_missing_incomplete_other_version_and_strangers(made, tmp_path):
    store, _ = made
    assert "no such store" in refusal(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "manifest.json is missing" in refusal(tmp_path / "empty")
    manifest = json.loads((store.path / "manifest.json").read_text())
    assert list(manifest)[-1] == "complete"
    for change, word in (
        ({"complete": False}, "incomplete"),
        ({"version": 99}, "99"),
        ({"format": "other"}, "not a store"),
        ({"n_cells": 3}, "shape"),
    ):
        (store.path / "manifest.json").write_text(json.dumps({**manifest, **change}))
        assert word in refusal(store.path)
    del manifest["genes"]
    (store.path / "manifest.json").write_text(json.dumps(manifest))
    assert "lacks genes" in refusal(store.path)
    (store.path / "manifest.json").write_text("{")
    assert "not valid JSON" in refusal(store.path)


@pytest.mark.parametrize("name", ["X/data", "X/indptr", "uns/perturbdiff/scale", "obs"])
def test_a_lost_array_is_noticed_on_opening(sparse, name):
    store, _ = sparse
    shutil.rmtree(store.path / name)
    assert "damaged" in refusal(store.path)


def test_nothing_is_left_when_writing_breaks_off(tmp_path):
    for error in (OSError, KeyboardInterrupt):
        with pytest.raises(error), store_writer.new_directory(tmp_path / "s", overwrite=False) as folder:
            (folder / "half").write_text("written")
            raise error
        assert os.listdir(tmp_path) == []


def test_an_output_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    new = store_writer.new_directory(tmp_path / "file" / "store", overwrite=False)
    with pytest.raises(RequestError, match="cannot be written"), new:
        pass


def test_only_a_store_is_ever_replaced(made, tmp_path):
    store, _ = made
    with pytest.raises(RequestError, match="--overwrite"):
        store_writer.check_output(store.path, overwrite=False)
    store_writer.check_output(store.path, overwrite=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_text("dear")
    (tmp_path / "notes").write_text("dear")
    for name in ("photos", "notes"):
        with pytest.raises(RequestError, match="not a store"):
            store_writer.check_output(tmp_path / name, overwrite=True)
    with store_writer.new_directory(store.path, overwrite=True) as folder:
        (folder / "new").write_text("new")
        assert (store.path / "manifest.json").is_file(), "the old store went before the new one was whole"
    assert os.listdir(store.path) == ["new"]
    assert sorted(os.listdir(tmp_path)) == ["notes", "photos", "store"]


def test_annbatch_reads_the_cells_back(made):
    """The other loader of such folders: its batches are our cells."""
    annbatch = pytest.importorskip("annbatch", reason="needs annbatch (Python 3.12)")
    import zarr

    store, _ = made
    back = anndata.read_zarr(store.path)
    group = zarr.open_group(str(store.path), mode="r")
    matrix = group["X"] if store.is_dense else anndata.io.sparse_dataset(group["X"])
    loader = annbatch.Loader(batch_size=16, chunk_size=8, preload_nchunks=2, shuffle=True, return_index=True)
    loader.add_dataset(matrix, back.obs[["pert"]])
    seen = []
    for batch in loader:
        cells = batch["X"] if store.is_dense else batch["X"].toarray()
        np.testing.assert_array_equal(cells, back.to_df().to_numpy()[batch["index"]])
        seen += list(batch["index"])
    assert sorted(seen) == list(range(store.n_cells))

"""Writing arrays and stores: shards in any order, dense and sparse layouts, the hash of a store."""

import json

import anndata
import numpy as np
import pandas as pd
import pytest
import tensorstore as ts
from prepare_runs import filled, run

from perturbdiff_jax.data.storage import shards as store_shards
from perturbdiff_jax.data.storage import writer as store_writer


def opened(path):
    return ts.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}).result()


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(store_shards, "CHUNK", 16)
    monkeypatch.setattr(store_shards, "DENSE_CHUNK", 16)
    monkeypatch.setattr(store_shards, "SHARD", 64)


def test_shards_are_written_in_any_order(small, tmp_path):
    values = np.arange(1000, dtype=np.uint32)
    store_shards.create_array(tmp_path, "a", len(values), values.dtype)
    step = store_shards.shard_length(len(values))
    assert step == 64
    for first in reversed(range(0, len(values), step)):
        store_shards.write_ranges(tmp_path, first, {"a": values[first : first + step]})
    assert len(list((tmp_path / "a" / "c").iterdir())) == 16
    np.testing.assert_array_equal(opened(tmp_path / "a").read().result(), values)
    store_shards.write_whole(tmp_path, "b", values)
    same = [(tmp_path / name / "c" / "3").read_bytes() for name in "ab"]
    assert same[0] == same[1]


@pytest.mark.parametrize(
    ("rows", "width", "shard", "chunk"), [(100, 5, 12, 3), (7, 5, 9, 3), (100, 200, 1, 1)]
)
def test_dense_arrays_have_whole_rows_in_a_chunk(small, tmp_path, rows, width, shard, chunk):
    assert store_shards.shard_length(rows, width) == shard
    values = np.arange(rows * width).reshape(rows, width).astype(np.uint8)
    store_shards.write_whole(tmp_path, "a", values, width=width, codec="zstd")
    metadata = json.loads((tmp_path / "a" / "zarr.json").read_text())
    (codec,) = metadata["codecs"]
    assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [shard, width]
    assert codec["configuration"]["chunk_shape"] == [chunk, width]
    assert codec["configuration"]["codecs"][-1]["configuration"]["cname"] == "zstd"
    np.testing.assert_array_equal(opened(tmp_path / "a").read().result(), values)


def test_many_genes_need_wider_indices(tmp_path):
    assert store_writer.index_dtype(65_536) is np.uint16
    assert store_writer.index_dtype(65_537) is np.uint32
    genes = [f"g{i}" for i in range(70_000)]
    writer = store_writer.StoreWriter(
        tmp_path, row_nnz=np.array([1, 1]), genes=genes, dtype=np.uint16, counts=False
    )
    writer.write_frames(pd.DataFrame(index=pd.Index(["a", "b"], dtype=object)))
    columns = np.array([69_999, 3], np.uint32)
    store_shards.write_ranges(tmp_path, 0, {"X/data": np.ones(2, np.uint16), "X/indices": columns})
    writer.finish({})
    assert anndata.read_zarr(tmp_path).X[0, 69_999] == 1


@pytest.mark.parametrize(("high", "layout"), [(255, "dense"), (256, "csr")])
@pytest.mark.parametrize("shard", [100, store_shards.SHARD])
def test_dense_where_it_is_smaller(build, save, tmp_path, monkeypatch, high, layout, shard):
    monkeypatch.setattr(store_shards, "SHARD", shard)
    monkeypatch.setattr(store_shards, "CHUNK", 25)
    monkeypatch.setattr(store_shards, "DENSE_CHUNK", 64)
    adata = build()
    adata.X[3, 7] = high
    genes = tmp_path / "genes.txt"
    genes.write_text("\n".join(adata.var_names[:20]))
    store, _ = run(save(adata), tmp_path / "s", genes=str(genes), codec="zstd")
    manifest = store.manifest
    assert manifest["layout"] == layout and manifest["codec"] == "zstd"
    back = anndata.read_zarr(store.path)
    rows = back.obs["source_row"].to_numpy()
    held = adata.X.toarray()[rows][:, :20]
    np.testing.assert_array_equal(filled(back), held)
    assert manifest["nnz"] == (held > 0).sum()
    if layout == "dense":
        assert back.X.dtype == np.uint8 and not any(manifest["groups"]["pointer"])
    else:
        before = np.concatenate([[0], np.cumsum((held > 0).sum(axis=1))])
        assert manifest["groups"]["pointer"] == before[manifest["groups"]["start"]].tolist()
    totals = np.asarray(adata.X.sum(axis=1)).ravel()[rows]
    np.testing.assert_allclose(back.uns["perturbdiff"]["scale"], 1e4 / totals, rtol=1e-6)


def test_sparse_cells_are_not_stored_dense():
    facts = {"cells": 10, "genes": 10, "counts": True}
    assert store_writer.is_dense_better(nnz=31, largest=255, **facts)
    assert not store_writer.is_dense_better(nnz=30, largest=255, **facts)
    assert not store_writer.is_dense_better(nnz=31, largest=256, **facts)
    assert not store_writer.is_dense_better(nnz=31, largest=3, cells=10, genes=10, counts=False)


def test_the_hash_of_a_store_is_that_of_its_files():
    one = store_writer.store_hash({"checksums": {"a": "1", "b": "2"}})
    assert one == store_writer.store_hash({"checksums": {"b": "2", "a": "1"}, "n_cells": 3})
    assert one != store_writer.store_hash({"checksums": {"a": "2", "b": "1"}})
    assert one != store_writer.store_hash({"checksums": {"a": "1"}})


def test_names_are_written_in_pieces(build, save, tmp_path, monkeypatch):
    monkeypatch.setattr(store_writer, "NAMES_AT_ONCE", 10)
    adata = build()
    adata.obs_names = [f"größe-{i}" for i in range(adata.n_obs)]
    store, _ = run(save(adata), tmp_path / "s")
    back = anndata.read_zarr(store.path)
    assert back.obs_names.tolist() == adata.obs_names[back.obs["source_row"]].tolist()

"""How prepare works through large inputs: in stretches, with spilled parts and several processes; what it goes on from,
what it refuses on the way."""

import errno
import fcntl
import json
import os

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from prepare_runs import filled, refusal, run

from perturbdiff_jax.data import prepare
from perturbdiff_jax.data.preparation import gather as prepare_gather
from perturbdiff_jax.data.preparation import parts as prepare_parts
from perturbdiff_jax.data.preparation import progress as prepare_progress
from perturbdiff_jax.data.preparation import scan as prepare_scan
from perturbdiff_jax.data.preparation import tasks as prepare_tasks
from perturbdiff_jax.data.storage import shards as store_shards
from perturbdiff_jax.data.values import normalise

TINY = 1024 * 1024  # more than the labels of these cells, less than their numbers


@pytest.fixture
def stretched(monkeypatch):
    """Many stretches and shards for few cells; nothing is small enough to be held in memory, two processes pay."""
    monkeypatch.setattr(prepare_scan, "TASK", 300)
    monkeypatch.setattr(prepare_tasks, "BLOCK", 100)
    monkeypatch.setattr(store_shards, "SHARD", 200)
    monkeypatch.setattr(store_shards, "CHUNK", 50)
    monkeypatch.setattr(store_shards, "DENSE_CHUNK", 100)
    monkeypatch.setattr(prepare, "HELD_BYTES", 10**6)
    monkeypatch.setattr(prepare, "PARALLEL", 1)
    monkeypatch.setattr(prepare, "WORKER_BYTES", 1)


def same(one, two):
    assert one.manifest == two.manifest


@pytest.mark.parametrize("kind", ["counts", "lognorm", "dense"])
def test_memory_and_workers_do_not_change_the_store(build, save, tmp_path, monkeypatch, stretched, kind):
    parts = [build(seed=1, genes=200), build(seed=2, genes=200)]
    parts[1].X[7, 9] = 70_000  # more than uint16 holds
    for part in parts:
        if kind == "lognorm":
            part.X = normalise(part.X, np.full(part.n_obs, 0.37, np.float32))
            part.X.data[::50] *= 1.0001  # no way back to counts
    paths = [save(part, f"{number}.h5ad") for number, part in enumerate(parts)]
    options = {"hvg": 30}
    if kind == "dense":
        parts[1].X[7, 9] = 200
        save(parts[1], "1.h5ad")
        options = {"genes": str(tmp_path / "genes.txt")}
        (tmp_path / "genes.txt").write_text("\n".join(parts[0].var_names[:40]))
    one, _ = run(paths, tmp_path / "one", workers=1, memory=TINY, **options)
    two, _ = run(paths, tmp_path / "two", workers=2, memory=TINY, **options)
    monkeypatch.setattr(prepare, "HELD_BYTES", 1)
    held, _ = run(paths, tmp_path / "held", workers=1, **options)
    same(one, two)
    same(one, held)
    assert one.manifest["layout"] == ("dense" if kind == "dense" else "csr")
    back = anndata.read_zarr(one.path)
    for path, part in zip(paths, parts):
        mine = np.flatnonzero(back.obs["source"] == str(path))
        rows = back.obs["source_row"].to_numpy()[mine]
        np.testing.assert_array_equal(filled(back)[mine], part[:, one.genes].X.toarray()[rows])
    assert sorted(os.listdir(tmp_path)) == sorted(
        ["0.h5ad", "1.h5ad", "one", "two", "held", *(["genes.txt"] if kind == "dense" else [])]
    )


def test_stretches_choose_the_same_genes(build, save, tmp_path, monkeypatch):
    path = save(build(cells=20, genes=200))
    whole, _ = run(path, tmp_path / "whole", hvg=25)
    monkeypatch.setattr(prepare_scan, "TASK", 300)
    monkeypatch.setattr(prepare_tasks, "BLOCK", 100)
    parts, _ = run(path, tmp_path / "parts", hvg=25)
    same(whole, parts)


@pytest.mark.parametrize("first", [10, 300])
def test_a_file_of_log_values_may_begin_like_counts(build, save, tmp_path, stretched, first):
    log = build(genes=100)
    log.X = normalise(log.X, np.full(log.n_obs, 0.37, np.float32))
    log.X.data[:first] = 2.0
    path = save(log)
    told, _ = run(path, tmp_path / "told", hvg=20, values="lognorm", memory=TINY)
    found, _ = run(path, tmp_path / "found", hvg=20, memory=TINY)
    same(told, found)
    back = anndata.read_zarr(found.path)
    rows = back.obs["source_row"].to_numpy()
    np.testing.assert_array_equal(filled(back), log[:, found.genes].X.toarray()[rows])


def test_every_pass_says_how_far_it_is(adata, save, tmp_path, monkeypatch, stretched):
    path = save(adata)
    _, quiet = run(path, tmp_path / "quiet", memory=TINY)
    monkeypatch.setattr(prepare_progress, "EVERY", 0.0)
    _, text = run(path, tmp_path / "loud", memory=TINY)
    for word in ("checking: ", "sorting: ", "writing: "):
        lines = [line for line in text.splitlines() if line.startswith(word)]
        assert lines and all(
            "of 112 cells" in line and "cells/s" in line and "s left" in line for line in lines
        )
        assert word not in quiet


def broken_off(path, output, monkeypatch, **options):
    """A run that is interrupted while it writes, in such a way that it can go on."""
    with monkeypatch.context() as patch:

        def stop(*_):
            raise KeyboardInterrupt

        patch.setattr(prepare_gather.StoreWriter, "write_frames", stop)
        with pytest.raises(KeyboardInterrupt):
            run(path, output, memory=TINY, **options)
    return output.parent / f".{output.name}.partial"


def test_what_was_done_is_not_done_again(adata, save, tmp_path, monkeypatch, stretched):
    path = save(adata)
    whole, _ = run(path, tmp_path / "whole", memory=TINY, hvg=20)
    folder = broken_off(path, tmp_path / "s", monkeypatch, hvg=20)
    assert list(folder.glob("scan-*")) and list(folder.glob("part-*"))
    lost = sorted(folder.glob("part-*"))[1]
    lost.unlink()
    worked = []
    for name in ("hash", "scan", "scatter"):
        work = prepare_tasks.WORK[name]
        monkeypatch.setitem(
            prepare_tasks.WORK, name, lambda task, n=name, w=work: (worked.append(n), w(task))[1]
        )
    store, text = run(path, tmp_path / "s", memory=TINY, hvg=20)
    assert worked == ["scatter"] and "going on where an earlier run was broken off" in text
    same(store, whole)
    assert not folder.exists()


@pytest.mark.parametrize("change", ["source", "options", "split"])
def test_other_inputs_start_again(adata, save, tmp_path, monkeypatch, stretched, change):
    path = save(adata)
    split = tmp_path / "split.json"
    lists = {"columns": ["cell_type", "batch", "perturbation"], "test": [["T", "b2", "P1"]]}
    split.write_text(json.dumps(lists))
    folder = broken_off(path, tmp_path / "s", monkeypatch, split=str(split), hvg=20)
    assert folder.exists()
    options = {"hvg": 20}
    if change == "source":
        adata.X = adata.X * 2
        save(adata)
    elif change == "options":
        options = {"hvg": 20, "target_sum": 1e3}
    else:
        lists["test"] = [["T", "b2", "P2"]]
        split.write_text(json.dumps(lists))
    store, text = run(path, tmp_path / "s", memory=TINY, split=str(split), **options)
    assert "other inputs or options; it is started again" in text
    whole, _ = run(path, tmp_path / "whole", memory=TINY, split=str(split), **options)
    same(store, whole)
    assert not folder.exists()


@pytest.mark.parametrize("short", [True, False])
def test_a_file_that_changes_meanwhile_is_refused(adata, save, tmp_path, monkeypatch, stretched, short):
    path = save(adata)
    seen = prepare.survey

    def survey(*args):
        found = seen(*args)
        adata.X[0, 0] = 99
        save(adata)
        return found

    monkeypatch.setattr(prepare, "survey", survey)
    memory = {} if short else {"memory": TINY}
    message = refusal(path, tmp_path / "s", **memory)
    assert f"{path}: has changed while it was read" in message


def test_two_at_a_time_are_refused(adata, save, tmp_path):
    path = save(adata)
    folder = tmp_path / ".s.partial"
    folder.mkdir()
    with open(folder / "lock", "w") as stream:
        stream.write(str(os.getpid()))
        stream.flush()
        fcntl.flock(stream, fcntl.LOCK_EX)
        message = refusal(path, tmp_path / "s")
        assert f"another prepare (process {os.getpid()})" in message and str(tmp_path / "s") in message
    run(path, tmp_path / "s")
    assert not folder.exists()


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left"), ValueError("x: No space left on device y")]
)
def test_a_full_disk_is_said(adata, save, tmp_path, monkeypatch, stretched, error):
    def full(*_):
        raise error

    monkeypatch.setattr(prepare_parts.PartFile, "write", full)
    message = refusal(save(adata), tmp_path / "s", memory=TINY)
    assert f"{tmp_path}: the disk is full; about 0.1 GiB" in message


def test_unsorted_and_repeated_entries(build, save, tmp_path, stretched):
    adata = build()
    truth = adata.X.toarray()
    matrix = adata.X.tocoo()
    order = np.random.default_rng(0).permutation(matrix.nnz)
    order = order[np.argsort(matrix.row[order], kind="stable")]
    # Every entry twice, in random order inside its row, with zeros stored besides, also where nothing else is.
    rows = np.repeat(matrix.row[order], 3)
    columns = np.repeat(matrix.col[order], 3)
    columns[2::3] = (columns[2::3] + 1) % adata.n_vars
    data = np.stack([matrix.data[order] - 1, np.ones(matrix.nnz), np.zeros(matrix.nnz)], axis=1).ravel()
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=adata.n_obs))])
    adata.X = sp.csr_matrix((data.astype(np.float32), columns, indptr), shape=adata.shape)
    store, _ = run(save(adata), tmp_path / "s", memory=TINY, all_genes=True)
    back = anndata.read_zarr(store.path)
    np.testing.assert_array_equal(filled(back), truth[back.obs["source_row"]])
    assert store.manifest["nnz"] == np.count_nonzero(truth)


def test_more_genes_and_counts_than_two_bytes_hold(save, build, tmp_path, stretched):
    few = build(genes=30)
    wide = sp.lil_matrix((few.n_obs, 70_000), dtype=np.float64)
    wide[:, :30] = few.X
    wide[:, 69_999] = 2**24 + 1
    adata = anndata.AnnData(X=wide.tocsr(), obs=few.obs)
    adata.var_names = [f"g{i}" for i in range(70_000)]
    store, _ = run(save(adata), tmp_path / "s", memory=TINY, all_genes=True)
    back = anndata.read_zarr(store.path)
    assert back.X.dtype == np.uint32
    difference = back.X - adata.X[back.obs["source_row"].to_numpy()]
    assert abs(difference).max() == 0


def test_files_by_genes_need_memory(adata, save, tmp_path, monkeypatch):
    adata.X = adata.X.tocsc()
    path = save(adata)
    run(path, tmp_path / "s")
    monkeypatch.setattr(prepare_scan, "CSC_BYTES", 10**7)
    message = refusal(path, tmp_path / "t")
    assert "a.h5ad: X is stored by genes (CSC)" in message and "tocsr" in message


def test_labels_need_memory(adata, save, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "CELL_BYTES", 2**20)
    message = refusal(save(adata), tmp_path / "s", memory=TINY)
    assert "the labels of 112 cells alone take 0.1 GiB" in message and "--merge" in message

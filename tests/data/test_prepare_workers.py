"""Worker processes of prepare: they do all work once, and what goes wrong in them is said here."""

import hashlib
import os
import signal
import threading

import numpy as np
import pytest
from prepare_runs import refusal

from perturbdiff_jax.data import prepare
from perturbdiff_jax.data.preparation import checksums
from perturbdiff_jax.data.preparation import scan as prepare_scan
from perturbdiff_jax.data.preparation.workers import Workers
from perturbdiff_jax.errors import RequestError


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{number}.txt" for number in range(9)]
    for path in paths:
        path.write_text(path.name)
    return paths


@pytest.mark.parametrize("processes", [1, 3])
def test_all_work_is_done_once(files, processes):
    with Workers(processes) as workers:
        for _ in range(2):  # the same processes serve several passes
            done = list(workers.do((path, "hash", {"path": str(path)}) for path in files))
            expected = {path: {"sha256": hashlib.sha256(path.name.encode()).hexdigest()} for path in files}
            assert dict(done) == expected and len(done) == len(files)


@pytest.mark.parametrize("processes", [1, 2])
def test_faults_come_through(files, tmp_path, processes):
    scan = {"path": str(files[0]), "layer": None, "start": 0, "stop": 1, "encoding": "auto", "moments": None}
    for kind, task, error, word in (
        ("hash", {"path": str(tmp_path / "none")}, FileNotFoundError, "none"),
        ("scan", scan, RequestError, "0.txt: cannot be opened"),
        ("hash", {}, KeyError if processes == 1 else RuntimeError, "path"),
    ):
        with Workers(processes) as workers, pytest.raises(error, match=word):
            list(workers.do([("it", kind, task)]))


def test_a_worker_that_dies_is_noticed(files):
    with Workers(2) as workers, pytest.raises(RuntimeError, match="died"):
        for worker in workers.workers:
            os.kill(worker.pid, signal.SIGKILL)
        list(workers.do((path, "hash", {"path": str(path)}) for path in files))


def test_checksums_are_begun_early(files, tmp_path, monkeypatch):
    early = checksums.EarlyChecksums([str(path) for path in files])
    early._thread.join()
    assert early.stop() == len(files)
    sums = [hashlib.sha256(path.name.encode()).hexdigest() for path in files]
    assert early.results() == {number: {"sha256": word} for number, word in enumerate(sums)}
    going, go = threading.Event(), threading.Event()
    hash_file = checksums.hash_file
    monkeypatch.setattr(checksums, "hash_file", lambda task: (going.set(), go.wait(9), hash_file(task))[2])
    early = checksums.EarlyChecksums([str(path) for path in files])
    going.wait(9)
    assert early.stop() == 1  # the one at hand is waited for, the others are the workers'
    go.set()
    assert early.results() == {0: {"sha256": sums[0]}}
    early = checksums.EarlyChecksums([str(tmp_path / "none")])
    early._thread.join()
    with pytest.raises(FileNotFoundError, match="none"):
        assert early.stop() == 1 and early.results()


def test_workers_end_with_the_work(files):
    with Workers(2) as workers:
        started = list(workers.workers)
    assert all(worker.poll() is not None for worker in started)


def test_a_refusal_in_a_worker_leaves_nothing(build, save, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "PARALLEL", 1)
    monkeypatch.setattr(prepare, "WORKER_BYTES", 1)
    monkeypatch.setattr(prepare_scan, "TASK", 900)
    adata = build()
    values = adata.X.toarray()
    values[5, 3] = values[90, 2] = np.nan
    adata.X = values
    message = refusal(save(adata), tmp_path / "s", workers=2)
    assert "2 NaN" in message and "'cell5'" in message and "'g3'" in message

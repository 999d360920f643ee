"""Several processes compute what one does, and a run of theirs is stopped and taken up again."""

import shutil
import signal
import time

import numpy as np
import process_worker
import pytest
from real_processes import LIMIT, ROOT, ended, launched, start, words
from tiny_run import QUICKSTART, STEPS, flags, read_log, tiny_config

from perturbdiff_jax import train
from perturbdiff_jax.data.prepare import PrepareOptions, prepare
from perturbdiff_jax.data.simulate import CONTROL, SimulateOptions, write_simulated
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.run_setup import settle
from perturbdiff_jax.settings import from_config

WORKER = ROOT / "tests/process_worker.py"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A small store of sparse counts, so that packed batches have lengths of their own on every process."""
    folder = tmp_path_factory.mktemp("cells")
    sizes = {"cell_types": 2, "batches": 2, "perturbations": 5, "genes": 40, "cells_per_group": 12}
    options = SimulateOptions(**sizes, controls_per_context=16, library_size=25.0)
    write_simulated(options, folder / "cells.h5ad")
    keys = {"perturbation_key": "perturbation", "cell_type_key": "cell_type", "batch_key": "batch"}
    wanted = PrepareOptions(**keys, control=CONTROL, all_genes=True)
    prepared = prepare([folder / "cells.h5ad"], folder / "store", wanted, echo=lambda line: None)
    assert prepared.manifest["layout"] == "csr"
    return folder / "store"


@pytest.fixture(scope="module")
def alone(store):
    """Metrics and parameters, computed by this process on its eight devices."""
    return process_worker.trained(Store.open(store))


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_do_what_one_does(count, store, alone, tmp_path):
    done = launched(count, WORKER, store, tmp_path / "out.npz")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out.npz") as many:
        assert set(many) == set(alone) and {"loss/total 1", "grad_norm 0"} < set(alone)
        for name, one in alone.items():
            if name.startswith("["):  # a parameter
                np.testing.assert_allclose(many[name], one, atol=1e-5, err_msg=name)
            else:
                np.testing.assert_allclose(many[name], one, rtol=5e-5, err_msg=name)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The tiny job in two processes, one of which gets SIGTERM in the first steps: (workdir, what they said).

    Between the loop's beginning and its end are some seconds of compilation; how many depends on what else goes on.
    """
    for wait in (1, 4, 12):
        workdir = tmp_path_factory.mktemp("two") / "run"
        command = [
            "-u",
            "-m",
            "perturbdiff_jax.main",
            f"--config={QUICKSTART}",
            f"--workdir={workdir}",
            *flags(),
        ]
        started = start(2, *command)
        until = time.monotonic() + LIMIT
        while not (workdir / "logs/metrics.jsonl").exists() and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(wait)
        started[1].send_signal(signal.SIGTERM)
        said = ended(started)
        if any((workdir / "bundle/checkpoints").glob("[0-9]*")):
            break
    return workdir, said


def test_sigterm_to_one_process_saves_and_ends_all(interrupted):
    workdir, ((code, out, err), (other, silent, heard)) = interrupted
    assert code == other == 0, err + heard
    saved = [int(path.name) for path in (workdir / "bundle/checkpoints").iterdir()]
    assert len(saved) == 1 and 0 < saved[0] < STEPS
    assert f"Stopped by SIGTERM at step {saved[0]:,}; saved. Give the same command again to go on." in out
    assert (silent, words(heard)) == ("", [])
    assert not (workdir / "report.html").exists()


def assert_same_log(workdir, finished):
    log, whole = read_log(workdir), finished.log()
    assert [(row["step"], row["kind"]) for row in log] == [(row["step"], row["kind"]) for row in whole]
    for row, other in zip(log, whole):
        for name in set(row) - {"kind"}:
            assert row[name] == pytest.approx(other[name], rel=1e-4), (row["step"], name)


def test_one_process_goes_on_where_two_were_stopped(interrupted, finished, tmp_path, capsys):
    """Their first steps, and their checkpoint, are those of one process."""
    workdir = shutil.copytree(interrupted[0], tmp_path / "run")
    store = Store.open(workdir / "store")
    train.train(settle(from_config(tiny_config()), store), store, workdir)
    assert "Resuming at step" in capsys.readouterr().out
    assert_same_log(workdir, finished)


def test_two_processes_go_on_and_finish_the_job(interrupted, finished, tmp_path):
    workdir = shutil.copytree(interrupted[0], tmp_path / "run")
    job = ("-m", "perturbdiff_jax.main", f"--config={QUICKSTART}", f"--workdir={workdir}")
    done = launched(2, *job, *flags())
    assert done.returncode == 0, done.stderr
    assert "Resuming at step" in done.stdout
    assert_same_log(workdir, finished)
    made = {path.name for path in workdir.iterdir()}
    assert made == {path.name for path in finished.workdir.iterdir()}

"""Several real processes on this machine: how they find each other, who leads, and that they compute what one does."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings

import jax
import numpy as np
import process_worker
import pytest
from tiny_run import QUICKSTART, STEPS, flags, read_log, tiny_config

from perturbdiff_jax import processes, train
from perturbdiff_jax.data.prepare import PrepareOptions, prepare
from perturbdiff_jax.data.simulate import CONTROL, SimulateOptions, write_simulated
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.run_setup import settle
from perturbdiff_jax.settings import from_config

ROOT = pathlib.Path(__file__).resolve().parents[1]
WORKER = ROOT / "tests/process_worker.py"
LIMIT = 300  # seconds that any of these processes may take, on a machine with much else to do
CLUSTERS = (
    "JAX_",
    "SLURM_",
    "OMPI_",
    "TPU_",
    "MEGASCALE_",
    "KUBERNETES_",
    "JOB_COMPLETION_INDEX",
    "PERTURBDIFF_",
)


def environment(**more):
    """Of a process with this one's settings for compilation, whose devices and fellows are set in `more`."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(CLUSTERS)}
    cache = str(jax.config.jax_compilation_cache_dir or "")
    return known | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cache} | more


def start(count, *command):
    """`count` processes of four devices that know of each other; kill them in the end (see `ended`)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    given = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    given["XLA_FLAGS"] = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=environment(**given, JAX_PROCESS_ID=str(number)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]


def ended(started):
    """(exit code, stdout, stderr) of each process."""
    try:
        said = [one.communicate(timeout=LIMIT) for one in started]
        return [(one.returncode, *text) for one, text in zip(started, said)]
    finally:
        for one in started:
            one.kill()


def launched(count, *command):
    """Runs a command as `count` processes with eight devices in all, through launch/local.sh."""
    options = ["--processes", str(count), "--devices", str(8 // count)]
    return subprocess.run(
        ["bash", ROOT / "launch/local.sh", *options, "--", sys.executable, *map(str, command)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


def words(text):
    """Lines that are ours: neither the collectives' greetings nor the notes of JAX's own runtime."""
    return [line for line in text.splitlines() if "[Gloo]" not in line and ".cc:" not in line]


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


LEADING = """
import sys, time
from perturbdiff_jax import main, processes
from perturbdiff_jax.errors import RequestError

def job():
    print("at work", flush=True)
    if sys.argv[1] == "answers":
        time.sleep(3)
        return {"nan": float("nan"), "third": 1 / 3}
    raise RequestError("no.h5ad: no such file.") if sys.argv[1] == "refuses" else ZeroDivisionError("a fault")

def run():
    processes.start()
    processes.LEAVING = 1000
    if sys.argv[1] == "alone":
        if not processes.leads():
            raise RequestError("mine alone")
        time.sleep(30)
    print(processes.number(), processes.count(), processes.told(job), processes.lead(lambda: 7), file=sys.stderr)
    print(processes.agreed(processes.number() == 1), processes.agreed(False), file=sys.stderr)

sys.exit(processes.finish(main.guarded(run)))
"""


def test_the_lead_works_and_all_hear_of_it():
    (code, out, err), (other, silent, heard) = ended(start(2, "-c", LEADING, "answers"))
    assert code == other == 0, err + heard
    assert words(out) == ["at work"] and silent == ""
    told = "{'nan': nan, 'third': 0.3333333333333333}"
    assert words(err) == [f"0 2 {told} 7", "True False"]
    assert words(heard) == [f"process 1: 1 2 {told} None", "process 1: True False"]


@pytest.mark.parametrize("how, ends", [("refuses", 2), ("crashes", 1)])
def test_when_the_lead_fails_all_end_with_its_code(how, ends):
    (code, _, err), (other, silent, heard) = ended(start(2, "-c", LEADING, how))
    assert (code, other) == (ends, ends)
    assert err.splitlines()[-1] == {2: "error: no.h5ad: no such file.", 1: "ZeroDivisionError: a fault"}[ends]
    assert ends == 1 or len(err.splitlines()) == 1
    assert (silent, heard) == ("", "process 1: ends because process 0 does; it says why.\n")


def test_a_process_that_fails_alone_does_not_wait_for_the_others():
    began = time.monotonic()
    lead, other = start(2, "-c", LEADING, "alone")
    try:
        assert other.wait(timeout=LIMIT) == 2
        assert lead.poll() is None and time.monotonic() - began < 30
    finally:
        lead.kill()
        ((_, _, err),) = ended([other])
        lead.communicate()
    assert err == "process 1: error: mine alone\n"


def test_without_the_others_a_process_says_so():
    given = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:9", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    environ = environment(**given, PERTURBDIFF_START_TIMEOUT="1")
    command = [sys.executable, "-m", "perturbdiff_jax.main", "--config=none.py", "--workdir=nowhere"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=LIMIT)
    message = (
        "error: not all processes of this run met at 127.0.0.1:9 within 1 s (PERTURBDIFF_START_TIMEOUT).\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_NUM_PROCESSES=2: needs JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_COORDINATOR_ADDRESS=a:1: needs JAX_NUM_PROCESSES and"),
        (("a", "2", "0"), "JAX_COORDINATOR_ADDRESS=a: must be HOST:PORT"),
        (("a:99999", "2", "0"), "JAX_COORDINATOR_ADDRESS=a:99999: must be HOST:PORT"),
        (("a:1", "two", "0"), "JAX_NUM_PROCESSES=two: must be a whole number, at least 1"),
        (("a:1", "0", "0"), "JAX_NUM_PROCESSES=0: must be a whole number, at least 1"),
        (("a:1", "2", "2"), "JAX_PROCESS_ID=2: must be below JAX_NUM_PROCESSES=2"),
        (("a:1", "2", "-1"), "JAX_PROCESS_ID=-1: must be a whole number, at least 0"),
        ({"PERTURBDIFF_START_TIMEOUT": "soon"}, "PERTURBDIFF_START_TIMEOUT=soon: must be a whole number"),
    ],
)
def test_variables_that_make_no_sense(given, message):
    given = given if isinstance(given, dict) else dict(zip(processes.GIVEN, given))
    with pytest.raises(RequestError, match=f"^{message}"):
        processes.start(given)


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
MPI = {
    "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1",
    "OMPI_COMM_WORLD_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}

TPU = {"TPU_WORKER_ID": "0", "MEGASCALE_NUM_SLICES": "1"}


@pytest.mark.parametrize(
    "given, joins",
    [
        ({}, False),
        (dict(zip(processes.GIVEN, ("a:1", "1", "0"))), False),
        (dict(zip(processes.GIVEN, ("a:1", "2", "0"))), True),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "4"}, True),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, False),  # a shell inside a job of four tasks
        (SLURM | {"SLURM_NTASKS": "1"}, False),
        (MPI | {"OMPI_COMM_WORLD_SIZE": "2"}, True),
        (MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),  # some pod
        (TPU | {"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        (TPU | {"TPU_WORKER_HOSTNAMES": "localhost"}, False),
    ],
)
def test_only_a_cluster_of_several_processes_is_joined(given, joins, monkeypatch, capsys):
    from jax._src.clusters import cloud_tpu_cluster

    asked = []

    def initialize(**arguments):
        asked.append(arguments)
        raise RuntimeError("not in a test")

    for name in [name for name in os.environ if name.startswith(CLUSTERS)]:
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", "TPU_WORKER_ID" in given)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    if joins:
        with pytest.raises(SystemExit) as ends:
            processes.start()
        assert ends.value.code == 1
        assert capsys.readouterr().err == "error: cannot join the other processes: not in a test\n"
    else:
        with warnings.catch_warnings(action="error"):
            processes.start()
    assert bool(asked) == joins
    if joins and "JAX_PROCESS_ID" in given:
        assert (asked[0]["coordinator_address"], asked[0]["num_processes"], asked[0]["process_id"]) == (
            "a:1",
            2,
            0,
        )


def test_one_process_leads_itself(capsys):
    processes.start({})
    assert (processes.number(), processes.count(), processes.leads()) == (0, 1, True)
    assert processes.lead(lambda: 3) == processes.told(lambda: 3) == 3
    assert processes.agreed(True) is True and processes.agreed(False) is False
    assert processes.finish(2) == 2
    with pytest.raises(KeyError):
        processes.lead(lambda: {}["x"])


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The tiny job in two processes, one of which gets SIGTERM in the first steps: (workdir, what they said)."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    command = ["-u", "-m", "perturbdiff_jax.main", f"--config={QUICKSTART}", f"--workdir={workdir}", *flags()]
    started = start(2, *command)
    until = time.monotonic() + LIMIT
    while not (workdir / "logs/metrics.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(1)  # the loop has begun, and compiles its first step for some seconds
    started[1].send_signal(signal.SIGTERM)
    return workdir, ended(started)


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

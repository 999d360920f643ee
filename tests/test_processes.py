"""How processes find each other, who leads, and how they end."""

import os
import pathlib
import subprocess
import sys
import time
import warnings

import jax
import pytest
from real_processes import CLUSTERS, LIMIT, ended, environment, start, words

from perturbdiff_jax import process_environment, processes
from perturbdiff_jax.errors import RequestError

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
    given = given if isinstance(given, dict) else dict(zip(process_environment.GIVEN, given))
    with pytest.raises(RequestError, match=f"^{message}"):
        processes.start(given)


VIRTUAL = "--xla_force_host_platform_device_count="
WAITING = f"""
import os, sys
sys.path.insert(0, {str(pathlib.Path(__file__).parents[1])!r})
from perturbdiff_jax import main
sys.argv = ["main", "--config=none.py", "--workdir=nowhere"]
main.run()
import jax
jax.devices()
names = [open(f"/proc/self/task/{{one}}/comm").read().strip() for one in os.listdir("/proc/self/task")]
print(len(jax.devices()), names.count("tf_XLAEigen"))
"""


@pytest.mark.parametrize(
    "given, threads",
    [
        ({}, None),
        ({"XLA_FLAGS": VIRTUAL + "1"}, None),
        ({"JAX_NUM_PROCESSES": "1"}, None),
        ({"JAX_NUM_PROCESSES": "2"}, 8),
        ({"XLA_FLAGS": VIRTUAL + "4"}, 32),
        ({"XLA_FLAGS": f"{VIRTUAL}8 {VIRTUAL}2 --xla_dump_to=x"}, 16),  # the last one counts
        ({"XLA_FLAGS": VIRTUAL + "4", "NPROC": "3"}, 3),  # the user's own
    ],
)
def test_devices_on_the_cpu_get_a_thread_for_each_collective(given, threads, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    environ = dict(given)
    process_environment.enough_threads(environ)
    assert environ == (given if threads is None else given | {"NPROC": str(threads)})
    monkeypatch.setattr(os, "cpu_count", lambda: 40)
    environ = {"XLA_FLAGS": VIRTUAL + "4"}
    process_environment.enough_threads(environ)
    assert environ["NPROC"] == "40"


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
def test_the_main_door_sees_to_it_before_the_devices_are_there():
    environ = environment(XLA_FLAGS=VIRTUAL + "6")
    del environ["NPROC"]
    done = subprocess.run(
        [sys.executable, "-c", WAITING], env=environ, capture_output=True, text=True, timeout=LIMIT
    )
    devices, threads = map(int, done.stdout.split())
    assert devices == 6 and threads >= 48, done.stderr


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
        (dict(zip(process_environment.GIVEN, ("a:1", "1", "0"))), False),
        (dict(zip(process_environment.GIVEN, ("a:1", "2", "0"))), True),
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

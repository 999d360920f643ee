"""What a process is told of the others of its run: variables that launch/ sets, or the cluster that JAX knows.

And the one variable it sets itself: how many threads XLA gets where several CPU devices wait for each other.
"""

import contextlib
import os
import re
from collections.abc import Mapping, MutableMapping
from typing import Any

from perturbdiff_jax.errors import RequestError

GIVEN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
TIMEOUT = "PERTURBDIFF_START_TIMEOUT"  # seconds that processes wait for each other at the start
THREADS = "NPROC"  # how many threads XLA's pool on the CPU gets at least
# A virtual CPU device blocks a thread for each collective that it waits in: at most one for each group of mesh axes
# (seven with three axes). One more computes.
THREADS_PER_DEVICE = 8
# How many tasks were really started. What JAX reads instead is the size of the job, also in a shell inside the job.
STARTED = {"slurm": "SLURM_STEP_NUM_TASKS", "ompi": "OMPI_COMM_WORLD_SIZE"}


def arguments(environ: Mapping[str, str]) -> dict[str, Any]:
    """What the variables GIVEN say, as arguments of jax.distributed.initialize; empty when there are none.

    Raises:
      RequestError: some without the others, an address or numbers that make no sense.
    """
    there = [name for name in GIVEN if environ.get(name)]
    if not there or there == GIVEN[:1]:  # the address alone: JAX takes the rest from the cluster
        return {}
    if missing := [name for name in GIVEN if name not in there]:
        raise RequestError(f"{there[0]}={environ[there[0]]}: needs {' and '.join(missing)} as well.")
    address = environ[GIVEN[0]]
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise RequestError(f"{GIVEN[0]}={address}: must be HOST:PORT.")
    processes = whole_number(environ, GIVEN[1], None, least=1)
    process = whole_number(environ, GIVEN[2], None, least=0)
    if process >= processes:
        raise RequestError(f"{GIVEN[2]}={process}: must be below {GIVEN[1]}={processes}.")
    return {"coordinator_address": address, "num_processes": processes, "process_id": process}


def whole_number(environ: Mapping[str, str], name: str, default: int | None, *, least: int) -> int:
    """The variable `name`, or `default`; RequestError for what is no whole number, or below `least`."""
    text = environ.get(name, "")
    if not text and default is not None:
        return default
    if not text.isdecimal() or int(text) < least:
        raise RequestError(f"{name}={text}: must be a whole number, at least {least}.")
    return int(text)


def enough_threads(environ: MutableMapping[str, str] = os.environ) -> None:
    """Gives each of several CPU devices the threads it may need; to be called before JAX brings up its devices.

    XLA takes as many threads as there are devices or cores, and a device may block more than one: collectives over
    different axes of a mesh then wait for partners that get none, and after 40 s XLA aborts the process. A number that
    is set already stays.
    """
    found = re.findall(r"--xla_force_host_platform_device_count=(\d+)", environ.get("XLA_FLAGS", ""))
    count = int(found[-1]) if found else 1
    if count > 1 or environ.get(GIVEN[1], "1") != "1":
        environ.setdefault(THREADS, str(max(count * THREADS_PER_DEVICE, os.cpu_count() or 1)))


def cluster_size(environ: Mapping[str, str]) -> int:
    """Number of processes of the cluster that JAX finds this one in; 1 without a cluster, and for a shell in one.

    Raises:
      RequestError: variables of the cluster that make no sense.
    """
    import jax  # noqa: F401  (the clusters are known to JAX once it is there)
    from jax._src.clusters import ClusterEnv

    for cluster in ClusterEnv._cluster_types:
        if cluster.opt_in_only_method or environ.get(STARTED.get(cluster.name, "")) == "1":
            continue
        if cluster.__name__ == "K8sCluster" and "JOB_COMPLETION_INDEX" not in environ:
            continue  # some other pod: JAX would ask the cluster's master about it and fail
        with contextlib.suppress(OSError):  # a TPU machine without a metadata server is alone
            if not cluster.is_env_present():
                continue
            try:
                return cluster.get_process_count()
            except (ValueError, KeyError, RuntimeError, OSError) as error:
                raise RequestError(f"the variables of this {cluster.name} job: {error}") from None
    return 1

"""Real processes of one run on this machine, for tests: started by hand, or through launch/local.sh."""

import os
import pathlib
import socket
import subprocess
import sys

import jax

ROOT = pathlib.Path(__file__).resolve().parents[1]
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

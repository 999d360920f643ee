"""Where a run takes place, for its record: versions, code, devices, machine, command.

Of the environment's variables only those named here are recorded: others may hold what must not be in a file.
"""

import contextlib
import importlib.metadata
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jax

PACKAGE = Path(__file__).resolve().parents[1]
BESIDES = ("perturbdiff_jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "cell-eval")
VARIABLES = (
    "XLA_FLAGS",
    "LIBTPU_INIT_ARGS",
    "JAX_PLATFORMS",
    "JAX_ENABLE_X64",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "NPROC",
)


def environment() -> dict[str, Any]:
    """The facts of this process and of all devices of the run; of the code, what can be found out. Never fails.

    Starts JAX's backend if nothing has yet: with several processes, jax.distributed goes first.
    """
    kinds = Counter(device.device_kind for device in jax.devices())
    facts = {
        "versions": versions(),
        "backend": jax.default_backend(),
        "devices": ", ".join(f"{count} x {kind}" for kind, count in kinds.items()),
        "processes": jax.process_count(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "machine": f"{platform.system()} {platform.machine()}, {cores()} cores",
        "cores": cores(),
        "command": shlex.join(sys.argv),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }
    code = git_state(PACKAGE)
    return facts | ({"git": code} if code else {})


def versions() -> dict[str, str]:
    """Versions of Python, of this package, of what it requires and of what else decides numbers, as installed."""
    found = {"python": platform.python_version()}
    names = list(BESIDES)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for line in importlib.metadata.requires("perturbdiff_jax") or []:
            if "extra ==" not in line:
                names.append(re.match(r"[\w.-]+", line)[0])
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def git_state(package: Path) -> dict[str, Any] | None:
    """`commit` of the checkout that tracks the package, and `dirty`: whether a file of the package differs from it.

    None for an installed package (also where some other project's checkout lies around it) and without git.
    """
    try:
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        commit = _git(package, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(package, "status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    # Without the variables by which git is told of another repository, and without touching this one's index.
    told = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=told)
    return done.stdout.strip()

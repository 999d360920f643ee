"""How this process keeps the host's memory: what is freed stays at hand for the next allocation.

A step on CPU devices takes its scratch (0.6 GB at full size) from the C library and gives it back. By default that
returns it to the system at once, and the next step meets it as 150,000 pages that have to be found and zeroed again:
a twelfth of its CPU time. Accelerators have allocators of their own, and there the threads of the loader are better
off with a heap each; so this is for machines whose JAX knows CPUs only.
"""

import ctypes
import importlib.metadata
import importlib.util
import os
import platform

# Parameters of mallopt(3), and what they are set to.
GLIBC = {
    "M_ARENA_MAX": (-8, 1),  # one heap for all threads: the other kind cannot grow past 64 MB
    "M_MMAP_MAX": (-4, 0),  # large pieces come from that heap too, not from mappings of their own
    "M_TRIM_THRESHOLD": (-1, -1),  # and its free end is not given back
}


def keep_freed() -> bool:
    """Tells the C library to keep what is freed until the process ends; False where it is not glibc.

    To be called before other threads are started. The process holds its peak from then on.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(number, value) == 1 for number, value in GLIBC.values())


def only_cpus() -> bool:
    """Whether JAX will run on CPUs here, as far as can be told without starting it."""
    chosen = os.environ.get("JAX_PLATFORMS")
    if chosen:
        return chosen == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and not any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))

"""How this process keeps the host's memory: what is freed stays at hand for the next allocation.

A step on CPU devices takes its scratch (1 GB at full size) from the C library and gives it back. By default that
returns it to the system at once, and the next step meets it as 230,000 pages that have to be found and zeroed again:
about a tenth of its CPU time. Accelerators have allocators of their own; for them this changes nothing.
"""

import ctypes
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

"""How many threads the scoring may use: one for small work, all for large.

Threads in small parallel regions wait for each other more than they compute. On two cores that other
processes kept busy, one thread was 30 (BLAS) and 3 times (pdex) faster for groups of 64 cells x 500 genes.
"""

import contextlib
import os

LARGE = 20_000_000  # values (cells x genes) of a context from which threads pay


def numba_threads(values: int) -> int:
    """Threads for pdex on `values` numbers, at most as many as numba was started with."""
    import numba

    if values < LARGE:
        return 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, numba.config.NUMBA_NUM_THREADS))


def blas_threads(values: int) -> contextlib.AbstractContextManager:
    """One BLAS thread for small work, if threadpoolctl is there (it comes with cell-eval)."""
    if values >= LARGE:
        return contextlib.nullcontext()
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return contextlib.nullcontext()
    return threadpool_limits(limits=1, user_api="blas")

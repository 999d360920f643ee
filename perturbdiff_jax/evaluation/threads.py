"""How many threads the scoring may use, and how it uses them: one for small work, all for large.

Threads in small parallel regions wait for each other more than they compute, on a busy machine many times over. So
BLAS has one thread, and perturbations are dealt to threads, each of which does the whole of its own.
"""

import contextlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item, Found = TypeVar("Item"), TypeVar("Found")
LARGE = 20_000_000  # values (cells x genes) of a context from which threads pay


def threads(values: int) -> int:
    """Threads for work on `values` numbers: one, or the CPUs that this process may use."""
    if values < LARGE:
        return 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return usable or 1


def mapped(work: Callable[[Item], Found], items: Iterable[Item], values: int) -> list[Found]:
    """[work(item) for item in items], by several threads where there is much to do (numpy lets them run)."""
    count = threads(values)
    if count == 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, items))


def one_blas_thread() -> contextlib.AbstractContextManager:
    """One BLAS thread, if threadpoolctl is there (it comes with cell-eval)."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return contextlib.nullcontext()
    return threadpool_limits(limits=1, user_api="blas")

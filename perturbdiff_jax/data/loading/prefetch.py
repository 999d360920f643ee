"""Batches computed ahead of the step that asks for them, by grain in threads of this process."""

import sys
from collections.abc import Iterator

from perturbdiff_jax.array_types import Batch, PackedBatch


def prefetch(
    source, start_step: int = 0, *, stop_step: int | None = None, num_threads: int = 1, buffer: int = 2
) -> Iterator[tuple[int, Batch | PackedBatch]]:
    """(step, source[step]) for start_step, start_step + 1, ..., computed ahead by grain in threads.

    Args:
        source: anything with `source[step]`, safe to ask from several threads.
        start_step: first step; resuming needs no other state.
        stop_step: step before which to stop; None never stops.
        num_threads: threads that compute batches. More than one gains little: the row gather holds the GIL.
        buffer: batches held ready, at least num_threads.

    Closing the iterator early (`.close()`, or dropping it) drops the batches ahead; an error raised by the
    source is raised again at its step.
    """
    import grain.python as grain  # takes half a second, and only training needs it

    steps = grain.MapDataset.range(start_step, sys.maxsize if stop_step is None else stop_step)
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(buffer, num_threads))
    ahead = iter(steps.map(lambda step: (int(step), source[int(step)])).to_iter_dataset(options))
    try:
        yield from ahead
    finally:
        ahead.close()

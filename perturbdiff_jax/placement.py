"""From batches of this process to global arrays on the mesh, a step ahead of the device.

Every process makes the sets that its own devices hold. Packed batches come in several lengths, and all processes have
to hand over the same: what each needs for a step travels round while the step before the last is computed, so that
nobody waits for it.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from perturbdiff_jax import sharding
from perturbdiff_jax.array_types import Batch, PackedBatch
from perturbdiff_jax.data.loading.prefetch import prefetch

LENGTHS = ("data", "indices", "row_nnz", "scale")  # arrays of a packed batch whose second axis varies
AHEAD = 2  # steps between saying what length is needed and needing it


def placed(source, mesh: Mesh, first: int, stop: int) -> Iterator[tuple[int, Batch | PackedBatch]]:
    """Yields (step, batch) with global arrays for the steps from `first` to before `stop`.

    `source` yields this process's rows of a batch (see sharding.rows_here), run after run. The consumer dispatches its
    step and asks for the next batch; closing the iterator stops the threads behind it.
    """
    ahead = prefetch(source, first, stop_step=stop)
    try:
        yield from _alone(ahead, mesh) if jax.process_count() == 1 else _together(ahead, mesh)
    finally:
        ahead.close()


def _alone(ahead: Iterator, mesh: Mesh) -> Iterator[tuple[int, Batch | PackedBatch]]:
    place = sharding.batch_sharding(mesh)
    for step, batch in ahead:
        yield step, jax.device_put(batch, place)


def _together(ahead: Iterator, mesh: Mesh) -> Iterator[tuple[int, Batch | PackedBatch]]:
    lengths, waiting = _Lengths(mesh), collections.deque()
    for step, batch in itertools.chain(ahead, [(None, None)] * AHEAD):
        if batch is not None:
            lengths.say(step, batch)
        waiting.append((step, batch))
        if len(waiting) > AHEAD:
            step, batch = waiting.popleft()
            if batch is not None:  # a run that is shorter than the look-ahead
                yield step, from_local(lengthened(batch, lengths.agreed(step)), mesh)


def length_of(batch: Batch | PackedBatch) -> tuple[int, int]:
    """(second axis of `data`, cells of a run) of a packed batch; (0, 0) of a dense one, which has one shape."""
    if not isinstance(batch, PackedBatch):
        return 0, 0
    rows = batch.row_nnz if batch.row_nnz is not None else batch.data
    return batch.data.shape[1], rows.shape[1]


def lengthened(batch: Batch | PackedBatch, length: tuple[int, int]) -> Batch | PackedBatch:
    """The packed batch with its arrays filled up with zeros to (values, cells) of a run; dense ones as they are."""
    if not isinstance(batch, PackedBatch):
        return batch
    values, cells = length
    longer = {"data": values, "indices": values, "row_nnz": cells, "scale": cells}

    def filled(name: str):
        array = getattr(batch, name)
        if array is None or array.shape[1] == longer[name]:
            return array
        missing = longer[name] - array.shape[1]
        return np.pad(array, [(0, 0), (0, missing)] + [(0, 0)] * (array.ndim - 2))

    return dataclasses.replace(batch, **{name: filled(name) for name in LENGTHS})


def from_local(batch: Batch | PackedBatch, mesh: Mesh) -> Batch | PackedBatch:
    """Global arrays of which this process holds the rows that its devices need, in ascending order.

    Sets and runs of sets are both dealt to the devices in their order, so one rule places every array.
    """
    place = sharding.batch_sharding(mesh)
    runs = sharding.runs_of(mesh)
    here = [span.start for span in sharding.rows_here(mesh, runs)]

    def array(local: np.ndarray) -> jax.Array:
        each = len(local) // len(here)
        shape = (runs * each, *local.shape[1:])

        def rows(index: tuple[slice, ...]) -> np.ndarray:
            position = here.index((index[0].start or 0) // each)
            return local[position * each : (position + 1) * each]

        return jax.make_array_from_callback(shape, place, rows)

    return jax.tree.map(array, batch)


def gathered(tree: Any, mesh: Mesh) -> Any:
    """The tree of global arrays whole, on this process's first device. All processes have to ask for it."""
    whole = jax.jit(lambda tree: tree, out_shardings=sharding.replicated(mesh))(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)


class _Lengths:
    """The largest length that any process needs, for the steps to come.

    A tiny program over all devices, queued behind the training step that was dispatched last: by the time its answer
    is asked for, the device has another step to do.
    """

    def __init__(self, mesh: Mesh):
        # One row for every process: its first device brings what it needs, the others nothing.
        self._every = NamedSharding(mesh, PartitionSpec(sharding.AXES))
        self._largest = jax.jit(
            lambda needs: needs.max(axis=0), out_shardings=sharding.replicated(mesh), in_shardings=self._every
        )
        self._devices = mesh.size
        self._waiting: dict[int, jax.Array] = {}

    def say(self, step: int, batch: Batch | PackedBatch) -> None:
        """Sends round what this process needs for `step`."""
        if isinstance(batch, PackedBatch):
            need = np.array([length_of(batch)], np.int32)
            needs = jax.make_array_from_callback((self._devices, 2), self._every, lambda index: need)
            self._waiting[step] = self._largest(needs)

    def agreed(self, step: int) -> tuple[int, int]:
        """What all processes need for `step`; waits for the answer."""
        if step not in self._waiting:
            return 0, 0
        values, cells = np.asarray(self._waiting.pop(step).addressable_data(0))
        return int(values), int(cells)

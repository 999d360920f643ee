"""Control cells in memory for the streamed tier: whole groups, or a part of each when all would be too many.

Many sets ask for cells of few control groups, in scattered order; read from the store one by one they would decide the
loader's speed. So a group is held as a block, and the least recently used ones go when the budget is spent.
"""

import collections
import threading

import numpy as np

from perturbdiff_jax.data.loading.reading import Reading
from perturbdiff_jax.data.loading.sampler import Sampler, joined_ranges


def control_bytes(groups, bytes_per_cell: float, most: float = np.inf) -> float:
    """Bytes of the control groups' cells, of at most `most` cells each.

    A group that serves only itself needs no room: its cells are read as targets.

    Args:
        groups: group table (`size`, `control`).
        bytes_per_cell: of a cell in memory, on average.
    """
    control = np.asarray(groups.control, np.int64)
    serving = np.unique(control[control != np.arange(len(control))])
    return float(np.minimum(np.asarray(groups.size, np.int64)[serving], most).sum() * bytes_per_cell)


def slab_cells(groups, *, cells_per_set: int, bytes_per_cell: float, budget: float) -> int | None:
    """How many cells an epoch uses of a control group at most; None where all control cells fit the budget.

    The largest power of two, not below 4 S, with which the parts of all control groups fit `budget` bytes. Depends on
    the store and the options alone, because it decides what is drawn.
    """
    if control_bytes(groups, bytes_per_cell) <= budget:
        return None
    cells = 1 << (4 * cells_per_set - 1).bit_length()
    while control_bytes(groups, bytes_per_cell, 2 * cells) <= budget:
        cells *= 2
    return cells


class ControlPool:
    """Blocks of control groups, read when first asked for and kept while they fit. Safe for several threads."""

    def __init__(self, store, sampler: Sampler, make_block, *, bytes_per_cell: float, budget: float):
        """`make_block`: RawCells -> block with `nbytes`; `budget` in bytes; the others as for `slab_cells`."""
        self._store, self._sampler, self._make_block = store, sampler, make_block
        self._bytes_per_cell, self._budget = bytes_per_cell, budget
        self._starts = np.asarray(store.groups.start, np.int64)
        self._sizes = np.asarray(store.groups.size, np.int64)
        self._lock = threading.Lock()
        self._readings: collections.OrderedDict[tuple[int, int], Reading] = collections.OrderedDict()
        self._bytes: dict[tuple[int, int], int] = {}  # of each block; expected ones until it is there
        self._total = 0  # of them all
        self._arrived: set[tuple[int, int]] = set()

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks held and on their way."""
        with self._lock:
            return self._total

    def key(self, group: int, epoch: int) -> tuple[int, int]:
        """What an epoch's sets need of a control group: groups used whole are the same in every epoch."""
        limit = self._sampler.slab_cells
        return group, (epoch if limit is not None and self._sizes[group] > limit else -1)

    def ask(self, keys) -> list[Reading]:
        """Begins to read what is not there yet; returns one Reading per key. Others go when all are too many."""
        with self._lock:
            readings = []
            for key in keys:
                if key not in self._readings:
                    self._readings[key] = self._read(*key)
                self._readings.move_to_end(key)
                readings.append(self._readings[key])
            self._make_room(set(keys))
            return readings

    def blocks(self, keys: list[tuple[int, int]]) -> list:
        """The blocks of the keys, waited for. A failed read is tried again the next time."""
        blocks = []
        for key, reading in zip(keys, self.ask(keys)):
            try:
                blocks.append(reading.block())
            except Exception:
                with self._lock:
                    if self._readings.get(key) is reading:
                        self._drop(key)
                raise
        with self._lock:
            for key, block in zip(keys, blocks):
                if key in self._readings and key not in self._arrived:
                    self._arrived.add(key)
                    self._count(key, block.nbytes)
            self._make_room(set(keys))
        return blocks

    def _make_room(self, wanted: set) -> None:
        """Lets the least recently used blocks go, but not the wanted ones."""
        if self._total <= self._budget:
            return
        for key in [key for key in self._readings if key not in wanted]:
            self._drop(key)
            if self._total <= self._budget:
                return

    def _drop(self, key: tuple[int, int]) -> None:
        del self._readings[key]
        self._arrived.discard(key)
        self._total -= self._bytes.pop(key)

    def _count(self, key: tuple[int, int], nbytes: int) -> None:
        self._total += nbytes - self._bytes.get(key, 0)
        self._bytes[key] = nbytes

    def _read(self, group: int, epoch: int) -> Reading:
        begin, count = self._sampler.slabs(np.array([group]), epoch)
        self._count((group, epoch), int(count[0] * self._bytes_per_cell))
        at = slice(group, group + 1)
        ranges = joined_ranges(self._starts[at], begin, count, self._sizes[at])
        return Reading(self._store, ranges, self._make_block)

"""Few rows of each of many groups: read with the rows between them, a stage after the other, and those dropped.

Every range that is asked for costs as much as reading some THROUGH rows more, and cells are decoded in chunks of about
as many; so ranges that lie closer together are read as one. What is read for nothing is there for a stage only.
"""

import dataclasses
import threading
from collections.abc import Callable, Sequence

import numpy as np

from perturbdiff_jax.data.raw_cells import RawCells, concatenated
from perturbdiff_jax.data.storage.fetch import Fetch, rearranged

THROUGH = 160  # rows between two ranges that are read rather than left out
STAGE_BYTES = 2**25  # of what is read together, about


@dataclasses.dataclass(frozen=True)
class Stage:
    """Reads (part, start, stop), and where in their rows the pieces lie; None where they are all of them."""

    reads: list[tuple[int, int, int]]
    pieces: tuple[np.ndarray, np.ndarray] | None  # first row, number of rows


def stages_of(part: np.ndarray, row: np.ndarray, size: np.ndarray, *, most: int) -> list[Stage]:
    """How to read pieces, size[i] rows from row[i] of part[i] on, ascending and apart, int64 [n] with n at least 1.

    A stage reads `most` rows or, where its last piece is longer, more.
    """
    between = np.full(len(row), -1, dtype=np.int64)
    between[1:] = np.where(part[1:] == part[:-1], row[1:] - (row[:-1] + size[:-1]), -1)
    joined = (between >= 0) & (between <= THROUGH)
    place = np.cumsum(np.where(joined, between, 0) + size) - size
    _, number = np.unique(place // most, return_inverse=True)
    joined[1:] &= number[1:] == number[:-1]
    place = np.cumsum(np.where(joined, between, 0) + size) - size
    stages = []
    for low, high in zip(*_borders(np.append(True, number[1:] != number[:-1]))):
        heads, ends = _borders(~joined[low:high])
        inside = slice(low, high)
        stops = (row + size)[inside][ends - 1]
        reads = list(zip(part[inside][heads].tolist(), row[inside][heads].tolist(), stops.tolist()))
        first = place[inside] - place[low]
        whole = (first == np.cumsum(size[inside]) - size[inside]).all()
        stages.append(Stage(reads, None if whole else (first, size[inside])))
    return stages


def _borders(is_head: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(first, past the last) of the stretches that begin where `is_head`."""
    heads = np.flatnonzero(is_head)
    return heads, np.append(heads[1:], len(is_head))


class StagedFetch:
    """Rows of several stages, of which one is read ahead. Safe to share between threads."""

    def __init__(
        self,
        stages: Sequence[Stage],
        ask: Callable[[Stage], Fetch],
        order: tuple[np.ndarray, np.ndarray] | None,
    ):
        """Asks for the first stage. `order`: pieces of the result among the rows of all stages, None: as they are."""
        self._stages, self._ask, self._order = list(stages), ask, order
        self._lock = threading.Lock()
        self._ahead: Fetch | None = ask(self._stages[0])
        self._cells: RawCells | None = None

    def result(self) -> RawCells:
        """The cells, waiting for them. Raises RequestError when they cannot be read."""
        with self._lock:
            if self._cells is None:
                done, current = [], self._ahead
                for stage in self._stages[1:]:
                    following = self._ask(stage)
                    done.append(current.result())
                    current = following
                cells = concatenated([*done, current.result()])
                self._cells = cells if self._order is None else rearranged(cells, *self._order)
                self._ahead = self._order = None
            return self._cells

"""Lanes: how the sets of the endless stream of epochs are dealt, so that any number of hosts serves the same batches.

In every epoch the segments stand in a line, in a new order, and so do their N sets. L lanes cut the line into L
stretches; before epoch e lane l has served

    C(l, e) = floor((e N + l) / L)    sets,

so it takes C(l, e + 1) - C(l, e) sets of epoch e. These add up to N (Hermite's identity), and no lane is ever more than
one set ahead of another. A stretch is read in windows: whole segments, cut where the cells standing before them in the
line, filling included, pass a multiple of W. Everything here is arithmetic on counts.
"""

import bisect
import dataclasses
import functools

import numpy as np

from perturbdiff_jax.data.loading.draws import SEGMENTS, fold, shuffled
from perturbdiff_jax.data.loading.index import SetIndex
from perturbdiff_jax.errors import RequestError

LARGEST = 64  # lanes: more would give small stretches, which read segments on their borders twice
EPOCHS_KEPT = 4  # orders of segments in memory; lanes may stand in two epochs, and threads ask ahead


def lane_count(sets_per_batch: int) -> int:
    """L, the largest divisor of B that is at most LARGEST; every lane gives B / L sets to a batch.

    Raises RequestError when B is below 1.
    """
    if sets_per_batch < 1:
        raise RequestError(f"sets_per_batch = {sets_per_batch}: must be at least 1.")
    return next(n for n in range(min(LARGEST, sets_per_batch), 0, -1) if sets_per_batch % n == 0)


@dataclasses.dataclass(frozen=True)
class Lanes:
    """L lanes over an epoch of N sets. Positions count a lane's own sets from 0, over all epochs."""

    n_sets: int
    count: int

    def first(self, lane: int, epoch: int) -> int:
        """C(l, e), the lane's first position in an epoch."""
        return (epoch * self.n_sets + lane) // self.count

    def epoch_of(self, lane: int, position: int) -> int:
        """The epoch e with C(l, e) <= position < C(l, e + 1)."""
        return -(-((position + 1) * self.count - lane) // self.n_sets) - 1

    def stretch(self, lane: int, epoch: int) -> tuple[int, int]:
        """The lane's sets in the epoch's line, from and to."""
        begin = self._before(lane, (epoch + 1) * self.n_sets) - self._before(lane, epoch * self.n_sets)
        return begin, begin + self.first(lane, epoch + 1) - self.first(lane, epoch)

    def _before(self, lane: int, served: int) -> int:
        """Sum over the lanes j below `lane` of floor((served + j) / L)."""
        whole, rest = divmod(served, self.count)
        return lane * whole + max(0, lane - (self.count - rest))


@dataclasses.dataclass(frozen=True)
class Window:
    """Sets of one lane that are planned, and read, together.

    `spans` [n, 2] int64: ranges of sets, numbered as in the unshuffled epoch, one per segment.
    """

    lane: int
    epoch: int
    number: int  # among the windows of the lane's stretch
    first: int  # position of its first set in the lane
    stop: int
    spans: np.ndarray


class Lines:
    """The windows of every lane in every epoch, a pure function of (index, seed, lanes, window_cells)."""

    def __init__(self, index: SetIndex, lanes: Lanes, *, seed: int, window_cells: int, shuffle: bool = True):
        """`window_cells` is W; with `shuffle=False` segments stay in the store's order."""
        self.lanes = lanes
        self._seed, self._cells, self._shuffle = int(seed), window_cells, shuffle
        self._first_set = index.first_set[index.first_piece]
        self._segment_cells = np.diff(self._first_set) * index.cells_per_set
        # Pure functions behind the caches.
        self._line = functools.lru_cache(maxsize=EPOCHS_KEPT)(self._line)
        self._cuts = functools.lru_cache(maxsize=EPOCHS_KEPT * lanes.count)(self._cuts)

    def window(self, lane: int, position: int) -> Window:
        """The window that holds the lane's set at `position` >= 0."""
        epoch = self.lanes.epoch_of(lane, position)
        begin, _ = self.lanes.stretch(lane, epoch)
        first = self.lanes.first(lane, epoch)
        order, before, _ = self._line(epoch)
        segments, places = self._cuts(lane, epoch)
        number = bisect.bisect_right(places, begin + position - first) - 1
        low, high = places[number], places[number + 1]
        here = slice(segments[number], segments[number + 1])
        inside = order[here]
        # Sets before a stretch's beginning and after its end belong to the neighbouring lanes.
        starts = self._first_set[inside] + np.maximum(low - before[here], 0)
        ends = self._first_set[inside + 1] - np.maximum(before[here] + self._sets(inside) - high, 0)
        spans = np.stack([starts, ends], axis=1)
        return Window(lane, epoch, number, first + low - begin, first + high - begin, spans)

    def _sets(self, segments: np.ndarray) -> np.ndarray:
        return self._first_set[segments + 1] - self._first_set[segments]

    def _line(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(segments in the epoch's order, sets before each and all sets, windows' worth of cells before each)."""
        n = len(self._segment_cells)
        order = shuffled(fold(self._seed, SEGMENTS, epoch), n) if self._shuffle else np.arange(n)
        before = np.concatenate([[0], np.cumsum(self._sets(order))])
        cells = self._segment_cells[order]
        return order, before, (np.cumsum(cells) - cells) // self._cells

    def _cuts(self, lane: int, epoch: int) -> tuple[list[int], list[int]]:
        """Where the lane's windows begin, and the end: (places among the segments, sets) in the epoch's line."""
        begin, end = self.lanes.stretch(lane, epoch)
        _, before, passed = self._line(epoch)
        low = int(np.searchsorted(before, begin, side="right")) - 1
        high = int(np.searchsorted(before, end))
        inner = (np.flatnonzero(np.diff(passed[low:high])) + low + 1).tolist()
        return [low, *inner, high], [begin, *before[inner].tolist(), end]

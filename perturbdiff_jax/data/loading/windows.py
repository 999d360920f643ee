"""The planned windows of the lanes, a few of each kept: planned, and where cells are streamed also read, once.

Keeping them only saves work: a window is a pure function of its lane and position, so steps may be asked for in any
order and from several threads.
"""

import threading

from perturbdiff_jax.data.loading.lanes import Lines, Window
from perturbdiff_jax.data.loading.reading import Reading
from perturbdiff_jax.data.loading.sampler import Plan, Sampler

KEPT = 3  # windows of a lane: the one in use, the next, and one for threads that are behind
# Share of a window that is used when the next one begins to be read: then the batches before it are through.
AHEAD = 0.25


class PlannedWindow:
    """A window, its plan and (streamed) its cells; the latter two are there when first asked for."""

    def __init__(self, window: Window, sampler: Sampler, reading: Reading | None):
        self.window, self.reading = window, reading
        self.controls_asked = False  # whether its control cells are on their way, too
        self._sampler, self._lock, self._plan = sampler, threading.Lock(), None

    def plan(self) -> Plan:
        """Where all cells of the window's sets stand."""
        with self._lock:
            if self._plan is None:
                self._plan = self._sampler.plan(self.window)
            return self._plan

    def wants_next(self, position: int) -> bool:
        """Whether the next window is due when `position` is used."""
        window = self.window
        return position - window.first >= AHEAD * (window.stop - window.first - 1)


class Windows:
    """Windows by lane and position."""

    def __init__(self, lines: Lines, sampler: Sampler, *, store=None, make_block=None):
        """With a `store`, a window's cells are read as a block as soon as it is asked for."""
        self._lines, self._sampler = lines, sampler
        self._store, self._make_block = store, make_block
        lanes = range(lines.lanes.count)
        self._kept: list[list[PlannedWindow]] = [[] for _ in lanes]  # of each lane, the last used at the end
        self._locks = [threading.Lock() for _ in lanes]

    def at(self, lane: int, position: int) -> PlannedWindow:
        """The window that holds the lane's set at `position`; begins to read it, does not wait."""
        with self._locks[lane]:
            kept = self._kept[lane]
            for number, planned in enumerate(kept):
                if planned.window.first <= position < planned.window.stop:
                    if number + 1 < len(kept):
                        kept.append(kept.pop(number))
                    return planned
            window = self._lines.window(lane, position)
            reading = None
            if self._store is not None:
                reading = Reading(self._store, self._sampler.ranges(window), self._make_block)
            planned = PlannedWindow(window, self._sampler, reading)
            kept.append(planned)
            del kept[:-KEPT]
            return planned

    def drop(self, lane: int, planned: PlannedWindow) -> None:
        """Forgets a window whose read failed, so that it is read again when asked for again."""
        with self._locks[lane]:
            if planned in self._kept[lane]:
                self._kept[lane].remove(planned)

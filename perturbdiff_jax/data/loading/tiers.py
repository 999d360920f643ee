"""Where the cells of planned sets are: the store in memory (resident), or windows read while training (streamed).

Both say for every cell in which block it lies and in which row of it; what is drawn does not depend on them.
"""

import itertools

import numpy as np

from perturbdiff_jax.data.loading.blocks import joined
from perturbdiff_jax.data.loading.control_pool import ControlPool
from perturbdiff_jax.data.loading.lanes import Lines
from perturbdiff_jax.data.loading.sampler import SET, Rows, Sampler
from perturbdiff_jax.data.loading.windows import PlannedWindow, Windows
from perturbdiff_jax.errors import unknown

TIERS = ("auto", "resident", "streamed")
LOADED_AT_ONCE = 2**26  # bytes; a store is loaded in a few parts, so that it is hardly ever there twice
PARTS = 4

Used = tuple[PlannedWindow, int, int]  # a window, first and number of the sets taken of it


def chosen_tier(tier: str, nbytes: int, memory: float) -> str:
    """ "resident" or "streamed": auto is resident when the store's bytes fit `memory` bytes.

    Raises RequestError for an unknown name.
    """
    if tier not in TIERS:
        raise unknown("tier", tier, TIERS)
    if tier != "auto":
        return tier
    return "resident" if nbytes <= memory else "streamed"


class ResidentCells:
    """All cells of a store in memory, as a Batcher wants them. Sources of one store can share it."""

    def __init__(self, store, batcher):
        """Raises what reading raises."""
        self.form, self.divisor = batcher.form, batcher.divisor
        n = store.n_cells
        parts = 1 if store.nbytes <= LOADED_AT_ONCE else PARTS
        borders = [n * part // parts for part in range(parts + 1)]
        pairs = [(low, high) for low, high in itertools.pairwise(borders) if high > low]
        self.block = joined([batcher.block(store.fetch([pair]).result()) for pair in pairs])

    def check(self, batcher) -> None:
        """Raises ValueError when the cells are not in the form that `batcher` wants."""
        if (self.form, self.divisor) != (batcher.form, batcher.divisor):
            raise ValueError(
                f"cells of form {self.form!r} divided by {self.divisor}; this source asks for "
                f"{batcher.form!r} and {batcher.divisor}"
            )


class ResidentTier:
    """Cells by their row in the store."""

    name = "resident"

    def __init__(self, lines: Lines, sampler: Sampler, cells: ResidentCells):
        self.windows = Windows(lines, sampler)
        self.cells = cells

    def rows(self, used: list[Used], table: np.ndarray, places, partners) -> tuple[Rows, Rows]:
        """Perturbed and control cells of B sets: table [B, fields of SET], places and partners [B, S] int32."""
        cells, controls = store_rows(table, places, partners)
        which = np.zeros(cells.shape, np.int32)
        blocks = [self.cells.block]
        return Rows(blocks, which, cells, cells), Rows(blocks, which, controls, controls)

    def read_ahead(self, used: list[Used], stop: int | None) -> None:
        """Nothing to read."""


class StreamedTier:
    """Cells by their row in a window, control cells by their row in the pool's blocks."""

    name = "streamed"

    def __init__(
        self, store, lines: Lines, sampler: Sampler, make_block, *, control_memory: float, fits: bool
    ):
        """`control_memory`: bytes; `fits`: whether the controls of a whole epoch fit them."""
        self.windows = Windows(lines, sampler, store=store, make_block=make_block)
        self._sampler, self._fits = sampler, fits
        per_cell = store.nbytes / store.n_cells
        self.pool = ControlPool(store, sampler, make_block, bytes_per_cell=per_cell, budget=control_memory)

    def rows(self, used: list[Used], table: np.ndarray, places, partners) -> tuple[Rows, Rows]:
        """As ResidentTier.rows; waits for what is still being read and raises what reading raises."""
        cells, controls = store_rows(table, places, partners)
        sets = table.view(SET)[:, 0]
        counts = [count for _, _, count in used]
        of_window = np.repeat(np.arange(len(used), dtype=np.int32), counts)
        epochs = np.repeat([planned.window.epoch for planned, _, _ in used], counts).tolist()
        numbers: dict[tuple[int, int], int] = {}
        of_control = of_window.copy()
        for place, (group, epoch) in enumerate(zip(sets["control"].tolist(), epochs)):
            if group >= 0:
                key = self.pool.key(group, epoch)
                of_control[place] = numbers.setdefault(key, len(used) + len(numbers))
        self.pool.ask(numbers)
        blocks = [self._block(planned) for planned, _, _ in used]
        blocks += self.pool.blocks(list(numbers))
        base = sets["base"][:, None]
        within = np.where(sets["control"] < 0, sets["base"], 0)[:, None]
        of_window, of_control = (
            np.repeat(of, places.shape[1]).reshape(places.shape) for of in (of_window, of_control)
        )
        perturbed = Rows(blocks, of_window, places + base, cells)
        return perturbed, Rows(blocks, of_control, partners + within, controls)

    def read_ahead(self, used: list[Used], stop: int | None) -> None:
        """Begins to read the next window of every lane that is well into its present one and ends before `stop`."""
        for planned, first, count in used:
            window = planned.window
            if not planned.wants_next(window.first + first + count - 1) or (stop and window.stop >= stop):
                continue
            ahead = self.windows.at(window.lane, window.stop)
            if self._fits and not ahead.controls_asked:
                ahead.controls_asked = True
                controls = self._sampler.controls(ahead.window).tolist()
                self.pool.ask([self.pool.key(group, ahead.window.epoch) for group in controls])

    def _block(self, planned: PlannedWindow):
        try:
            return planned.reading.block()
        except Exception:
            self.windows.drop(planned.window.lane, planned)
            raise


def store_rows(table: np.ndarray, places, partners) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the store [B, S] int64 of perturbed and control cells."""
    sets = table.view(SET)[:, 0]
    return (
        _around(sets["first_row"], sets["begin"], sets["around"], places),
        _around(sets["control_row"], sets["control_begin"], sets["control_around"], partners),
    )


def _around(first, begin, around, places) -> np.ndarray:
    inside = places + begin[:, None]
    if begin.any():
        inside -= (inside >= around[:, None]) * around[:, None]
    inside += first[:, None]
    return inside

"""Batches of cell sets: `batch = source[step]`, a pure function of (store, seed, step).

Nothing here has a position to save: a run resumes by asking for the next step, and grain (threads of this
process) only asks ahead. This file holds the resident tier, whose expression lies in memory as one CSR matrix
and is densified on the host; which rows are asked for is the sampler's matter.
"""

import sys
from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from perturbdiff_jax.array_types import Batch
from perturbdiff_jax.data.index import index_sets
from perturbdiff_jax.data.pairing import find_pairing
from perturbdiff_jax.data.sampler import Plan, Sampler
from perturbdiff_jax.errors import RequestError


class ResidentCells:
    """All cells of a store in memory, divided by the divisor once. Sources of one store can share it."""

    def __init__(self, store, *, divisor: float = 10.0):
        matrix = store.load()
        self.divisor = float(divisor)
        # A new data array: the store may keep and hand out its own.
        values = np.divide(matrix.data, np.float32(divisor), dtype=np.float32)
        self._matrix = sp.csr_matrix((values, matrix.indices, matrix.indptr), shape=matrix.shape, copy=False)

    def dense(self, rows: np.ndarray) -> np.ndarray:
        """Expression of cells by row number: [...] int -> [..., G] float32, log1p / divisor."""
        out = np.empty((rows.size, self._matrix.shape[1]), np.float32)
        self._matrix[rows.reshape(-1)].toarray(out=out)
        return out.reshape(*rows.shape, -1)


class _Sets:
    """What the endless and the ordered source share: choosing rows, densifying them, adding the codes."""

    def __init__(self, store, index, sampler, *, sets_per_batch, divisor, pairing, cells):
        if sets_per_batch < 1:
            raise RequestError(f"sets_per_batch = {sets_per_batch}: must be at least 1.")
        if cells is not None and cells.divisor != float(divisor):
            raise ValueError(f"cells were divided by {cells.divisor}, this source asks for {divisor}")
        self.index, self.sets_per_batch = index, sets_per_batch
        self._sampler, self._groups = sampler, store.groups
        self._pairing = find_pairing(pairing)
        self.cells = ResidentCells(store, divisor=divisor) if cells is None else cells

    @property
    def n_cells(self) -> int:
        """Perturbed cells that have mask 1 in an epoch."""
        return self.index.n_cells

    @property
    def n_sets(self) -> int:
        """Sets in an epoch."""
        return self.index.n_sets

    @property
    def padding_share(self) -> float:
        """Share of an epoch's cells that only fill sets up, 0 to 1."""
        return self.index.padding_share

    def __len__(self) -> int:
        """Batches that it takes to see every cell: ceil(n_sets / sets_per_batch)."""
        return -(-self.n_sets // self.sets_per_batch)

    def _batch(self, plan: Plan) -> Batch:
        perturbed, control = self.cells.dense(plan.rows), self.cells.dense(plan.control_rows)
        control = self._pairing(perturbed, control)
        codes = (getattr(self._groups, name)[plan.group] for name in ("perturbation", "cell_type", "batch"))
        return Batch(perturbed, control, *(np.asarray(code, np.int32) for code in codes), plan.mask)


class SetSource(_Sets):
    """The endless training stream: `source[step]` for any step >= 0, in any order, fixed by the seed.

    Batch k holds the sets k*B..(k+1)*B-1 of the stream of epochs, so batches run on across epochs and all
    have the same shape. In an epoch every cell of the split appears exactly once with mask 1; see sampler.py
    for the draws.
    """

    def __init__(
        self,
        store,
        *,
        split: str = "train",
        cells_per_set: int,
        sets_per_batch: int,
        seed: int,
        divisor: float = 10.0,
        train_on_controls: bool = False,
        min_cells: int = 1,
        pairing: str = "random",
        cells: ResidentCells | None = None,
    ):
        """Loads the store's cells unless `cells` brings them.

        Args:
            store: an open Store.
            split: "train", "validation", "test" or "control" (the control groups alone).
            cells_per_set: S.
            sets_per_batch: B.
            seed: any integer.
            divisor: log1p expression is divided by it.
            train_on_controls: control groups are targets as well, under the control label's code; their
                control cells come from the same group.
            min_cells: groups with fewer cells are left out (they are mostly filling when S is large; see
                `padding_share`). The default leaves out none.
            pairing: "random", or "matched" (least squared distance inside the set).
            cells: expression shared with another source of the same store.

        Raises:
            RequestError: unknown split or pairing, a split without cells.
        """
        index = index_sets(
            store.groups,
            split=split,
            cells_per_set=cells_per_set,
            with_controls=train_on_controls,
            min_cells=min_cells,
            name=store.path,
        )
        sampler = Sampler(store.groups, index, seed=seed)
        super().__init__(
            store,
            index,
            sampler,
            sets_per_batch=sets_per_batch,
            divisor=divisor,
            pairing=pairing,
            cells=cells,
        )

    @property
    def steps_per_epoch(self) -> float:
        """n_sets / sets_per_batch; not rounded, because batches run on across epochs."""
        return self.n_sets / self.sets_per_batch

    def plan(self, step: int) -> Plan:
        """The rows of a step's batch, before pairing."""
        if step < 0:
            raise IndexError(f"step {step}: must be >= 0")
        return self._sampler.plan(int(step) * self.sets_per_batch, self.sets_per_batch)

    def __getitem__(self, step: int) -> Batch:
        return self._batch(self.plan(step))

    def __iter__(self) -> Iterator[Batch]:
        """Endless, from step 0."""
        step = 0
        while True:
            yield self[step]
            step += 1


class OrderedSets(_Sets):
    """A split once, in the store's order: every cell exactly once with mask 1. For validation and test.

    Batches all have the same shape; the last one is filled up with sets that have mask 0 throughout. Control
    cells and fillings are drawn from the seed and are the same on every pass.
    """

    def plan(self, number: int) -> Plan:
        """The rows of batch `number`, before pairing. Raises IndexError past the end."""
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        plan = self._sampler.plan(number * self.sets_per_batch, self.sets_per_batch)
        beyond = number * self.sets_per_batch + np.arange(self.sets_per_batch) >= self.n_sets
        return Plan(
            plan.group,
            plan.rows,
            plan.control_rows,
            np.where(beyond[:, None], 0, plan.mask).astype(np.float32),
        )

    def __getitem__(self, number: int) -> Batch:
        return self._batch(self.plan(number))

    def __iter__(self) -> Iterator[Batch]:
        return (self[number] for number in range(len(self)))


def ordered(
    store,
    split: str,
    *,
    cells_per_set: int,
    sets_per_batch: int,
    seed: int = 0,
    divisor: float = 10.0,
    max_cells: int | None = None,
    pairing: str = "random",
    cells: ResidentCells | None = None,
) -> OrderedSets:
    """The cells of a split once, in order; `max_cells` keeps only the first cells of each larger group.

    Rows of a group lie in random order in a store, so the first ones are a random sample. The other arguments
    and the errors are those of SetSource; `source.plan(i)` tells which cells batch i holds.
    """
    index = index_sets(
        store.groups, split=split, cells_per_set=cells_per_set, max_cells=max_cells, name=store.path
    )
    sampler = Sampler(store.groups, index, seed=seed, shuffle=False)
    return OrderedSets(
        store, index, sampler, sets_per_batch=sets_per_batch, divisor=divisor, pairing=pairing, cells=cells
    )


def prefetch(
    source, start_step: int = 0, *, stop_step: int | None = None, num_threads: int = 1, buffer: int = 2
) -> Iterator[tuple[int, Batch]]:
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

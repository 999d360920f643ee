"""Batches of cell sets: `batch = source[step]`, a pure function of (store, options, seed, step).

Nothing here has a position to save: a run resumes by asking for the next step, and loading/prefetch.py only asks
ahead. Which cells are drawn is decided by loading/lanes.py and loading/sampler.py, alike whether the store lies
in memory (resident) or is read while training (streamed), and on however many hosts.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from perturbdiff_jax.array_types import Batch, PackedBatch
from perturbdiff_jax.data.loading.index import index_sets
from perturbdiff_jax.data.loading.lanes import Lanes, lane_count
from perturbdiff_jax.data.loading.sampler import Draw
from perturbdiff_jax.data.loading.set_stream import AS_THE_STORE, Reach, SetStream
from perturbdiff_jax.data.loading.tiers import ResidentCells
from perturbdiff_jax.errors import RequestError, unknown

GROUPINGS = ("context", "cell_type", "pretraining")


class SetSource(SetStream):
    """The endless training stream: `source[step]` for any step >= 0, in any order, fixed by the seed.

    All batches have the same shape and run on across epochs. In an epoch every cell of the split appears exactly once
    with mask 1; see loading/lanes.py for the order of sets and loading/sampler.py for the draws. Safe to ask from
    several threads.
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
        group_by: str = "context",
        tier: str = "auto",
        memory: float = 4.0,
        control_memory: float = 1.0,
        densify: str = "host",
        rows: Sequence[range] | None = None,
        blocks: int = 1,
        cells: ResidentCells | None = None,
        reach: Reach = AS_THE_STORE,
    ):
        """Loads the store's cells in the resident tier unless `cells` brings them.

        Args:
            store: an open Store.
            split: "train", "validation", "test" or "control" (the control groups alone).
            cells_per_set: S.
            sets_per_batch: B, of all processes together.
            seed: any integer.
            divisor: log1p expression is divided by it.
            train_on_controls: control groups are targets as well, under the control label's code; their control cells
                come from the same group.
            min_cells: groups with fewer cells are left out (they are mostly filling when S is large; see
                `padding_share`). The default leaves out none.
            pairing: "random", or "matched" (least squared distance inside the set).
            group_by: what the cells of a set share: "context" (perturbation, cell type, batch), "cell_type"
                (perturbation, cell type) or "pretraining" (cell type).
            tier: "resident", "streamed", or "auto": resident if the store's bytes fit `memory`.
            memory, control_memory: GiB of cells; the latter for the control cells of an epoch.
            densify: "host" gives Batch, "device" PackedBatch.
            rows: the sets of the batch, counted from 0 to B - 1, that this process is to have; None = all. Whole lanes
                (see `lanes`) are cheapest: what two processes have of one lane, both read.
            blocks: D of a PackedBatch, the devices of this process.
            cells: the `cells` of another source of the same store.
            reach: how far cells are shuffled; for tests.

        Raises:
            RequestError: unknown name, a split without cells, a number out of range, or devices that do not divide
                the batch.
        """
        if group_by not in GROUPINGS:
            raise unknown("group_by", group_by, GROUPINGS)
        if group_by != "context":
            from perturbdiff_jax.data.storage.view import regroup

            store = regroup(store, group_by)
        reach = reach.settled(store)
        index = index_sets(
            store.groups,
            split=split,
            cells_per_set=cells_per_set,
            with_controls=train_on_controls,
            min_cells=min_cells,
            piece_cells=reach.piece,
            segment_cells=reach.segment,
            name=store.path,
        )
        lanes = Lanes(index.n_sets, lane_count(sets_per_batch))
        self.rows = _checked_rows([range(sets_per_batch)] if rows is None else rows, sets_per_batch, blocks)
        super().__init__(
            store,
            index,
            lanes,
            sets_per_batch=sets_per_batch,
            seed=seed,
            shuffle=True,
            reach=reach,
            divisor=divisor,
            pairing=pairing,
            tier=tier,
            memory=memory,
            control_memory=control_memory,
            densify=densify,
            blocks=blocks,
            cells=cells,
        )

    @property
    def steps_per_epoch(self) -> float:
        """n_sets / sets_per_batch; not rounded, because batches run on across epochs."""
        return self.n_sets / self.sets_per_batch

    def draw(self, step: int) -> Draw:
        """The cells of a step's batch, before pairing."""
        return self.sets(self.stretches(step))

    def stretches(self, step: int) -> list[tuple[int, int, int]]:
        """What a step's batch takes of the lanes: (lane, first position in the lane, how many sets), by row."""
        if step < 0:
            raise IndexError(f"step {step}: must be >= 0")
        each = self.sets_per_batch // self.lanes.count
        taken = []
        for rows in self.rows:
            row = rows.start
            while row < rows.stop:
                lane, passed = divmod(row, each)
                count = min(rows.stop - row, each - passed)
                taken.append((lane, int(step) * each + passed, count))
                row += count
        return taken

    def __getitem__(self, step: int) -> Batch | PackedBatch:
        return self.batcher.batch(self.draw(step))

    def __iter__(self) -> Iterator[Batch | PackedBatch]:
        """Endless, from step 0."""
        step = 0
        while True:
            yield self[step]
            step += 1


class OrderedSets(SetStream):
    """A split once, in the store's order: every cell exactly once with mask 1. For validation and test.

    Batches all have the same shape; the last one is filled up with sets that have mask 0 throughout. Control cells and
    fillings are drawn from the seed and are the same on every pass.
    """

    def draw(self, number: int) -> Draw:
        """The cells of batch `number`, before pairing. Raises IndexError past the end."""
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        draw = self.sets([(0, number * self.sets_per_batch, self.sets_per_batch)], stop=self.n_sets)
        return dataclasses.replace(draw, mask=draw.mask * (draw.epoch == 0).astype(np.float32)[:, None])

    def __getitem__(self, number: int) -> Batch | PackedBatch:
        return self.batcher.batch(self.draw(number))

    def __iter__(self) -> Iterator[Batch | PackedBatch]:
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
    tier: str = "auto",
    memory: float = 4.0,
    control_memory: float = 1.0,
    densify: str = "host",
    blocks: int = 1,
    cells: ResidentCells | None = None,
    reach: Reach = AS_THE_STORE,
) -> OrderedSets:
    """The cells of a split once, in order; `max_cells` keeps only the first cells of each larger group.

    Rows of a group lie in random order in a store, so the first ones are a random sample. The other arguments and the
    errors are those of SetSource; `source.draw(i)` tells which cells batch i holds.
    """
    reach = reach.settled(store)
    index = index_sets(
        store.groups,
        split=split,
        cells_per_set=cells_per_set,
        max_cells=max_cells,
        piece_cells=reach.piece,
        segment_cells=reach.segment,
        name=store.path,
    )
    return OrderedSets(
        store,
        index,
        Lanes(index.n_sets, 1),
        sets_per_batch=sets_per_batch,
        seed=seed,
        shuffle=False,
        reach=reach,
        divisor=divisor,
        pairing=pairing,
        tier=tier,
        memory=memory,
        control_memory=control_memory,
        densify=densify,
        blocks=blocks,
        cells=cells,
    )


def _checked_rows(rows: Sequence[range], sets: int, blocks: int) -> list[range]:
    """Neighbouring ranges joined. RequestError unless they ascend, lie in the batch and can be cut into `blocks`."""
    joined: list[range] = []
    for span in rows:
        before = joined[-1].stop if joined else 0
        if span.step != 1 or not before <= span.start < span.stop <= sets:
            raise RequestError(
                f"rows {list(rows)}: must be ascending ranges of the {sets} sets of a batch (sets_per_batch)."
            )
        if joined and span.start == before:
            joined[-1] = range(joined[-1].start, span.stop)
        else:
            joined.append(span)
    count = sum(map(len, joined))
    if blocks < 1 or count == 0 or count % blocks:
        raise RequestError(
            f"sets_per_batch={sets}: {count} sets of it cannot be shared by {blocks} devices of a process."
        )
    return joined

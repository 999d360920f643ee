"""The stream of sets that sources are made of: which window holds a set, where its cells are, what is drawn."""

import dataclasses

import numpy as np

from perturbdiff_jax.data.loading.batcher import Batcher
from perturbdiff_jax.data.loading.control_pool import control_bytes, slab_cells
from perturbdiff_jax.data.loading.index import PIECE_CELLS, SEGMENT_CELLS, SetIndex
from perturbdiff_jax.data.loading.lanes import Lanes, Lines
from perturbdiff_jax.data.loading.sampler import SET, Draw, Sampler
from perturbdiff_jax.data.loading.tiers import ResidentCells, ResidentTier, StreamedTier, chosen_tier
from perturbdiff_jax.errors import RequestError, unknown

FORMS = {"host": "dense", "device": "packed"}  # where cells become matrices -> form of a Batcher
GIB = 2**30
WINDOW_BYTES = 2**24
HOST_BYTES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reach:
    """How many cells are read and shuffled together; part of the stream. None: decided by the store."""

    window: int | None = None  # cells of a window, W
    piece: int | None = None  # cells of a group that are shuffled among each other, at most
    segment: int = SEGMENT_CELLS  # cells read together, at least

    def settled(self, store) -> "Reach":
        """Windows of 65,536 cells, fewer where they would take more than 16 MiB; pieces no larger."""
        per_cell = max(1.0, store.nbytes / store.n_cells)
        window = self.window or int(min(PIECE_CELLS, max(SEGMENT_CELLS, WINDOW_BYTES / per_cell)))
        return Reach(window=window, piece=self.piece or window, segment=self.segment)


AS_THE_STORE = Reach()


class SetStream:
    """Sets of a store by lane and position: windows, the tier where their cells are, and drawing from them."""

    def __init__(
        self,
        store,
        index: SetIndex,
        lanes: Lanes,
        *,
        sets_per_batch: int,
        seed: int,
        shuffle: bool,
        reach: Reach,
        divisor: float,
        pairing: str,
        tier: str,
        memory: float,
        control_memory: float,
        densify: str,
        blocks: int,
        cells: ResidentCells | None,
    ):
        """See loader.SetSource; `reach` must be settled."""
        if densify not in FORMS:
            raise unknown("densify", densify, FORMS)
        for name, value in (("memory", memory), ("control_memory", control_memory)):
            if not value > 0:
                raise RequestError(f"{name} = {value}: must be above 0 (GiB).")
        self.store, self.index, self.lanes, self.sets_per_batch = store, index, lanes, sets_per_batch
        self.pairing = pairing
        self.batcher = batcher = Batcher(store, FORMS[densify], divisor, pairing, blocks=blocks)
        per_cell = store.nbytes / store.n_cells
        room = {"bytes_per_cell": per_cell, "budget": control_memory * GIB}
        slab = slab_cells(store.groups, cells_per_set=index.cells_per_set, **room)
        sampler = Sampler(store.groups, index, seed=seed, slab_cells=slab, shuffle=shuffle)
        lines = Lines(index, lanes, seed=seed, window_cells=reach.window, shuffle=shuffle)
        if cells is not None:
            cells.check(batcher)
        # Made ready for the host, a stored value is a float32 and a column of four bytes.
        held = HOST_BYTES * store.nnz if densify == "host" else store.nbytes
        if cells is None and chosen_tier(tier, held, memory * GIB) == "streamed":
            fits = control_bytes(store.groups, per_cell, slab or np.inf) <= room["budget"]
            self.tier = StreamedTier(
                store, lines, sampler, batcher.block, control_memory=control_memory * GIB, fits=fits
            )
        else:
            self.tier = ResidentTier(lines, sampler, cells or ResidentCells(store, batcher))

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

    @property
    def cells(self) -> ResidentCells | None:
        """The cells in memory, for another source of the same store; None when they are streamed."""
        return self.tier.cells if isinstance(self.tier, ResidentTier) else None

    def __len__(self) -> int:
        """Batches that it takes to see every cell: ceil(n_sets / sets_per_batch)."""
        return -(-self.n_sets // self.sets_per_batch)

    def sets(self, stretches: list[tuple[int, int, int]], *, stop: int | None = None) -> Draw:
        """The sets (lane, first position in the lane, how many) after each other; see loading/lanes.py.

        Nothing is read ahead from the position `stop` on.
        """
        used = []
        for lane, position, count in stretches:
            end = position + count
            while position < end:
                planned = self.tier.windows.at(lane, position)
                taken = min(end, planned.window.stop) - position
                used.append((planned, position - planned.window.first, taken))
                position += taken
        plans = [(planned.plan(), first, first + count) for planned, first, count in used]
        table = np.concatenate([plan.table[low:high] for plan, low, high in plans])
        places = np.concatenate([plan.places[low:high] for plan, low, high in plans])
        partners = np.concatenate([plan.control_places[low:high] for plan, low, high in plans])
        perturbed, control = self.tier.rows(used, table, places, partners)
        self.tier.read_ahead(used, stop)
        facts = table.view(SET)[:, 0]
        mask = (np.arange(self.index.cells_per_set) < facts["real"][:, None]).astype(np.float32)
        epoch = np.repeat([planned.window.epoch for planned, _, _ in used], [count for _, _, count in used])
        return Draw(facts["group"].copy(), epoch, mask, perturbed, control)

"""Which cells stand where: a pure function of (group table, seed, window). Row numbers only, no expression.

A window's sets are planned together. Every draw has its own key, folded from (seed, purpose, epoch, group, piece, set),
so a plan does not depend on what else is in the window, nor on the number of hosts or on where cells are kept.
"""

import dataclasses

import numpy as np

from perturbdiff_jax.data.loading import draws
from perturbdiff_jax.data.loading.draws import fold, folded, words_at
from perturbdiff_jax.data.loading.index import SetIndex
from perturbdiff_jax.data.loading.lanes import Window

# What is known of a set besides the places of its cells. Its cells are `first_row + (begin + place) mod around`.
SET = np.dtype(
    [
        (name, np.int64)
        for name in (
            "group",  # in the store's table
            "real",  # cells that are not filling; they stand first
            "first_row",  # of the group
            "begin",  # where its piece begins in the group
            "around",  # cells used of the group
            "base",  # place of the piece's first cell among the cells that the window reads
            "control",  # control group in the store's table; -1: partners come from the set's own piece
            "control_row",  # the same three of the control cells
            "control_begin",
            "control_around",
        )
    ]
)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Cells of B sets: where they lie in memory, and which cells of the store they are."""

    blocks: list  # data.blocks.Block
    which: np.ndarray  # [B, S] int32, number of the block
    rows: np.ndarray  # [B, S] int64, row in the block
    cells: np.ndarray  # [B, S] int64, row in the store


@dataclasses.dataclass(frozen=True)
class Draw:
    """B sets before their expression is taken; rows i of the two kinds are partners."""

    group: np.ndarray  # [B] int64, group in the store's table
    epoch: np.ndarray  # [B] int64
    mask: np.ndarray  # [B, S] float32, 0 where the cell only fills the set up
    perturbed: Rows
    control: Rows

    @property
    def cells(self) -> np.ndarray:
        """[B, S] int64, the perturbed cells' rows in the store."""
        return self.perturbed.cells


@dataclasses.dataclass(frozen=True)
class Plan:
    """The n sets of a window, in the order in which the lane serves them."""

    table: np.ndarray  # [n, fields of SET] int64; `.view(SET)` gives the fields their names
    places: np.ndarray  # [n, S] int32, in the piece
    control_places: np.ndarray  # [n, S] int32, in the slab of the control group (or in the piece)


class Sampler:
    """Plans windows of sets.

    Each epoch shuffles the cells of every piece, cuts them into sets, and shuffles the sets of a window; the last set
    is filled up by drawing from the piece again, with replacement (mask 0). A group of several pieces is cut at another
    place in every epoch. Control cells come from the group's matched control group, drawn anew for every set: all
    different when there are S or more. Of a control group with more than `slab_cells` cells an epoch uses only so many
    neighbours, beginning at a random one (rows of a group lie in random order in a store).

    A control group as target (pretraining, or `train_on_controls`) is its own control group. Its partner cells are the
    same shuffled order moved on by a random step, which makes every partner another cell than its target (pieces of at
    least 2), and no partner a target of the same set (pieces of at least 2 S, the filling aside).
    """

    def __init__(
        self, groups, index: SetIndex, *, seed: int, slab_cells: int | None = None, shuffle: bool = True
    ):
        """With `shuffle=False` sets and cells are in the store's order; fillings and controls are drawn."""
        self.index, self.slab_cells = index, slab_cells
        self._groups, self._seed, self._shuffle = groups, int(seed), shuffle

    def ranges(self, window: Window) -> list[tuple[int, int]]:
        """The rows of the store that the window needs, as (from, to) in the order of `base`."""
        pieces = self._pieces(window)
        first = np.asarray(self._groups.start, np.int64)[self.index.group[pieces]]
        begin, size, used = (
            self._begin(pieces, window.epoch),
            self.index.size[pieces],
            self.index.used[pieces],
        )
        return joined_ranges(first, begin, size, used)

    def controls(self, window: Window) -> np.ndarray:
        """The control groups that serve the window's sets; a group that serves itself is not among them."""
        group = np.unique(self.index.group[self._pieces(window)])
        control = np.asarray(self._groups.control, np.int64)[group]
        return np.unique(control[control != group])

    def slabs(self, controls: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(first place in the group, number of cells) that an epoch uses of control groups [n]."""
        sizes = np.asarray(self._groups.size, np.int64)[controls]
        begin = np.zeros(len(sizes), np.int64)
        if self.slab_cells is None:
            return begin, sizes
        large = np.flatnonzero(sizes > self.slab_cells)
        keys = folded(fold(self._seed, draws.SLABS, epoch), controls[large])
        begin[large] = draws.below(words_at(keys, np.zeros(1)), sizes[large])
        return begin, np.minimum(sizes, self.slab_cells)

    def plan(self, window: Window) -> Plan:
        """Places of all cells of the window's sets."""
        index, epoch, n = self.index, window.epoch, self.index.cells_per_set
        pieces = self._pieces(window)
        ids = np.concatenate([np.arange(low, high) for low, high in window.spans.tolist()])
        if self._shuffle:
            key = fold(self._seed, draws.SETS, epoch, window.lane, window.number)
            ids = ids[draws.shuffled(key, len(ids))]
        piece, number = index.locate(ids)
        ranked = np.argsort(pieces)
        slot = ranked[np.searchsorted(pieces[ranked], piece)]
        sets = self._facts(pieces, epoch)[slot]
        size = index.size[piece]
        sets["real"] = np.minimum(size - number * n, n)

        places = (number * n)[:, None] + np.arange(n)
        partial = np.flatnonzero(sets["real"] < n)
        keys = self._keys(draws.FILL, epoch, piece[partial], number[partial])
        filling = draws.below(words_at(keys[:, None], np.arange(n)), size[partial, None])
        is_real = np.arange(n) < sets["real"][partial, None]
        places[partial] = np.where(is_real, places[partial], filling)

        order = None
        if self._shuffle:
            keys = self._keys(draws.CELLS, epoch, pieces)
            order = draws.permuted(keys, index.size[pieces])
        partners = np.empty((len(ids), n), np.int32)
        keys = self._keys(draws.CONTROLS, epoch, piece, number)
        own = sets["control"] < 0
        _, pool = self.slabs(np.maximum(sets["control"], 0), epoch)
        foreign = np.flatnonzero(~own)
        partners[foreign] = draws.sampled(keys[foreign], pool[foreign], n)
        own = np.flatnonzero(own)
        moved = _moved(places[own], size[own], keys[own], n)
        partners[own] = _looked_up(order, moved, sets["base"][own])
        table = sets.view(np.int64).reshape(len(sets), -1)
        return Plan(table, _looked_up(order, places, sets["base"]), partners)

    def _pieces(self, window: Window) -> np.ndarray:
        """[P] the pieces that the window's sets come from, each once, in the order in which they are read."""
        first_set = self.index.first_set
        low = np.searchsorted(first_set, window.spans[:, 0], side="right") - 1
        high = np.searchsorted(first_set, window.spans[:, 1])
        return np.concatenate([np.arange(a, b) for a, b in zip(low.tolist(), high.tolist())])

    def _keys(self, purpose: int, epoch: int, piece: np.ndarray, *more: np.ndarray) -> np.ndarray:
        key = fold(self._seed, purpose, epoch)
        return folded(key, self.index.group[piece], self.index.offset[piece], *more)

    def _begin(self, pieces: np.ndarray, epoch: int) -> np.ndarray:
        """Place in its group where each piece begins."""
        group, offset, used = (getattr(self.index, name)[pieces] for name in ("group", "offset", "used"))
        begin = offset.copy()
        parts = np.flatnonzero(self.index.size[pieces] < used)
        if self._shuffle and len(parts):
            keys = folded(fold(self._seed, draws.OFFSETS, epoch), group[parts])
            begin[parts] += draws.below(words_at(keys, np.zeros(1)), used[parts])
            begin[parts] %= used[parts]
        return begin

    def _facts(self, pieces: np.ndarray, epoch: int) -> np.ndarray:
        """[P] SET, what the sets of a piece share."""
        index, groups = self.index, self._groups
        start = np.asarray(groups.start, np.int64)
        facts = np.zeros(len(pieces), SET)
        facts["group"] = group = index.group[pieces]
        facts["first_row"], facts["around"] = start[group], index.used[pieces]
        facts["begin"] = self._begin(pieces, epoch)
        facts["base"] = np.cumsum(index.size[pieces]) - index.size[pieces]
        control = np.asarray(groups.control, np.int64)[group]
        own = control == group
        begin, _ = self.slabs(control, epoch)
        facts["control"] = np.where(own, -1, control)
        facts["control_row"] = start[control]
        facts["control_begin"] = np.where(own, facts["begin"], begin)
        facts["control_around"] = np.where(own, facts["around"], np.asarray(groups.size, np.int64)[control])
        return facts


def joined_ranges(first, begin, size, around) -> list[tuple[int, int]]:
    """Rows `first + (begin + 0..size-1) mod around` of several groups, int64 [n] each, as few (from, to) in order."""
    high = begin + size
    lows = np.stack([first + begin, first], axis=1).reshape(-1)
    highs = np.stack(
        [first + np.minimum(high, around), first + np.maximum(high - around, 0)], axis=1
    ).reshape(-1)
    some = highs > lows
    lows, highs = lows[some], highs[some]
    cut = np.flatnonzero(lows[1:] != highs[:-1])
    lows, highs = lows[np.concatenate([[0], cut + 1])], highs[np.concatenate([cut, [len(highs) - 1]])]
    return list(zip(lows.tolist(), highs.tolist()))


def _moved(places, size, keys, n: int) -> np.ndarray:
    """Places moved on by a step of the set's own, inside the piece."""
    low = np.where(size >= 2 * n, n, np.minimum(size - 1, 1))
    high = np.where(size >= 2 * n, size - n, size - 1)
    step = low + draws.below(words_at(keys, np.zeros(1)), high - low + 1)
    return (places + step[:, None]) % size[:, None]


def _looked_up(order: np.ndarray | None, places: np.ndarray, base: np.ndarray) -> np.ndarray:
    return places.astype(np.int32) if order is None else order.take(places + base[:, None])

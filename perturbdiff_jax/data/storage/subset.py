"""A part of the cells of a store as a store of its own: tables of rows, no copy of cells."""

import dataclasses

import numpy as np

from perturbdiff_jax.data.conditions import CONTROL, TRAIN
from perturbdiff_jax.data.groups import Groups
from perturbdiff_jax.data.storage.face import StoreFace
from perturbdiff_jax.data.storage.members import Members, Runs
from perturbdiff_jax.data.storage.view import View, members_of
from perturbdiff_jax.data.store import Store


def stored_members(store: StoreFace) -> Members:
    """The physical groups that make up the groups of a store, of a merged one, or of a subset of either."""
    return store.members if isinstance(store, View) else members_of(store)


def subset(store: StoreFace, begin: np.ndarray, size: np.ndarray) -> View:
    """The cells begin..begin+size-1 of every member of a store, past its end from its beginning, in the store's order.

    Groups without a cell are left out and the others numbered anew; vocabularies stay as they are. `nnz` is counted
    from whole groups and estimated for parts of them, so that it takes no reading.

    Args:
        store: grouped by context, as stored or merged.
        begin, size: int64 [M], for `stored_members(store)`; `begin` is below the member's size, `size` at most that.

    Raises ValueError when a control group that serves kept cells would lose its own.
    """
    members, old = stored_members(store), store.groups
    cells = np.bincount(members.group, weights=size, minlength=len(old)).astype(np.int64)
    kept = np.flatnonzero(cells)
    number = np.full(len(old), -1, dtype=np.int64)
    number[kept] = np.arange(len(kept))
    serving = number[old.control[kept]].astype(np.int32)
    if (serving < 0).any():
        raise ValueError("a control group is needed and left out")
    columns = {field.name: getattr(old, field.name)[kept] for field in dataclasses.fields(Groups)}
    columns |= {"start": np.cumsum(cells[kept]) - cells[kept], "size": cells[kept], "control": serving}
    parts = store.parts if isinstance(store, View) else [store]
    chosen = _stretches(members, begin, size)
    chosen = dataclasses.replace(chosen, group=number[chosen.group])
    return View(
        store.path,
        store.manifest,
        Groups(**columns | {"pointer": np.zeros(len(kept), dtype=np.int64)}),
        parts=parts,
        members=chosen,
        runs=_cut(_runs_of(store), chosen, parts),
        nnz=_stored_values(chosen, parts),
        thinned=True,
    )


def without_held_out(store: StoreFace) -> StoreFace:
    """The training and control cells alone: what a training stream is drawn from."""
    members = stored_members(store)
    used = (members.split == TRAIN) | (members.split == CONTROL)
    return subset(store, np.zeros(len(used), np.int64), np.where(used, members.size, 0))


def _stretches(members: Members, begin: np.ndarray, size: np.ndarray) -> Members:
    """The kept stretches of the members, one or two of each, as members."""
    past = np.maximum(begin + size - members.size, 0)
    of = np.tile(np.arange(len(size)), 2)
    low = np.concatenate([np.zeros_like(begin), begin])
    length = np.concatenate([past, size - past])
    some = np.flatnonzero(length)
    part = {field.name: getattr(members, field.name)[of[some]] for field in dataclasses.fields(Members)}
    return Members(**part | {"row": part["row"] + low[some], "size": length[some]})


def _runs_of(store: StoreFace) -> Runs:
    if isinstance(store, View):
        return store.runs
    groups = store.groups
    first = np.zeros(len(groups), dtype=np.int32)
    return Runs(start=groups.start, size=groups.size, part=first, row=groups.start, batch=groups.batch)


def _cut(runs: Runs, kept: Members, parts: list[Store]) -> Runs:
    """What is kept of every run, in the same order, so that groups that are kept whole stay as they are."""
    before = np.cumsum([0, *(part.n_cells for part in parts[:-1])])
    lows = before[kept.part] + kept.row
    order = np.argsort(lows)
    lows = lows[order]
    highs = lows + kept.size[order]
    begin = before[runs.part] + runs.row
    end = begin + runs.size
    first = np.searchsorted(highs, begin, side="right")
    count = np.maximum(np.searchsorted(lows, end) - first, 0)
    whose = np.repeat(np.arange(len(count)), count)
    at = np.arange(len(whose)) - np.repeat(np.cumsum(count) - count, count) + first[whose]
    low, high = np.maximum(begin[whose], lows[at]), np.minimum(end[whose], highs[at])
    return Runs(
        start=np.cumsum(high - low) - (high - low),
        size=high - low,
        part=runs.part[whose],
        row=low - before[runs.part[whose]],
        batch=runs.batch[whose],
    )


def _stored_values(members: Members, parts: list[Store]) -> int:
    """Stored values of the members' cells, each counted as the average of its physical group."""
    total = 0.0
    for number, part in enumerate(parts):
        mine = members.part == number
        if part.is_dense:
            total += members.size[mine].sum() * (part.nnz / part.n_cells)
            continue
        groups = part.groups
        values = np.diff(np.append(groups.pointer, part.nnz)) / groups.size
        total += (members.size[mine] * values[groups.of(members.row[mine])]).sum()
    return max(1, round(float(total)))

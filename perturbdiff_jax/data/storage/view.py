"""Stores whose rows are runs of rows of other stores: the same cells in other groups, or several stores as one.

A view holds tables of groups and runs, no cells. It reads all of its parts' rows at once and in their order on the
disk, and puts them in its own order in memory.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from perturbdiff_jax.data.conditions import TRAIN
from perturbdiff_jax.data.groups import Groups
from perturbdiff_jax.data.storage.face import StoreFace
from perturbdiff_jax.data.storage.fetch import Fetch
from perturbdiff_jax.data.storage.members import Members, Runs, dealt, numbered
from perturbdiff_jax.data.storage.obs import stacked
from perturbdiff_jax.data.storage.staged_fetch import STAGE_BYTES, StagedFetch, stages_of
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.errors import unknown

GROUPINGS = ("context", "cell_type", "pretraining")
MIXED = -1  # batch code of a group whose cells come from several batches


class View(StoreFace):
    """A store-like object over the rows of `parts`; see StoreFace."""

    def __init__(
        self,
        path: pathlib.Path | str,
        manifest: dict,
        groups: Groups,
        *,
        parts: Sequence[Store],
        members: Members,
        runs: Runs,
        nnz: int | None = None,
        thinned: bool = False,
    ):
        """`nnz`: stored values of its cells, where these are not all cells of the manifest. `thinned`: it leaves out
        rows between those that it has, so that there are many short runs."""
        super().__init__(path, manifest, groups)
        self.nnz = self.nnz if nnz is None else nnz
        self.thinned = thinned
        self.parts, self.members, self.runs = list(parts), members, runs

    @property
    def dtypes(self) -> tuple[np.dtype, np.dtype]:
        kinds = [part.dtypes for part in self.parts]
        return np.result_type(*(kind[0] for kind in kinds)), np.result_type(*(kind[1] for kind in kinds))

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> Fetch | StagedFetch:
        if self.thinned:
            part, row, size = self._pieces(self.checked(ranges))
            if len(row):
                return self._staged(part, row, size)
        return self._fetch(*self._reads(ranges))

    def _staged(self, part: np.ndarray, row: np.ndarray, size: np.ndarray) -> StagedFetch:
        order = np.lexsort((row, part))
        most = max(1, int(STAGE_BYTES * self.n_cells / self.nbytes))
        stages = stages_of(part[order], row[order], size[order], most=most)
        pieces = None
        if (order[1:] < order[:-1]).any():
            first = np.empty_like(size)
            first[order] = np.cumsum(size[order]) - size[order]
            pieces = (first, size)
        return StagedFetch(stages, lambda stage: self._fetch(stage.reads, stage.pieces), pieces)

    def _fetch(self, reads: list[tuple[int, int, int]], order: tuple[np.ndarray, np.ndarray] | None) -> Fetch:
        return Fetch(
            [(self.parts[part], start, stop) for part, start, stop in reads],
            genes=len(self.genes),
            counts=self.is_counts,
            dense=self.is_dense,
            dtypes=self.dtypes,
            order=order,
        )

    def obs_of(self, ranges: Sequence[tuple[int, int]]) -> pd.DataFrame:
        """As in StoreFace; of several parts, the names of cells begin with the name of their part."""
        reads, order = self._reads(ranges)
        frames, labels = [], self._labels()
        for part in dict.fromkeys(part for part, _, _ in reads):
            mine = [(start, stop) for other, start, stop in reads if other == part]
            frames.append((labels[part], self.parts[part].obs_of(mine)))
        frames = frames or [("", self.parts[0].obs_of([]))]
        names = {"perturbation": self.perturbations, "cell_type": self.cell_types, "batch": self.batches}
        names = {self.manifest["keys"].get(role): vocabulary for role, vocabulary in names.items()}
        table = stacked([frame for _, frame in frames], [label for label, _ in frames], names)
        if order is None:
            return table
        first, size = order
        return table.iloc[np.repeat(first - (np.cumsum(size) - size), size) + np.arange(size.sum())]

    def _labels(self) -> list[str]:
        """What the names of each part's cells begin with: nothing if there is one part."""
        if len(self.parts) == 1:
            return [""]
        stems = [str(part.path).rstrip("/").rsplit("/", 1)[-1] for part in self.parts]
        twice = len(set(stems)) < len(stems)
        return [f"{number}:{stem}:" if twice else f"{stem}:" for number, stem in enumerate(stems)]

    def _reads(
        self, ranges: Sequence[tuple[int, int]]
    ) -> tuple[list[tuple[int, int, int]], tuple[np.ndarray, np.ndarray] | None]:
        """How to read the ranges: (part, start, stop) in the order of the disk, and the order to put them in."""
        part, row, size = self._pieces(self.checked(ranges))
        order = np.lexsort((row, part))
        pieces = None
        if (order[1:] < order[:-1]).any():
            first = np.empty_like(size)
            first[order] = np.cumsum(size[order]) - size[order]
            pieces = (first, size)
            part, row, size = part[order], row[order], size[order]
        # Joined here, while they are arrays: there may be thousands.
        new = np.ones(len(row), dtype=bool)
        new[1:] = (part[1:] != part[:-1]) | (row[1:] != row[:-1] + size[:-1])
        heads = np.flatnonzero(new)
        stops = (row + size)[np.append(heads[1:], len(row)) - 1] if len(heads) else row
        return list(zip(part[heads].tolist(), row[heads].tolist(), stops.tolist())), pieces

    def _pieces(self, ranges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(part, first row there, rows) of the pieces that make up the ranges, in their order."""
        runs = self.runs
        ranges = ranges[ranges[:, 0] < ranges[:, 1]]
        first = np.searchsorted(runs.start, ranges[:, 0], side="right") - 1
        count = np.searchsorted(runs.start, ranges[:, 1], side="left") - first
        whose = np.repeat(np.arange(len(ranges)), count)
        run = np.arange(len(whose)) - np.repeat(np.cumsum(count) - count, count) + first[whose]
        low = np.maximum(runs.start[run], ranges[whose, 0])
        high = np.minimum(runs.start[run] + runs.size[run], ranges[whose, 1])
        return runs.part[run], runs.row[run] + low - runs.start[run], high - low

    def batch_codes(self, rows: np.ndarray) -> np.ndarray:
        return self.runs.batch[np.searchsorted(self.runs.start, rows, side="right") - 1]

    def verify(self, echo: Callable[[str], None] | None = None) -> str:
        """Verifies every part; see `storage/verify.py`."""
        from perturbdiff_jax.data.storage.verify import verify

        said = [verify(part, echo) for part in self.parts]
        return said[0] if len(said) == 1 else f"{len(said)} parts: {'; '.join(said)}"


def regroup(store: StoreFace, by: str) -> StoreFace:
    """The same cells in other groups; rows are numbered anew.

    by: "context" as stored, (cell type, batch, perturbation): the store itself. "cell_type": (cell type,
    perturbation), batches mixed; the control group is the cell type's, or lies where the stored fallback says.
    "pretraining": cell type alone, perturbed and control cells mixed under the control's code, each group its
    own control. Cells of different splits are never in one group; mixed groups have batch code -1. Raises
    RequestError for another name.
    """
    if by not in GROUPINGS:
        raise unknown("grouping", by, GROUPINGS, "group_by")
    if by == "context":
        return store
    members = store.members if isinstance(store, View) else members_of(store)
    is_control = members.perturbation == store.perturbations.index(store.control)
    # Controls are in every split; as cells to pretrain on they are of the training split.
    split = members.split if by == "cell_type" else np.where(is_control, TRAIN, members.split)
    finer = [~is_control, members.perturbation] if by == "cell_type" else []
    of, first = numbered([members.cell_type, *finer, split])
    size = np.bincount(of, weights=members.size).astype(np.int64)
    itself = np.arange(len(first), dtype=np.int32)
    code = store.perturbations.index(store.control)
    groups = Groups(
        start=np.cumsum(size) - size,
        size=size,
        perturbation=members.perturbation[first] if finer else np.full_like(itself, code),
        cell_type=members.cell_type[first],
        batch=np.full_like(itself, MIXED),
        is_control=is_control[first] if finer else split[first] == TRAIN,
        control=itself,
        fallback=np.zeros(len(first), dtype=np.int8),
        split=split[first].astype(np.int8),
        pointer=np.zeros(len(first), dtype=np.int64),
    )
    if finer:
        groups = _served(groups, store.groups, members.group[first])
    runs = dealt(members, of, seed=int(store.manifest.get("seed", 0)))
    parts = store.parts if isinstance(store, View) else [store]
    thinned = isinstance(store, View) and store.thinned
    kept = {"nnz": store.nnz, "thinned": thinned}
    return View(store.path, store.manifest, groups, parts=parts, members=members, runs=runs, **kept)


def _served(mixed: Groups, stored: Groups, origin: np.ndarray) -> Groups:
    """`mixed` with each group's control: its cell type's, or that of the lender of `origin`, a stored group."""
    lender = stored.control[origin]
    borrowed = stored.cell_type[lender]
    controls = np.flatnonzero(mixed.is_control)
    by_type = np.full(int(stored.cell_type.max()) + 1, -1, dtype=np.int32)
    by_type[mixed.cell_type[controls]] = controls
    own = by_type[mixed.cell_type]
    return dataclasses.replace(
        mixed,
        control=np.where(own >= 0, own, by_type[borrowed]),
        fallback=np.where(own >= 0, 0, stored.fallback[origin]).astype(np.int8),
    )


def members_of(store: Store, part: int = 0) -> Members:
    """The groups of one physical store as members, in its own codes."""
    groups = store.groups
    return Members(
        part=np.full(len(groups), part, dtype=np.int32),
        row=groups.start,
        size=groups.size,
        group=np.arange(len(groups)),
        perturbation=groups.perturbation,
        cell_type=groups.cell_type,
        batch=groups.batch,
        split=groups.split,
    )

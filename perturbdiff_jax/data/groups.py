"""Groups of cells, one per (cell type, batch, perturbation), and whose controls serve whom.

A context is (cell type, batch). Rows of a store are ordered by group, context-major, controls first.
"""

import dataclasses

import numpy as np

from perturbdiff_jax.data.loading.draws import fold, folded, words_at

ROWS = 100  # what the keys of rows are for; those of the loader are in loading/draws.py
AT_ONCE = 1 << 20  # rows shuffled together

FALLBACKS = (
    "own context",
    "another cell type of the same batch",
    "same cell type of another batch",
    "another context",
)


@dataclasses.dataclass(frozen=True)
class Groups:
    """The group table: arrays of length N in row order; codes are positions in the store's vocabularies."""

    start: np.ndarray  # int64, first row of the group
    size: np.ndarray  # int64, cells
    perturbation: np.ndarray  # int32
    cell_type: np.ndarray  # int32
    batch: np.ndarray  # int32
    is_control: np.ndarray  # bool
    control: np.ndarray  # int32, the group whose cells serve as control (itself for a control group)
    fallback: np.ndarray  # int8, position in FALLBACKS: where that control group lies
    split: np.ndarray  # int8, position in splits.SPLITS
    pointer: np.ndarray  # int64, stored values before the group's first row (0 throughout in a dense store)

    def __len__(self) -> int:
        return len(self.start)

    def of(self, rows: np.ndarray) -> np.ndarray:
        """The group that each row lies in: integers of any shape -> int64 of the same shape."""
        return np.searchsorted(self.start, rows, side="right") - 1

    def to_json(self) -> dict[str, list]:
        return {field.name: getattr(self, field.name).tolist() for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, table: dict[str, list]) -> "Groups":
        return cls(**{name: np.asarray(table[name], dtype=kind) for name, kind in _KINDS.items()})


_KINDS = {
    "start": np.int64,
    "size": np.int64,
    "perturbation": np.int32,
    "cell_type": np.int32,
    "batch": np.int32,
    "is_control": np.bool_,
    "control": np.int32,
    "fallback": np.int8,
    "split": np.int8,
    "pointer": np.int64,
}


def group_cells(
    perturbation: np.ndarray, cell_type: np.ndarray, batch: np.ndarray, *, control: int, seed: int
) -> tuple[np.ndarray, Groups]:
    """Groups cells by their codes (integer arrays [cells]); `control` is the control's perturbation code.

    Returns (order, groups): `order[row]` is the cell at `row`; inside a group the order is random, keyed by
    (seed, group), and does not depend on other groups. `split` is left at -1, `pointer` at 0. At least one
    control cell is needed.
    """
    # One number per cell, in the order of (cell type, batch, controls first, perturbation): there may be 100 million.
    places, whats = int(batch.max()) + 1, int(perturbation.max()) + 1
    key = cell_type.astype(np.int64)
    for code, many in ((batch, places), (perturbation != control, 2), (perturbation, whats)):
        key *= many
        key += code
    order = np.argsort(key, kind="stable")  # so the file's order decides before the shuffle
    key = key[order]
    first = np.ones(len(order), dtype=bool)
    np.not_equal(key[1:], key[:-1], out=first[1:])
    start = np.flatnonzero(first).astype(np.int64)
    size = np.diff(np.append(start, len(order)))
    codes = np.stack(np.unravel_index(key[start], (int(cell_type.max()) + 1, places, 2, whats)))
    _shuffle(order, start, size, folded(fold(seed, ROWS), codes[0], codes[1], codes[3]))
    is_control = codes[2] == 0
    serving, fallback = resolve_controls(codes[0], codes[1], is_control, size)
    return order, Groups(
        start=start,
        size=size,
        perturbation=codes[3].astype(np.int32),
        cell_type=codes[0].astype(np.int32),
        batch=codes[1].astype(np.int32),
        is_control=is_control,
        control=serving,
        fallback=fallback,
        split=np.full(len(start), -1, dtype=np.int8),
        pointer=np.zeros(len(start), dtype=np.int64),
    )


def _shuffle(order: np.ndarray, start: np.ndarray, size: np.ndarray, keys: np.ndarray) -> None:
    """Puts the rows of every group in the random order of its key, in place; many small groups at once."""
    cuts = np.flatnonzero(np.diff(start // AT_ONCE)) + 1
    for low, high in zip([0, *cuts], [*cuts, len(start)]):
        inside = slice(start[low], start[high - 1] + size[high - 1])
        whose = np.repeat(np.arange(high - low), size[low:high])
        place = np.arange(len(whose)) - (start[low:high] - start[low])[whose]
        order[inside] = order[inside][np.lexsort((words_at(keys[low:high][whose], place), whose))]


def resolve_controls(
    cell_type: np.ndarray, batch: np.ndarray, is_control: np.ndarray, size: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which control group serves each group, and by which rule: (int32 [N], int8 [N], a position in
    FALLBACKS).

    Own context; if it has no controls another cell type of the same batch, else the same cell type of another
    batch (the paper's rule), else any. Of several candidates the one with most cells, the first on a tie.
    """
    controls = np.flatnonzero(is_control)
    if not len(controls):
        raise ValueError("no control group at all")
    by_size = controls[np.argsort(-size[controls], kind="stable")]
    serving = np.full(len(cell_type), by_size[0], dtype=np.int32)
    rule = np.full(len(cell_type), 3, dtype=np.int8)
    kinds, places = cell_type.astype(np.int64), batch.astype(np.int64)
    context = kinds * (int(places.max()) + 1) + places
    # From the last rule to the first: a better one overwrites.
    for number, key in ((2, kinds), (1, places), (0, context)):
        known, first = np.unique(key[by_size], return_index=True)
        at = np.minimum(np.searchsorted(known, key), len(known) - 1)
        found = known[at] == key
        serving[found], rule[found] = by_size[first[at[found]]], number
    return serving, rule

"""Groups of cells, one per (cell type, batch, perturbation), and whose controls serve whom.

A context is (cell type, batch). Rows of a store are ordered by group, context-major, controls first.
"""

import dataclasses

import numpy as np

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

    def __len__(self) -> int:
        return len(self.start)

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
}


def group_cells(
    perturbation: np.ndarray, cell_type: np.ndarray, batch: np.ndarray, *, control: int, seed: int
) -> tuple[np.ndarray, Groups]:
    """Groups cells by their codes (integer arrays [cells]); `control` is the control's perturbation code.

    Returns (order, groups): `order[row]` is the cell at `row`; inside a group the order is random, keyed by
    (seed, group), and does not depend on other groups. `split` is left at -1. At least one control cell is
    needed.
    """
    keys = np.stack([cell_type, batch, perturbation != control, perturbation]).astype(np.int64)
    order = np.lexsort(keys[::-1])  # stable, so the file's order decides before the shuffle
    sorted_keys = keys[:, order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (sorted_keys[:, 1:] != sorted_keys[:, :-1]).any(axis=0)
    start = np.flatnonzero(first).astype(np.int64)
    size = np.diff(np.append(start, len(order)))
    codes = sorted_keys[:, start]
    for row, count, (kind, place, _, what) in zip(start, size, codes.T, strict=True):
        # Raw Philox words, ranked: a library's own shuffle may change its stream between versions.
        words = np.random.Philox(key=[seed, 0], counter=[0, kind, place, what]).random_raw(int(count))
        order[row : row + count] = order[row : row + count][np.argsort(words, kind="stable")]
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
    )


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
    serving = np.empty(len(cell_type), dtype=np.int32)
    rule = np.empty(len(cell_type), dtype=np.int8)
    by_size = controls[np.argsort(-size[controls], kind="stable")]
    largest: dict[tuple, int] = {}
    for group in by_size.tolist():
        kind, place = int(cell_type[group]), int(batch[group])
        for key in ((0, kind, place), (1, place), (2, kind), (3,)):
            largest.setdefault(key, group)
    for group, (kind, place) in enumerate(zip(cell_type.tolist(), batch.tolist(), strict=True)):
        for number, key in enumerate(((0, kind, place), (1, place), (2, kind), (3,))):
            if key in largest:
                serving[group], rule[group] = largest[key], number
                break
    return serving, rule

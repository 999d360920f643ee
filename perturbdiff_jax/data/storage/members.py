"""Groups made of groups: which rows of which stores make up each group of a view, and in which order.

Numbers only, no cells. A member is one group of a physical store. A group of several members must lie in random
order as the rows of every store's groups do (a few of its first cells are a fair sample, a part of it a fair
share), so its members are cut into pieces which are dealt in a seeded order.
"""

import dataclasses

import numpy as np

PIECE = 32  # rows dealt together
LARGE = 65_536  # groups with more rows are read in parts,
LARGE_PIECE = 256  # so their pieces are larger: a read of few rows costs as much as one of 160


@dataclasses.dataclass(frozen=True)
class Members:
    """M groups of physical stores; codes are positions in the view's vocabularies. Arrays are [M]."""

    part: np.ndarray  # int32, which store
    row: np.ndarray  # int64, first row in that store
    size: np.ndarray  # int64, cells
    group: np.ndarray  # int64, group of the table that these codes come from
    perturbation: np.ndarray  # int32
    cell_type: np.ndarray  # int32
    batch: np.ndarray  # int32
    split: np.ndarray  # int8


@dataclasses.dataclass(frozen=True)
class Runs:
    """The rows of a view, in order: run r holds rows start[r]..start[r]+size[r]-1. Arrays are [R]."""

    start: np.ndarray  # int64, in the view
    size: np.ndarray  # int64, cells
    part: np.ndarray  # int32, which store
    row: np.ndarray  # int64, first row in that store
    batch: np.ndarray  # int32, of all of its cells


def numbered(keys: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Groups the members by `keys` (integers [M] each, the first weighs most).

    Returns (of, first): the group of each member, int64 [M], and one member of each group, int64 [N]; groups are
    in the order of their keys.
    """
    order = np.lexsort(keys[::-1])
    ordered = np.stack(keys)[:, order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (ordered[:, 1:] != ordered[:, :-1]).any(axis=0)
    of = np.empty(len(order), dtype=np.int64)
    of[order] = np.cumsum(new) - 1
    return of, order[new]


def dealt(members: Members, of: np.ndarray, *, seed: int) -> Runs:
    """The rows of all groups; `of` [M] says which group a member belongs to. A group's only member stays whole."""
    cells = np.bincount(of, weights=members.size).astype(np.int64)
    piece = np.where(cells > LARGE, LARGE_PIECE, PIECE)
    piece = np.where(np.bincount(of) == 1, np.maximum(cells, 1), piece)[of]
    pieces = -(-members.size // piece)
    whose = np.repeat(np.arange(len(of)), pieces)
    before = (np.arange(len(whose)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * piece[whose]
    # Raw Philox words, ranked, as in groups.py: the order must not change with a library.
    words = np.random.Philox(key=[seed, 1], counter=[0, 0, 0, 0]).random_raw(len(whose))
    order = np.lexsort((words, of[whose]))
    size = np.minimum(piece[whose], members.size[whose] - before)[order]
    whose = whose[order]
    return Runs(
        start=np.cumsum(size) - size,
        size=size,
        part=members.part[whose],
        row=members.row[whose] + before[order],
        batch=members.batch[whose],
    )

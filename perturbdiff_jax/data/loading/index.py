"""Which groups a split holds, and how they are cut: groups into pieces, pieces into sets, and runs of pieces are read
together as segments.

A group is the cells of one (cell type, batch, perturbation); it gives ceil(size / S) sets of S cells, the last of which
is filled up. Larger groups are shuffled and read in pieces of whole sets; small ones that lie one after the other are
read as one segment. An epoch holds every set of every chosen group once. Nothing here draws or touches expression.
"""

import dataclasses

import numpy as np

from perturbdiff_jax.data.conditions import SPLITS
from perturbdiff_jax.errors import RequestError, unknown

PIECE_CELLS = 65_536  # cells of a group that are shuffled among each other, at most
SEGMENT_CELLS = 4_096  # cells read together, at least: tiny groups one by one would be fifty times as slow


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetIndex:
    """The P pieces of the chosen groups in the store's order, with prefix sums over their sets."""

    cells_per_set: int
    group: np.ndarray  # [P] int64, number of the group in the store's table
    offset: np.ndarray  # [P] int64, cells of the group in the pieces before
    size: np.ndarray  # [P] int64, cells of the piece; all but a group's last piece are whole sets
    used: np.ndarray  # [P] int64, cells used of the whole group
    first_set: np.ndarray  # [P + 1] int64, prefix sums of the pieces' set counts
    first_piece: np.ndarray  # [Q + 1] int64, where the Q segments begin

    @property
    def n_cells(self) -> int:
        """Cells used: each of them has mask 1 exactly once in an epoch."""
        return int(self.size.sum())

    @property
    def n_sets(self) -> int:
        """Sets in an epoch."""
        return int(self.first_set[-1])

    @property
    def padding_share(self) -> float:
        """Share of the cells in an epoch's sets that only fill a set up (mask 0), 0 to 1."""
        return 1.0 - self.n_cells / (self.n_sets * self.cells_per_set)

    def locate(self, number) -> tuple[np.ndarray, np.ndarray]:
        """Finds sets by their number in the unshuffled epoch, by bisection.

        Args:
            number: int or int array, 0 <= number < n_sets.

        Returns:
            (piece, number of the set inside its piece), shaped like `number`.
        """
        number = np.asarray(number, np.int64)
        piece = np.searchsorted(self.first_set, number, side="right") - 1
        return piece, number - self.first_set[piece]


def index_sets(
    groups,
    *,
    split: str,
    cells_per_set: int,
    with_controls: bool = False,
    min_cells: int = 1,
    max_cells: int | None = None,
    piece_cells: int = PIECE_CELLS,
    segment_cells: int = SEGMENT_CELLS,
    name: str = "store",
) -> SetIndex:
    """Chooses the groups of a split and counts their sets.

    Args:
        groups: the store's group table (arrays `start`, `size`, `split`, `is_control`).
        split: one of SPLITS; "control" means the control groups alone.
        cells_per_set: S.
        with_controls: the control groups are chosen as well.
        min_cells: smaller groups are left out.
        max_cells: only the first cells of a larger group are used (rows of a group lie in random order in a
            store, so they are a random sample of it).
        piece_cells: larger groups are cut into pieces of at most so many cells (and of at least one set).
        segment_cells: neighbouring groups are joined until they have so many cells.
        name: what to call the store in a message.

    Raises:
        RequestError: unknown split, a split without cells, or a number below 1.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS, str(name))
    for field, value in (
        ("cells_per_set", cells_per_set),
        ("min_cells", min_cells),
        ("max_cells", max_cells),
        ("piece_cells", piece_cells),
        ("segment_cells", segment_cells),
    ):
        if value is not None and value < 1:
            raise RequestError(f"{field} = {value}: must be at least 1.")
    sizes = np.asarray(groups.size, np.int64)
    wanted = np.asarray(groups.split) == SPLITS.index(split)
    if not sizes[wanted].any():
        raise RequestError(f"{name}: the split {split!r} has no cells.\nCells by split: {_census(groups)}.")
    if with_controls:
        wanted = wanted | np.asarray(groups.is_control, bool)
    chosen = np.flatnonzero(wanted & (sizes >= min_cells))
    if not len(chosen):
        raise RequestError(
            f"{name}: no group of the split {split!r} has min_cells = {min_cells} cells.\n"
            f"The largest one has {sizes[wanted].max()}."
        )
    used = sizes[chosen] if max_cells is None else np.minimum(sizes[chosen], max_cells)
    n = cells_per_set
    sets = -(-used // n)
    pieces = -(-sets // max(1, piece_cells // n))
    of_group = np.repeat(np.arange(len(chosen)), pieces)
    part = np.arange(len(of_group)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    # Pieces of nearly equal numbers of sets, so that none is a small rest.
    first = part * sets[of_group] // pieces[of_group]
    last = (part + 1) * sets[of_group] // pieces[of_group]
    size = np.minimum(last * n, used[of_group]) - first * n
    return SetIndex(
        cells_per_set=n,
        group=chosen[of_group].astype(np.int64),
        offset=first * n,
        size=size,
        used=used[of_group],
        first_set=np.concatenate([[0], np.cumsum(last - first)]).astype(np.int64),
        first_piece=_segments(size, pieces[of_group] > 1, segment_cells),
    )


def _segments(size: np.ndarray, is_part: np.ndarray, least: int) -> np.ndarray:
    """First piece of every segment, and the number of pieces at the end; a part of a group is a segment alone."""
    before = np.concatenate([[0], np.cumsum(size)])
    parts = np.append(np.flatnonzero(is_part), len(size))
    borders = [0]
    while (begin := borders[-1]) < len(size):
        full = int(np.searchsorted(before, before[begin] + least))
        part = int(parts[np.searchsorted(parts, begin)])
        borders.append(begin + 1 if part == begin else min(full, part, len(size)))
    return np.array(borders, np.int64)


def _census(groups) -> str:
    codes, sizes = np.asarray(groups.split), np.asarray(groups.size, np.int64)
    return ", ".join(f"{split} {sizes[codes == code].sum():,}" for code, split in enumerate(SPLITS))

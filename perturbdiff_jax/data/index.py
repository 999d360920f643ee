"""Which groups a split holds, how many sets they make, and where a set of the endless stream lies.

A group is the cells of one (cell type, batch, perturbation); it is cut into ceil(size / S) sets of S cells,
the last of which is filled up. An epoch holds every set of every chosen group once. Nothing here draws or
touches expression.
"""

import dataclasses

import numpy as np

from perturbdiff_jax.data.conditions import SPLITS
from perturbdiff_jax.errors import RequestError, unknown


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetIndex:
    """The N chosen groups, with prefix sums over their sets."""

    cells_per_set: int
    group: np.ndarray  # [N] int64, number of the group in the store's table
    start: np.ndarray  # [N] int64, first cell of the group in the store
    size: np.ndarray  # [N] int64, cells used of the group
    first_set: np.ndarray  # [N + 1] int64, prefix sums of the groups' set counts

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
            (position of the group among the chosen ones, number of the set inside its group), shaped like
            `number`.
        """
        number = np.asarray(number, np.int64)
        position = np.searchsorted(self.first_set, number, side="right") - 1
        return position, number - self.first_set[position]

    def epoch_of(self, number) -> tuple[np.ndarray, np.ndarray]:
        """(epoch, place in that epoch's order) of sets numbered along the endless stream of epochs."""
        return np.divmod(np.asarray(number, np.int64), self.n_sets)


def index_sets(
    groups,
    *,
    split: str,
    cells_per_set: int,
    with_controls: bool = False,
    min_cells: int = 1,
    max_cells: int | None = None,
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
    size = sizes[chosen] if max_cells is None else np.minimum(sizes[chosen], max_cells)
    sets = -(-size // cells_per_set)
    return SetIndex(
        cells_per_set=cells_per_set,
        group=chosen.astype(np.int64),
        start=np.asarray(groups.start, np.int64)[chosen],
        size=size,
        first_set=np.concatenate([[0], np.cumsum(sets)]).astype(np.int64),
    )


def _census(groups) -> str:
    codes, sizes = np.asarray(groups.split), np.asarray(groups.size, np.int64)
    return ", ".join(f"{split} {sizes[codes == code].sum():,}" for code, split in enumerate(SPLITS))

"""Which groups training takes its targets from, and what a share of the training cells leaves of them."""

import dataclasses

import numpy as np

from perturbdiff_jax.data.conditions import TRAIN
from perturbdiff_jax.data.groups import Groups
from perturbdiff_jax.data.storage.face import StoreFace
from perturbdiff_jax.data.storage.joined import JoinedStores, is_screen
from perturbdiff_jax.errors import RequestError, shorten


def target_groups(
    groups: Groups, *, group_by: str = "context", min_cells: int = 1, with_controls: bool = False
) -> np.ndarray:
    """Groups whose cells are targets of training, bool [N].

    Args:
        groups: by context.
        group_by, min_cells: as of data.loader.SetSource; cells that the loader joins are counted together.
        with_controls: control groups are targets as well.
    """
    trained = groups.split == TRAIN
    counted = trained | groups.is_control if with_controls or group_by == "pretraining" else trained
    key = np.arange(len(groups))
    if group_by != "context":
        key = groups.cell_type.astype(np.int64)
    if group_by == "cell_type":
        key = key * (int(groups.perturbation.max()) + 1) + groups.perturbation
    _, of = np.unique(key, return_inverse=True)
    cells = np.bincount(of, weights=np.where(counted, groups.size, 0))
    wanted = trained | groups.is_control if with_controls else trained
    return wanted & (cells[of] >= min_cells)


def targets_of(
    store: StoreFace | JoinedStores, *, group_by: str, min_cells: int, with_controls: bool
) -> np.ndarray:
    """`target_groups` of a store, or of each source of joined ones as it is grouped; bool [its groups]."""
    rule = {"min_cells": min_cells, "with_controls": with_controls}
    if not isinstance(store, JoinedStores):
        return target_groups(store.groups, group_by=group_by, **rule)
    masks = [target_groups(one.groups, group_by=grouping_of(one, group_by), **rule) for one in store.stores]
    return np.concatenate(masks)


def grouping_of(source: StoreFace, group_by: str) -> str:
    """How a source of joined stores is grouped: as asked, RNA-seq without perturbations by cell type (method 8)."""
    return group_by if is_screen(source) else "pretraining"


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeptCells:
    """What a low-data run trains on; `of_...` counts the same of the whole store. Control cells are not counted."""

    fraction: float
    cells: int
    of_cells: int
    groups: int
    of_groups: int
    perturbations: int
    small_cells: int  # left out besides, in groups with fewer than min_cells

    def told(self) -> str:
        """A sentence for people."""
        small = ""
        if self.small_cells:
            small = f" {self.small_cells:,} more are left out in groups below config.loader.min_cells."
        return (
            f"Training on {100 * self.fraction:g} % of the perturbed cells: {self.cells:,} of {self.of_cells:,} in "
            f"{self.groups:,} of {self.of_groups:,} groups; all {self.perturbations:,} perturbations are kept.{small}"
        )


def kept_cells_of(
    store: StoreFace, kept: StoreFace, *, fraction: float, group_by: str, min_cells: int
) -> KeptCells:
    """Counts what `kept`, a share of `store`, has for training.

    Raises RequestError when a perturbation that could be trained on in the whole store has no group of `min_cells`
    cells left.
    """
    rule = {"group_by": group_by, "min_cells": min_cells}
    used = target_groups(kept.groups, **rule)
    whole, left = (
        set(one.perturbation[target_groups(one, **rule)].tolist()) for one in (store.groups, kept.groups)
    )
    if lost := sorted(whole - left):
        names = shorten([store.perturbations[code] for code in lost], most=5)
        enough = _largest_min_cells(kept.groups, whole, group_by)
        raise RequestError(
            f"config.data.fraction={fraction:g}: leaves {names} without a group of config.loader.min_cells={min_cells} "
            f"cells ({len(lost)} of {len(whole)} perturbations).\n"
            f"Allowed: a larger fraction, or min_cells of at most {enough}, which keeps all."
        )
    trained = store.groups.split == TRAIN
    mine = kept.groups.split == TRAIN
    return KeptCells(
        fraction=fraction,
        cells=int(kept.groups.size[used].sum()),
        of_cells=int(store.groups.size[trained].sum()),
        groups=int(used.sum()),
        of_groups=int(trained.sum()),
        perturbations=len(left),
        small_cells=int(kept.groups.size[mine & ~used].sum()),
    )


def _largest_min_cells(groups: Groups, perturbations: set[int], group_by: str) -> int:
    """The largest min_cells with which each of the perturbations is trained on."""
    low, high = 1, int(groups.size.sum())
    while low < high:
        middle = (low + high + 1) // 2
        mask = target_groups(groups, group_by=group_by, min_cells=middle)
        if perturbations <= set(groups.perturbation[mask].tolist()):
            low = middle
        else:
            high = middle - 1
    return low

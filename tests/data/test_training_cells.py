"""Which groups are targets, against the cells that the loader deals; what is said of a share, and what is refused."""

import numpy as np
import pytest
import uneven_screens

from perturbdiff_jax.data.loader import SetSource
from perturbdiff_jax.data.low_data import low_data
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.data.training_cells import kept_cells_of, target_groups
from perturbdiff_jax.errors import RequestError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def store(build, folder):
    """Nothing is held out: P1 40, 3, 25, 12 cells by context, P2 1, 30, 8, 20, P3 1, 9, 1, 1."""
    return (
        Store.open(folder / "s0")
        if (folder / "s0").exists()
        else uneven_screens.prepared(build, folder, holdout=None)
    )


def dealt(store, **options):
    """(perturbation, cell type, batch) of every cell that the loader's first epoch has as a target, from obs."""
    source = SetSource(store, cells_per_set=4, sets_per_batch=2, seed=0, **options)
    rows = set()
    for step in range(len(source)):
        draw = source.draw(step)
        rows |= set(draw.cells[(draw.mask == 1) & (draw.epoch == 0)[:, None]].tolist())
    obs = source.store.obs.iloc[sorted(rows)]
    return set(zip(obs["pert"], obs["kind"], obs["donor"]))


# By cell type there are 84 and 67 perturbed cells, with the controls 115 and 79.
RULES = [(by, cells) for by in ("context", "cell_type", "pretraining") for cells in (1, 9, 12, 20, 37)]


@pytest.mark.parametrize(("group_by", "min_cells"), [*RULES, ("pretraining", 70), ("pretraining", 90)])
@pytest.mark.parametrize("with_controls", [False, True])
def test_targets_are_the_groups_that_the_loader_deals(store, group_by, min_cells, with_controls):
    rule = {"group_by": group_by, "min_cells": min_cells}
    seen = dealt(store, train_on_controls=with_controls, **rule)
    if group_by == "pretraining" and not with_controls:
        seen = {
            names for names in seen if names[0] != "control"
        }  # the loader mixes them in; they are not asked for
    groups = store.groups
    chosen = np.flatnonzero(target_groups(groups, with_controls=with_controls, **rule))
    first = store.obs.iloc[groups.start[chosen]]
    named = set(zip(first["pert"], first["kind"], first["donor"]))
    assert named == seen and len(named) > 0


def test_what_a_share_leaves_is_counted(store):
    # 1 % of 80, 59 and 12 cells: one each.
    kept = kept_cells_of(
        store, low_data(store, fraction=0.01), fraction=0.01, group_by="context", min_cells=1
    )
    assert (kept.cells, kept.of_cells, kept.groups, kept.of_groups, kept.perturbations) == (3, 151, 3, 12, 3)
    assert kept.told() == (
        "Training on 1 % of the perturbed cells: 3 of 151 in 3 of 12 groups; all 3 perturbations are kept."
    )


def test_groups_that_became_too_small_are_not_counted(store):
    share = low_data(store, fraction=0.5)
    sizes = share.groups.size[share.groups.split == 0]
    largest = {}
    for code, size in zip(share.groups.perturbation[share.groups.split == 0].tolist(), sizes.tolist()):
        largest[code] = max(size, largest.get(code, 0))
    enough = min(largest.values())
    kept = kept_cells_of(store, share, fraction=0.5, group_by="context", min_cells=enough)
    assert kept.cells == sizes[sizes >= enough].sum() and kept.groups == (sizes >= enough).sum()
    left_out = sizes[sizes < enough].sum()
    assert left_out > 0 and kept.told().endswith(
        f" {left_out:,} more are left out in groups below config.loader.min_cells."
    )
    with pytest.raises(RequestError) as told:
        kept_cells_of(store, share, fraction=0.5, group_by="context", min_cells=enough + 1)
    first, second = str(told.value).splitlines()
    assert first == (
        f"config.data.fraction=0.5: leaves P3 without a group of config.loader.min_cells={enough + 1} cells "
        "(1 of 3 perturbations)."
    )
    assert second == f"Allowed: a larger fraction, or min_cells of at most {enough}, which keeps all."


def test_cells_that_the_loader_joins_are_counted_together(store):
    """P3 has 1 and 9 cells in two batches of a cell type; of each batch fewer than 9 may be left, of both 9."""
    code = store.perturbations.index("P3")

    def largest(share):
        mine = share.groups.perturbation == code
        by_type = np.bincount(share.groups.cell_type[mine], weights=share.groups.size[mine])
        return share.groups.size[mine].max(), by_type.max()

    shares = (low_data(store, fraction=0.8, seed=seed) for seed in range(50))
    share = next(share for share in shares if largest(share) == (8, 9))
    rule = {"fraction": 0.8, "min_cells": 9}
    assert kept_cells_of(store, share, group_by="cell_type", **rule).perturbations == 3
    with pytest.raises(RequestError, match="leaves P3 without"):
        kept_cells_of(store, share, group_by="context", **rule)


def test_what_the_whole_store_lacks_is_not_the_fractions_fault(store):
    """P3 has no group of 10 cells to begin with."""
    share = low_data(store, fraction=0.9)
    kept = kept_cells_of(store, share, fraction=0.9, group_by="context", min_cells=10)
    assert kept.perturbations == 2 and "all 2 perturbations are kept" in kept.told()

"""The loader on a share of the training cells: epochs, controls, both tiers, several processes, what is read."""

import numpy as np
import pytest
import uneven_screens

from perturbdiff_jax.data.loader import SetSource
from perturbdiff_jax.data.loading.set_stream import GIB, Reach
from perturbdiff_jax.data.low_data import low_data
from perturbdiff_jax.data.storage import staged_fetch
from perturbdiff_jax.data.storage.fetch import Fetch
from perturbdiff_jax.data.storage.subset import without_held_out
from perturbdiff_jax.data.store import Store

SHORT = Reach(window=40, piece=8, segment=10)
FIELDS = ("perturbed", "control", "perturbation", "cell_type", "batch", "mask")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def store(build, folder):
    return Store.open(folder / "s0") if (folder / "s0").exists() else uneven_screens.prepared(build, folder)


def source_of(store, fraction, **options):
    share = without_held_out(low_data(store, fraction=fraction))
    options = {"cells_per_set": 4, "sets_per_batch": 4, "seed": 0, "reach": SHORT} | options
    return SetSource(share, **options)


@pytest.mark.parametrize("group_by", ["context", "cell_type", "pretraining"])
@pytest.mark.parametrize("fraction", [0.01, 0.3])
def test_an_epoch_has_every_kept_cell_once_and_all_controls_serve(store, group_by, fraction):
    names = uneven_screens.named_groups(low_data(store, fraction=fraction))
    wanted = [cell for key, cells in names.items() if key[-1] == 0 for cell in cells]
    controls = {cell for key, cells in names.items() if key[-1] == 3 for cell in cells}
    if group_by == "pretraining":
        wanted += sorted(controls)
    source = source_of(store, fraction, group_by=group_by)
    obs, real, partners = source.store.obs.index.to_numpy(), [], set()
    for step in range(40 * len(source)):
        draw = source.draw(step)
        real += obs[draw.cells[(draw.mask == 1) & (draw.epoch == 0)[:, None]]].tolist()
        partners |= set(obs[draw.control.cells].reshape(-1))
    assert sorted(real) == sorted(wanted) and source.n_cells == len(wanted)
    if group_by != "pretraining":
        assert partners <= controls and len(partners) > 0.9 * len(
            {
                cell
                for key, cells in names.items()
                if key[-1] == 3
                for cell in cells
                if _serves(names, key, group_by)
            }
        )
    assert set(obs) == {cell for key, cells in names.items() if key[-1] in (0, 3) for cell in cells}


def _serves(names, control, group_by):
    kinds = slice(1, 3) if group_by == "context" else slice(1, 2)
    return any(key[kinds] == control[kinds] for key in names if key[-1] == 0)


@pytest.mark.parametrize("group_by", ["context", "cell_type", "pretraining"])
def test_streamed_is_resident_and_two_processes_are_one(store, group_by):
    options = {"group_by": group_by, "seed": 3}
    whole = source_of(store, 0.2, tier="resident", **options)
    streamed = source_of(store, 0.2, tier="streamed", **options)
    halves = [
        source_of(store, 0.2, tier="streamed", rows=[rows], **options) for rows in (range(2), range(2, 4))
    ]
    for step in (5, 0, 1, 2, 3, 4, 9):  # in any order: a resumed run begins somewhere
        for field in FIELDS:
            value = getattr(whole[step], field)
            np.testing.assert_array_equal(getattr(streamed[step], field), value)
            joined = np.concatenate([getattr(half[step], field) for half in halves])
            np.testing.assert_array_equal(joined, value)


def test_a_share_is_kept_in_memory_where_the_whole_is_not(store):
    held = 8 * store.nnz / GIB  # what the whole store takes on the host
    options = {"tier": "auto", "memory": 0.5 * held}
    assert SetSource(store, cells_per_set=4, sets_per_batch=4, seed=0, **options).tier.name == "streamed"
    assert source_of(store, 0.05, **options).tier.name == "resident"
    assert source_of(store, 0.05, tier="auto", memory=0.2 * held).tier.name == "streamed"


def test_only_kept_cells_are_read(store, monkeypatch):
    """Resident once, streamed in each epoch: rows of other training cells are asked for only where they lie between."""
    monkeypatch.setattr(staged_fetch, "THROUGH", 0)
    read, whole = [], Fetch.__init__

    def counted(self, reads, **options):
        read.extend(row for _, start, stop in reads for row in range(start, stop))
        whole(self, reads, **options)

    monkeypatch.setattr(Fetch, "__init__", counted)
    for tier in ("resident", "streamed"):
        read.clear()
        source = source_of(store, 0.05, tier=tier)
        for step in range(3 * len(source)):
            source[step]
        kept = set(source.store.obs.index)
        names = store.obs.index
        assert read and {names[row] for row in read} <= kept and len(kept) < 0.6 * store.n_cells

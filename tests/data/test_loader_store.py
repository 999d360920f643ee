"""The loader on a prepared store: every way of grouping, both tiers, against the store's own cells and codes."""

import numpy as np
import pytest

from perturbdiff_jax.data.loader import SetSource
from perturbdiff_jax.data.loading.set_stream import Reach
from perturbdiff_jax.data.prepare import PrepareOptions, prepare
from perturbdiff_jax.data.storage.view import regroup

S = 4
SHORT = Reach(window=40, piece=8, segment=10)
OPTIONS = PrepareOptions(
    perturbation_key="pert",
    control="control",
    cell_type_key="kind",
    batch_key="donor",
    all_genes=True,
    holdout={"fraction": 0.4, "context": {"cell_type": ["B"]}},
)


@pytest.fixture
def store(build, save, tmp_path):
    return prepare([save(build(cells=9))], tmp_path / "a.store", OPTIONS, echo=lambda line: None)


@pytest.mark.parametrize("group_by", ["context", "cell_type", "pretraining"])
@pytest.mark.parametrize("tier", ["resident", "streamed"])
def test_batches_hold_the_stores_cells_in_groups_of_the_kind_asked_for(store, group_by, tier):
    view = regroup(store, group_by)
    cells = view.load().toarray()
    made = SetSource(
        store, cells_per_set=S, sets_per_batch=4, seed=0, group_by=group_by, tier=tier, reach=SHORT
    )
    real = []
    for step in range(2 * len(made)):
        draw, batch = made.draw(step), made[step]
        np.testing.assert_allclose(batch.perturbed, cells[draw.perturbed.cells] / 10, rtol=1e-6)
        np.testing.assert_allclose(batch.control, cells[draw.control.cells] / 10, rtol=1e-6)
        real.append(draw.cells[(draw.mask == 1) & (draw.epoch == 0)[:, None]])
        groups = view.groups.of(draw.cells)
        assert (groups == draw.group[:, None]).all()
        assert (view.groups.of(draw.control.cells) == view.groups.control[draw.group][:, None]).all()
        batches = view.batch_codes(draw.cells)
        np.testing.assert_array_equal(batch.batch, batches[:, 0] if group_by == "context" else batches)
        np.testing.assert_array_equal(batch.cell_type, view.groups.cell_type[draw.group])
    expected = np.flatnonzero(view.groups.split[view.groups.of(np.arange(view.n_cells))] == 0)
    np.testing.assert_array_equal(np.sort(np.concatenate(real)), expected)


@pytest.mark.parametrize("group_by", ["context", "cell_type", "pretraining"])
def test_streamed_is_resident_on_a_store(store, group_by):
    made = [
        SetSource(store, cells_per_set=S, sets_per_batch=6, seed=3, group_by=group_by, tier=tier, reach=SHORT)
        for tier in ("resident", "streamed")
    ]
    for step in range(len(made[0])):
        for field in ("perturbed", "control", "perturbation", "cell_type", "batch", "mask"):
            np.testing.assert_array_equal(*(getattr(source[step], field) for source in made))


def test_sets_of_pretraining_mix_perturbations_and_pair_other_cells(store):
    made = SetSource(store, cells_per_set=8, sets_per_batch=4, seed=0, group_by="pretraining")
    view, kinds = regroup(store, "pretraining"), set()
    perturbed = view.obs["pert"].to_numpy()
    for step in range(len(made)):
        draw = made.draw(step)
        assert (draw.cells != draw.control.cells).all()
        kinds |= {len(set(perturbed[row])) for row in draw.cells}
    assert max(kinds) > 2

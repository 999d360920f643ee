"""The simulated screen: what it promises about counts, contexts, the hidden batch factor and the truth."""

import dataclasses

import anndata
import numpy as np
import pytest

from perturbdiff_jax.data.simulate import CONTROL, SimulateOptions, _group_counts, simulate, write_simulated
from perturbdiff_jax.errors import RequestError

SMALL = SimulateOptions(
    cell_types=2, batches=3, perturbations=4, genes=80, cells_per_group=30, controls_per_context=40
)


@pytest.fixture(scope="module")
def screen():
    return simulate(SMALL)


def test_an_ordinary_screen_of_raw_counts(screen):
    adata, _ = screen
    assert adata.shape[1] == 80 and adata.X.format == "csr" and adata.X.dtype == np.float32
    assert (adata.X.data > 0).all() and (adata.X.data == np.round(adata.X.data)).all()
    assert (np.asarray(adata.X.sum(axis=1)) > 0).all()
    assert adata.obs_names.is_unique and adata.var_names.is_unique
    sizes = adata.obs.groupby(["cell_type", "batch", "perturbation"], observed=False).size()
    assert len(sizes) == 2 * 3 * 5 and sizes.min() >= 8
    assert (sizes.xs(CONTROL, level="perturbation") == 40).all()
    assert sizes.drop(CONTROL, level="perturbation").nunique() > 5


def test_the_default_is_the_quickstarts_world():
    options = SimulateOptions()
    assert (options.cell_types, options.batches, options.perturbations, options.genes) == (3, 4, 24, 500)
    expected = 12 * (24 * options.cells_per_group + options.controls_per_context)
    assert 18_000 < expected < 23_000


def test_the_same_seed_gives_the_same_cells_and_another_does_not(screen):
    again, other = simulate(SMALL)[0], simulate(dataclasses.replace(SMALL, seed=1))[0]
    assert (again.X != screen[0].X).nnz == 0 and again.obs.equals(screen[0].obs)
    assert other.shape != again.shape or (other.X != again.X).nnz > 0


def test_cells_come_in_no_order(screen):
    labels = screen[0].obs["perturbation"].to_numpy()
    assert (labels[1:] != labels[:-1]).mean() > 0.5


def test_cells_follow_the_truth():
    """Mean log fold change of many cells correlates with the true one, condition by condition."""
    options = dataclasses.replace(
        SMALL, cells_per_group=400, controls_per_context=600, cell_types=1, batches=1
    )
    adata, truth = simulate(options)
    labels = adata.obs["perturbation"].to_numpy()
    share = {name: np.asarray(adata.X[labels == name].sum(axis=0)).ravel() for name in np.unique(labels)}
    for q in range(options.perturbations):
        seen = np.log((share[f"P{q + 1:02d}"] + 1) / share[f"P{q + 1:02d}"].sum())
        base = np.log((share[CONTROL] + 1) / share[CONTROL].sum())
        real = np.log(truth.rate[0, 0, q + 1] / truth.rate[0, 0, 0])
        moved = np.abs(truth.response[0, 0, q]).max() > 0.3
        if moved:
            assert np.corrcoef(seen - base, real)[0, 1] > 0.8


def test_cell_types_answer_differently(screen):
    response = screen[1].response
    assert not np.allclose(response[0], response[1], atol=0.2)


def test_a_condition_has_a_family_of_responses_only_with_the_hidden_factor(screen):
    spread = screen[1].response.std(axis=1).max()
    still = simulate(dataclasses.replace(SMALL, hidden=0.0))[1].response
    assert spread > 0.15
    np.testing.assert_allclose(still, still[:, :1].repeat(3, axis=1))


def test_the_hidden_factor_scales_and_bends(screen):
    """Batches differ in the size of a response and in its direction over programs."""
    response = screen[1].response[0]
    norms = np.linalg.norm(response, axis=-1)
    assert (norms.max(axis=0) / norms.min(axis=0)).max() > 1.2
    unit = response / norms[..., None]
    cosine = np.einsum("bpk,cpk->bcp", unit, unit)
    assert cosine.min() < 0.99 and cosine.min() > 0.5


def test_no_effect_leaves_all_as_the_control():
    truth = simulate(dataclasses.replace(SMALL, effect=0.0))[1]
    np.testing.assert_allclose(truth.rate, truth.rate[:, :, :1].repeat(5, axis=2))


def test_shares_sum_to_one(screen):
    np.testing.assert_allclose(screen[1].rate.sum(axis=-1), 1.0)


def test_counts_are_overdispersed_with_dropout_and_spread_libraries():
    """Cells of one group whose programs do nothing: what is left is counting noise."""
    genes, cells = 60, 4000
    counts = _group_counts(
        np.random.default_rng(0),
        np.linspace(-3.0, 3.0, genes),
        None,
        np.zeros((1, genes)),
        np.full(genes, 0.25),
        800.0,
        cells,
    )
    totals = counts.sum(axis=1, keepdims=True)
    assert np.percentile(totals, 90) / np.percentile(totals, 10) > 1.8
    expected = totals * (counts.sum(axis=0) / totals.sum())
    busy = expected.mean(axis=0) > 5
    excess = ((counts - expected) ** 2 - expected)[:, busy].mean(axis=0) / (expected**2)[:, busy].mean(axis=0)
    np.testing.assert_allclose(excess, 0.25, atol=0.12)  # the dispersion that was asked for, not Poisson's 0
    rare = (expected.mean(axis=0) > 0.2) & (expected.mean(axis=0) < 1.0)
    negative_binomial = (1 + 0.25 * expected) ** (-1 / 0.25)
    surplus = ((counts == 0).mean(axis=0) - negative_binomial.mean(axis=0))[rare].mean()
    assert surplus > 0.005  # dropout: more zeros than the dispersion alone explains


def test_writing_leaves_one_file(tmp_path):
    path = write_simulated(SMALL, tmp_path / "deep" / "screen.h5ad")
    assert [p.name for p in path.parent.iterdir()] == ["screen.h5ad"]
    assert (anndata.read_h5ad(path).X != simulate(SMALL)[0].X).nnz == 0


@pytest.mark.parametrize(("name", "value"), [("genes", 0), ("cell_types", -1), ("controls_per_context", 1)])
def test_impossible_sizes_are_refused(name, value):
    with pytest.raises(RequestError, match=name):
        SimulateOptions(**{name: value})

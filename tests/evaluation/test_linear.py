"""The bilinear rival against its normal equations and a principal component analysis, written out directly."""

import numpy as np
import pytest
from toy_cells import GENES, screen, store_of

from perturbdiff_jax.evaluation.baselines import Ridge, trained_baselines, training_of
from perturbdiff_jax.evaluation.contexts import Context, as_cells, pool
from perturbdiff_jax.evaluation.linear import GENES as BY_GENE
from perturbdiff_jax.evaluation.linear import ONE_HOT, Linear, gene_scores

NAMES = tuple(f"g{i}" for i in range(12))


def world(perturbations, seed=0):
    rng = np.random.default_rng(seed)
    bulks = rng.gamma(2.0, size=(7, len(NAMES)))
    return bulks, {name: rng.normal(size=len(NAMES)) for name in perturbations}


def covariance_scores(bulks, components):
    """Scores of the genes by the eigenvectors of the pseudobulks' covariance over genes."""
    table = bulks.T - bulks.T.mean(axis=0)
    size, axes = np.linalg.eigh(table.T @ table)
    return table @ axes[:, np.argsort(-size)[:components]]


def least_squares(y, g, p, penalty):
    """W of the ridge normal equations of both sides, by one system over all entries of W."""
    left = g.T @ g + penalty * np.eye(g.shape[1])
    right = p.T @ p + penalty * np.eye(p.shape[1])
    flat = np.linalg.solve(np.kron(left, right), (g.T @ y @ p).ravel())
    return flat.reshape(g.shape[1], p.shape[1])


def test_perturbations_called_after_genes_are_embedded_like_them():
    bulks, shifts = world(["g3", "g7", "g1", "other"])
    model = Linear.fit(bulks, shifts, NAMES, components=3)
    assert model.kind == BY_GENE
    g = covariance_scores(bulks, 3)
    p = np.vstack([g[3], g[7], g[1], np.zeros(3)])  # "other" has no embedding; the control's is zero
    y = np.stack([shifts["g3"], shifts["g7"], shifts["g1"], np.zeros(12)], axis=1)
    b = y.mean(axis=1)
    w = least_squares(y - b[:, None], g, p, 0.1)
    for name, row in (("g3", 3), ("g5", 5)):  # g5 was never perturbed
        np.testing.assert_allclose(model.shift(name), g @ w @ g[row] + b, rtol=1e-6, atol=1e-9)
    assert model.shift("other") is None and model.shift("nobody") is None


def test_other_names_are_one_hot():
    bulks, shifts = world(["drug a", "drug b", "g2", "drug c"])
    model = Linear.fit(bulks, shifts, NAMES, components=4)
    assert model.kind == ONE_HOT
    g = covariance_scores(bulks, 4)
    p = np.vstack([np.eye(4), np.zeros(4)])
    y = np.stack([*shifts.values(), np.zeros(12)], axis=1)
    b = y.mean(axis=1)
    w = least_squares(y - b[:, None], g, p, 0.1)
    for i, name in enumerate(shifts):
        np.testing.assert_allclose(model.shift(name), g @ w @ np.eye(4)[i] + b, rtol=1e-6, atol=1e-9)
    assert model.shift("g5") is None  # a gene, but nobody perturbed it


def test_scores_are_those_of_the_covariance_up_to_sign_and_drop_empty_directions():
    bulks, _ = world([])
    found, wanted = gene_scores(bulks, 3), covariance_scores(bulks, 3)
    np.testing.assert_allclose(np.abs(found), np.abs(wanted), atol=1e-9)
    assert gene_scores(np.vstack([bulks[:1]] * 5), 3).shape == (12, 1)
    assert gene_scores(np.ones((4, 12)), 3).shape == (12, 0)


def test_without_trained_perturbations_there_is_no_model():
    bulks, _ = world([])
    assert Linear.fit(bulks, {}, NAMES) is None


def test_a_single_pseudobulk_without_variance_predicts_the_mean_shift():
    model = Linear.fit(np.ones((1, 12)), {"g1": np.full(12, 3.0)}, NAMES)
    np.testing.assert_allclose(model.shift("g1"), 1.5)  # the control's zeros count in the mean


@pytest.fixture(scope="module")
def scene():
    raw = screen()
    store = store_of(raw, lambda name, _, batch: "train" if batch == "x" and name != "P3" else "test")
    training = training_of(store, GENES)
    rng = np.random.default_rng(1)
    control = as_cells(rng.gamma(2.0, size=(9, len(GENES))))
    real = {("y", name): as_cells(rng.gamma(2.0, size=(4, len(GENES)))) for name in ("P1", "P2", "P3")}
    context = Context("B", tuple(GENES), {"y": control}, real)
    return training, context


def test_it_shifts_the_contexts_own_control_mean(scene):
    training, context = scene
    linear = training.linear(tuple(GENES))
    found = dict(trained_baselines(context, training, Ridge.fit(training), linear, np.random.default_rng(0)))
    mean = context.control["y"].toarray().mean(axis=0)
    cells = pool(found["linear"])["P1"].toarray()
    assert cells.shape == (4, len(GENES)) and np.ptp(cells, axis=0).max() == 0.0
    np.testing.assert_allclose(cells[0], np.maximum(mean + linear.shift("P1"), 0.0), rtol=1e-5, atol=1e-6)
    assert pool(found["linear"])["P3"] is None  # never trained, no gene of that name


def test_it_is_fitted_to_the_training_groups(scene):
    training, _ = scene
    groups = [group for group in training.groups if not group.is_control]
    assert {group.perturbation for group in groups} == {"P1", "P2"}
    linear = training.linear(tuple(GENES))
    assert linear.kind == BY_GENE  # P1 is a gene's name: one of two
    shifts = {
        name: np.mean([g.mean - g.control_mean for g in groups if g.perturbation == name], axis=0)
        for name in ("P1", "P2")
    }
    wanted = Linear.fit(np.stack([group.mean for group in training.groups]), shifts, tuple(GENES))
    np.testing.assert_allclose(linear.shift("P1"), wanted.shift("P1"))

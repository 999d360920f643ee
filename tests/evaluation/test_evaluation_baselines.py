"""Baselines against loops over the training cells of a small screen."""

import types

import numpy as np
import pytest
from toy_cells import GENES, PERTURBATIONS, lognorm, screen, store_of

from perturbdiff_jax.evaluation import baselines
from perturbdiff_jax.evaluation.baselines import (
    TRAINED_BASELINES,
    Ridge,
    control_cells,
    trained_baselines,
    training_of,
)
from perturbdiff_jax.evaluation.contexts import Context, as_cells, halves, pool


def split(name, cell_type, batch):
    """P3 is trained nowhere; (B, y) and (A, y) are test for P1 and P2 but (A, y) trains P2."""
    if name == "P3":
        return "test"
    return "train" if batch == "x" or (name, cell_type) == ("P2", "A") else "test"


@pytest.fixture(scope="module")
def world():
    raw = screen()
    log = lognorm(raw)
    store = store_of(raw, split)
    x = log.X.toarray().astype(np.float64)
    names, types_, lots = (log.obs[key].to_numpy() for key in ("pert", "type", "lot"))

    def rows(name=None, cell_type=None, batch=None):
        keep = np.ones(len(x), bool)
        for values, wanted in ((names, name), (types_, cell_type), (lots, batch)):
            if wanted is not None:
                keep &= values == wanted
        return keep

    train = np.array([n == "control" or split(n, t, b) == "train" for n, t, b in zip(names, types_, lots)])
    context = Context(
        cell_type="B",
        genes=tuple(GENES),
        control={"y": as_cells(x[rows("control", "B", "y")])},
        real={("y", name): as_cells(x[rows(name, "B", "y")]) for name in PERTURBATIONS},
    )
    training = training_of(store, GENES)
    fitted = Ridge.fit(training), training.linear(tuple(GENES))
    found = dict(trained_baselines(context, training, *fitted, np.random.default_rng(0)))
    return types.SimpleNamespace(
        x=x, rows=rows, train=train, context=context, training=training, found=found, names=names
    )


def copies(prediction, name):
    cells = prediction["y", name].toarray()
    assert np.ptp(cells, axis=0).max() == 0.0  # a point mass
    return cells[0]


def test_names_and_cell_counts(world):
    assert tuple(world.found) == TRAINED_BASELINES
    for model, prediction in world.found.items():
        for key, cells in prediction.items():
            assert cells is None or cells.shape == world.context.real[key].shape, (model, key)


@pytest.mark.parametrize(
    ("model", "place"),
    [
        ("mean per perturbation", {"name": "P1"}),
        ("mean per cell type", {"cell_type": "B"}),
        ("mean per batch", {"batch": "y"}),
        ("mean overall", {}),
    ],
)
def test_the_four_means_are_means_of_training_cells(world, model, place):
    wanted = world.x[world.train & world.rows(**place)].mean(axis=0)
    np.testing.assert_allclose(copies(world.found[model], "P1"), wanted, rtol=1e-5, atol=1e-6)


def shift(world, name, contexts):
    found = []
    for cell_type, batch in contexts:
        control = world.x[world.rows("control", cell_type, batch)].mean(axis=0)
        found.append(world.x[world.rows(name, cell_type, batch)].mean(axis=0) - control)
    return sum(found) / len(found)


def test_mean_delta_counts_each_training_context_once(world):
    delta = shift(world, "P2", [("A", "x"), ("B", "x"), ("A", "y")])
    context_mean = world.x[world.rows("control", "B", "y")].mean(axis=0)
    wanted = np.maximum(context_mean + delta, 0.0)
    found = copies(world.found["context mean + mean delta"], "P2")
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_shifted_control_cells_are_control_cells_plus_the_shift(world):
    delta = shift(world, "P1", [("A", "x"), ("B", "x")])
    control = np.maximum(world.x[world.rows("control", "B", "y")] + delta, 0.0)
    found = world.found["control cells + mean delta"]["y", "P1"].toarray()
    distance = np.abs(found[:, None] - control[None]).max(axis=2)
    assert distance.min(axis=1).max() < 1e-4
    assert len(set(distance.argmin(axis=1))) == len(found)  # no cell twice: there are enough
    assert found.min() >= 0.0


def test_ridge_is_the_penalised_least_squares_over_cells(world):
    names = world.names[world.train]
    table = [("A", "B"), ("x", "y"), ("P1", "P2")]
    masks = [
        [world.rows(cell_type=c) for c in table[0]],
        [world.rows(batch=b) for b in table[1]],
        [world.rows(name=p) for p in table[2]],
    ]
    features = np.stack([mask[world.train] for group in masks for mask in group], axis=1).astype(float)
    targets = world.x[world.train]
    assert len(names) == len(targets)
    # The penalty as six more rows of data, the intercept as a free column.
    design = np.vstack(
        [np.column_stack([features, np.ones(len(features))]), np.column_stack([np.eye(6), np.zeros(6)])]
    )
    beta = np.linalg.lstsq(design, np.vstack([targets, np.zeros((6, targets.shape[1]))]), rcond=None)[0]
    wanted = np.maximum(np.array([0, 1, 0, 1, 1, 0, 1]) @ beta, 0.0)  # B, y, P1
    np.testing.assert_allclose(copies(world.found["ridge"], "P1"), wanted, rtol=1e-4, atol=1e-5)


def test_a_perturbation_that_was_never_trained_is_undefined(world):
    for model in (
        "mean per perturbation",
        "context mean + mean delta",
        "control cells + mean delta",
        "ridge",
        "linear",
    ):
        assert pool(world.found[model])["P3"] is None, model
    for model in ("mean per cell type", "mean per batch", "mean overall"):
        assert pool(world.found[model])["P3"] is not None, model


def test_blocks_of_the_store_change_nothing(world, monkeypatch):
    reads = []
    store = store_of(screen(), split)
    whole = store.read
    store.read = lambda start, stop: reads.append(stop - start) or whole(start, stop)
    training_of(store, GENES)
    few = len(reads)
    monkeypatch.setattr(baselines, "_BLOCK", 1)
    again = training_of(store, GENES)
    assert few < len(again.groups) <= len(reads) - few
    for a, b in zip(again.groups, world.training.groups):
        np.testing.assert_array_equal(a.mean, b.mean)


def test_control_baseline_and_ceiling_use_the_context_itself(world):
    cells = control_cells(world.context, np.random.default_rng(0))["y", "P1"].toarray()
    control = world.context.control["y"].toarray()
    assert all(any((cell == other).all() for other in control) for cell in cells)
    truth, half = halves(world.context, np.random.default_rng(0))
    for key, real in world.context.real.items():
        both = np.vstack([truth.real[key].toarray(), half[key].toarray()])
        assert abs(truth.real[key].shape[0] - half[key].shape[0]) <= 1
        order = [np.lexsort(part.T) for part in (both, real.toarray())]
        np.testing.assert_array_equal(both[order[0]], real.toarray()[order[1]])  # disjoint and complete

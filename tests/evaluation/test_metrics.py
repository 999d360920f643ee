"""Own metrics against loops, scipy and, where it is installed, cell-eval itself on the cells."""

import math
import tempfile

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.spatial.distance import cdist

from perturbdiff_jax.evaluation import metrics
from perturbdiff_jax.evaluation.populations import Copies


def cells(seed, n=30, genes=12):
    rng = np.random.default_rng(seed)
    return np.maximum(rng.normal(1.0, 1.0, size=(n, genes)), 0.0).astype(np.float32)


def half_energy(x, y):
    def mean(a, b):
        return np.maximum(cdist(a.astype(float) / 10, b.astype(float) / 10), 1e-4).mean()

    return mean(x, y) - 0.5 * mean(x, x) - 0.5 * mean(y, y)


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix])
def test_energy_is_half_the_energy_distance(kind, monkeypatch):
    monkeypatch.setattr(metrics, "_CHUNK", 7)  # several blocks, the last one smaller
    x, y = cells(0), cells(1, n=23) + 0.5
    assert metrics.energy(kind(x), kind(y)) == pytest.approx(half_energy(x, y), rel=1e-6)


def test_energy_of_equal_cells_is_zero_and_spread_can_be_given():
    x, y = cells(0), cells(1)
    assert metrics.energy(x, x[::-1]) == pytest.approx(0.0, abs=1e-7)
    spread = metrics.mean_distance(y, y)
    assert metrics.energy(x, y, spread) == pytest.approx(metrics.energy(x, y), rel=1e-12)


def test_energy_of_point_masses_has_the_smallest_distance():
    x = np.repeat(cells(0, n=1), 5, axis=0)
    assert metrics.mean_distance(x, x) == pytest.approx(1e-4, rel=1e-3)


def test_r2_by_loop():
    x, y = cells(0)[0], cells(1)[0]
    mean = sum(y) / len(y)
    wanted = 1 - sum((b - a) ** 2 for a, b in zip(x, y)) / sum((b - mean) ** 2 for b in y)
    assert metrics.r2(x, y) == pytest.approx(wanted, rel=1e-5)
    assert metrics.r2(y, y) == 1.0
    assert math.isnan(metrics.r2(x, np.ones_like(y)))


def test_pearson_of_a_constant_is_undefined():
    assert math.isnan(metrics.pearson(np.zeros(5), np.arange(5.0)))
    assert math.isnan(metrics.pearson(1e-15 * np.arange(5.0), np.arange(5.0)))  # rounding, not variation
    assert metrics.pearson(np.arange(5.0), 3 - 2 * np.arange(5.0)) == pytest.approx(-1.0)


def test_discrimination_counts_nearer_effects_and_skips_the_target_gene():
    real = np.array([[0.0, 0.0, 5.0], [1.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    predicted = np.array([[0.9, 0.1, 5.0], [1.0, 0.0, 1.0], [np.nan] * 3])
    found = metrics.discrimination(predicted, real, ["a", "b", "c"], ["u", "v", "a"], "l1")
    # Without the gene "a" the first effect is (0.9, 0.1): nearest to the second real one, then its own.
    assert found[0] == pytest.approx(1 - 1 / 3)
    # For "b" all genes count: distances 5, 1, 5, so its own is the nearest.
    assert found[1] == 1.0
    assert math.isnan(found[2])


def test_directions_and_names():
    assert {"mse", "mae", "energy"} == set(metrics.LOWER_IS_BETTER)
    assert len(set(metrics.METRICS)) == len(metrics.METRICS) == 17


def test_mean_metrics_equal_cell_eval():
    cell_eval = pytest.importorskip("cell_eval")
    from perturbdiff_jax.evaluation.celleval import quiet

    names, genes = ["a", "b", "c", "g3"], [f"g{i}" for i in range(12)]
    control = cells(9, n=40)
    real = {name: cells(i) + 0.3 * (np.arange(12) % 4 == i) for i, name in enumerate(names)}
    pred = {name: cells(20 + i) + 0.3 * (np.arange(12) % 4 == i) for i, name in enumerate(names)}

    def adata(parts):
        labels = np.repeat(["ctl", *names], [40, *(30 for _ in names)])
        x = np.concatenate([control, *(parts[name] for name in names)]).astype(np.float32)
        obs = pd.DataFrame({"p": labels}, index=[str(i) for i in range(len(labels))])
        return ad.AnnData(x, obs=obs, var=pd.DataFrame(index=genes))

    with quiet(), tempfile.TemporaryDirectory() as folder:
        evaluator = cell_eval.MetricsEvaluator(
            adata(pred), adata(real), control_pert="ctl", pert_col="p", outdir=folder, skip_de=True
        )
        skip = ["clustering_agreement", "pearson_edistance"]
        wanted, _ = evaluator.compute(
            profile="anndata", skip_metrics=skip, write_csv=False, break_on_error=True
        )
    found = metrics.mean_metrics(
        np.stack([metrics.mean_of(pred[name]) for name in names]),
        np.stack([metrics.mean_of(real[name]) for name in names]),
        metrics.mean_of(control),
        names,
        genes,
    )
    order = [wanted["perturbation"].to_list().index(name) for name in names]
    assert set(found) == set(metrics.MEAN_METRICS)
    for metric, values in found.items():
        np.testing.assert_allclose(values, wanted[metric].to_numpy()[order], rtol=2e-5, err_msg=metric)
    assert len(set(found["discrimination_score_l1"])) > 1  # else the check could not see a wrong rank


def test_the_mean_is_added_up_in_float64():
    cells = np.float32(3.0) + np.random.default_rng(0).random((20_000, 3), dtype=np.float32)
    exact = cells.astype(np.float64).mean(axis=0)
    copies = Copies(sp.csr_matrix(cells[:2]), np.array([19_999, 1]))
    np.testing.assert_allclose(metrics.mean_of(sp.csr_matrix(cells)), exact, rtol=1e-12)
    np.testing.assert_allclose(metrics.mean_of(cells), exact, rtol=1e-12)
    np.testing.assert_allclose(
        metrics.mean_of(copies), copies.toarray().astype(float).mean(axis=0), rtol=1e-12
    )

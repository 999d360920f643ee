"""The table of mean changes: against loops over cells, bounded, with an interval where there are several draws."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from toy_cells import GENES, KEYS, evaluated, lognorm, prediction, screen

from perturbdiff_jax.evaluation import celleval, mean_changes, neighbourhood, spread
from perturbdiff_jax.evaluation.contexts import Context, as_cells


@pytest.fixture(autouse=True)
def no_cell_eval(monkeypatch):
    """What is tested here depends on no differential expression and no UMAP, which take seconds."""
    for slow in (celleval, neighbourhood):
        monkeypatch.setattr(slow, "installed", lambda: False)


def cells_of(adata, **wanted):
    """The cells with these labels [n, G]."""
    rows = np.ones(adata.n_obs, dtype=bool)
    for field, label in wanted.items():
        rows &= (adata.obs[KEYS[field]] == label).to_numpy()
    return adata.X[np.flatnonzero(rows)].toarray()


def mean_rows(adata, **wanted):
    """Mean over the cells with these labels, cell after cell."""
    cells = cells_of(adata, **wanted)
    total = np.zeros(adata.n_vars)
    for row in cells:
        total += row
    return total / len(cells)


def test_changes_of_a_small_screen_are_those_of_a_loop(tmp_path):
    raw = screen()
    pred, real = prediction(raw), lognorm(raw)
    del pred.obs["draw"]
    evaluated(tmp_path, pred)
    table = pd.read_csv(tmp_path / "mean_changes.csv.gz")
    assert tuple(table.columns) == mean_changes.COLUMNS
    assert len(table) == 6 * len(GENES) and table[["low", "high"]].isna().all(axis=None)
    for (cell_type, name), part in table.groupby(["cell_type", "perturbation"]):
        control = mean_rows(real, cell_type=cell_type, batch="y", perturbation="control")
        for column, cells in (("real_change", real), ("pred_change", pred)):
            change = mean_rows(cells, cell_type=cell_type, batch="y", perturbation=name) - control
            wanted = dict(zip(GENES, change))
            np.testing.assert_allclose(part[column], [wanted[g] for g in part["gene"]], rtol=1e-4, atol=1e-6)
        assert (np.diff(part["real_change"].abs()) <= 1e-9).all()


def test_several_draws_have_an_interval(tmp_path):
    raw = screen()
    parts = [prediction(raw, seed=1 + k) for k in range(3)]
    for k, part in enumerate(parts):
        part.obs["draw"] = np.int64(k)
        part.obs_names = [f"draw{k}-{name}" for name in part.obs_names]
    joined = anndata.concat(parts)
    joined.uns = parts[0].uns | {
        "perturbdiff": dict(parts[0].uns["perturbdiff"]) | {"model_error": {"cells": 0.1, "change": 0.02}}
    }
    evaluated(tmp_path, joined)
    table = pd.read_csv(tmp_path / "mean_changes.csv.gz").set_index(["cell_type", "perturbation", "gene"])
    where = {"cell_type": "A", "batch": "y", "perturbation": "P2"}
    control = mean_rows(lognorm(raw), **(where | {"perturbation": "control"}))
    gene = GENES.index("g8")
    cells = [cells_of(part, **where) for part in parts]
    known = spread.drawn(cells, control)
    low, high = spread.interval(
        known, 0.8, error=spread.Error(0.1, 0.02), cells=cells_of(lognorm(raw), **where).shape[0]
    )
    row = table.loc[("A", "P2", "g8")]
    assert row["low"] == pytest.approx(low[gene], rel=1e-4)
    assert row["high"] == pytest.approx(high[gene], rel=1e-4)
    mean = np.mean([part.mean(axis=0)[gene] for part in cells]) - control[gene]
    assert row["pred_change"] == pytest.approx(mean, rel=1e-4)


def test_a_large_screen_keeps_the_largest_changes_of_both_sides(monkeypatch):
    rng = np.random.default_rng(0)
    genes = tuple(f"g{i}" for i in range(300))
    cells = {name: as_cells(sp.csr_matrix(rng.random((4, 300)))) for name in ("control", "real", "pred")}
    context = Context("A", genes, {"x": cells["control"]}, {("x", "P"): cells["real"]})
    predicted = {"A": {("x", "P"): cells["pred"]}}
    assert len(mean_changes.mean_changes([context], predicted, {})) == 300
    monkeypatch.setattr(mean_changes, "WHOLE", 299)
    table = mean_changes.mean_changes([context], predicted, {})
    control, real, pred = (cells[name].toarray().mean(axis=0) for name in ("control", "real", "pred"))
    wanted = set()
    for change in (real - control, pred - control):
        wanted |= {f"g{i}" for i in sorted(range(300), key=lambda i: -abs(change[i]))[:50]}
    assert set(table["gene"]) == wanted and len(table) == len(wanted) < 100

"""The table of draws: by hand on a small prediction, the same from a file, and what is refused."""

import shutil

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.evaluation import spread
from perturbdiff_jax.prediction import gene_table

GENES, CELLS, DRAWS = 6, 30, 4


@pytest.fixture
def predicted():
    """Two perturbations in two contexts, of which one has control cells; four draws, in no order."""
    draw = np.random.default_rng(0)
    rows = [("ctrl", "T1", "B1", 0)] * CELLS
    rows += [
        (name, "T1", batch, k)
        for name in ("P", "Q")
        for batch in ("B1", "B2")
        for k in range(DRAWS)
        for _ in range(CELLS)
    ]
    obs = pd.DataFrame(rows, columns=["drug", "kind", "lot", "draw"])
    cells = np.maximum(draw.normal(2.0, 0.5, (len(obs), GENES)), 0)
    cells[obs["drug"] == "P", 0] += 1.0 + 0.2 * obs["draw"][obs["drug"] == "P"]
    cells[:, -1] = 0.0
    order = draw.permutation(len(obs))
    adata = anndata.AnnData(
        sp.csr_matrix(np.float32(cells)[order]),
        obs=obs.iloc[order].set_axis([f"c{i}" for i in range(len(obs))]),
    )
    adata.var_names = [f"G{i}" for i in range(GENES)]
    adata.uns["perturbdiff"] = {
        "keys": {"perturbation": "drug", "cell_type": "kind", "batch": "lot"},
        "control": "ctrl",
    }
    return adata


@pytest.mark.parametrize("error", [None, spread.Error(0.02, 0.1)])
def test_every_number_of_a_condition(predicted, error):
    if error:
        predicted.uns["perturbdiff"]["model_error"] = vars(error)
    tables = {tuple(t.iloc[0, :3]): t.set_index("gene") for t in gene_table.gene_table(predicted)}
    assert list(tables) == [("P", "T1", "B1"), ("P", "T1", "B2"), ("Q", "T1", "B1"), ("Q", "T1", "B2")]
    obs, x = predicted.obs, predicted.X.toarray().astype(np.float64)
    control = x[(obs["drug"] == "ctrl").to_numpy()]
    for (name, kind, lot), table in tables.items():
        mine = ((obs["drug"] == name) & (obs["lot"] == lot)).to_numpy()
        parts = [x[mine & (obs["draw"] == k).to_numpy()] for k in range(DRAWS)]
        changes = np.stack([part.mean(axis=0) for part in parts]) - control.mean(axis=0)
        assert (table["draws"] == DRAWS).all() and (table["cell_type"] == kind).all()
        np.testing.assert_allclose(table["control_mean"], control.mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(table["change"], changes.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(table["spread"], changes.std(axis=0, ddof=1), atol=1e-6)
        known = spread.drawn(parts, control.mean(axis=0))
        low, high = spread.interval(known, 0.8, error=error or spread.TRUSTED)
        np.testing.assert_allclose(table[["low_80", "high_80"]], np.c_[low, high], atol=1e-6)
        calls = [spread.called(sp.csr_matrix(part), sp.csr_matrix(control)) for part in parts]
        np.testing.assert_allclose(table["calls"], np.mean(calls, axis=0))
        up = spread.directions(known, error=error or spread.TRUSTED)[0]
        np.testing.assert_allclose(table["p_up"], up, atol=1e-5)
    changed, silent = tables["P", "T1", "B1"].loc["G0"], tables["P", "T1", "B1"].loc["G5"]
    assert changed["p_up"] > 0.99 and changed["calls"] == 1 and changed["spread"] > 0.15
    assert silent[["change", "spread", "p_up", "p_down", "calls"]].eq(0).all()


def test_a_file_gives_the_same_table(predicted, tmp_path):
    predicted.write_h5ad(tmp_path / "pred.h5ad")
    (tmp_path / ".partial-genes.csv.gz").write_bytes(b"what a kill left")
    shown = []
    path = gene_table.write_gene_table(tmp_path / "pred.h5ad", tmp_path / "genes.csv.gz", show=shown.append)
    assert gene_table.write_gene_table(predicted, tmp_path / "new" / "genes.csv").exists()
    shutil.rmtree(tmp_path / "new")
    found = pd.read_csv(path)
    want = pd.concat(gene_table.gene_table(predicted), ignore_index=True)
    assert list(found.columns) == list(gene_table.COLUMNS) and shown == [1, 2, 3, 4]
    pd.testing.assert_frame_equal(found, want, check_dtype=False, rtol=1e-4, atol=1e-6)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["genes.csv.gz", "pred.h5ad"]


def test_progress_counts_conditions_without_the_control(predicted, tmp_path, monkeypatch):
    totals, shown = [], []

    class Watched:
        def __init__(self, total, *_, **__):
            totals.append(total)
            self.show = shown.append

    monkeypatch.setattr(gene_table, "Progress", Watched)
    gene_table.write_gene_table(predicted, tmp_path / "genes.csv")
    assert totals == [4] and shown[-1] == 4


def test_without_calls(predicted):
    assert next(gene_table.gene_table(predicted, calls=False))["calls"].isna().all()


def test_a_broken_write_leaves_the_old_table(predicted, tmp_path, monkeypatch):
    (tmp_path / "genes.csv").write_text("old")

    def stop(number):
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gene_table.write_gene_table(predicted, tmp_path / "genes.csv", show=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["genes.csv"]
    assert (tmp_path / "genes.csv").read_text() == "old"


def test_what_cannot_be_told_is_refused(predicted):
    foreign = predicted.copy()
    del foreign.uns["perturbdiff"]
    with pytest.raises(RequestError, match="a file that predict wrote"):
        list(gene_table.gene_table(foreign))
    alone = predicted[(predicted.obs["drug"] != "ctrl").to_numpy()].copy()
    with pytest.raises(RequestError, match="no control cells 'ctrl'"):
        list(gene_table.gene_table(alone))

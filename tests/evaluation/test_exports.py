"""The exported pairs, read back and scored by cell-eval itself; the rows over all cell types together."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from toy_cells import GENES, evaluated, foreign, prediction, screen, store_of

from perturbdiff_jax.commands.evaluate import EXPORTS
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.evaluation import celleval, exports
from perturbdiff_jax.evaluation.metrics import DE_METRICS, MEAN_METRICS, METRICS, energy, r2

needs_celleval = pytest.mark.skipif(
    not celleval.installed(), reason="cell-eval (extra [eval]) is not installed"
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    output = tmp_path_factory.mktemp("exported") / "run"
    raw = screen()
    sources = {"ours": prediction(raw), "state": foreign(raw)}
    said = []
    options = {"export": ["cell-eval", "cell-eval2"], "pooled": True, "store": store_of(raw)}
    return evaluated(output, sources, said=said, **options), output, said


def test_both_tools_and_all_predictions(exported):
    _, output, said = exported
    assert EXPORTS == exports.FORMATS
    for tool in exports.FORMATS:
        names = sorted(path.name for path in (output / tool).iterdir())
        assert names == ["exported.json", "ours.pred.h5ad", "real.h5ad", "state.pred.h5ad"]
        assert sum(f"export: {tool} run " in line for line in said) == 2


def test_a_pair_has_the_same_genes_perturbations_and_real_controls(exported):
    _, output, _ = exported
    real = ad.read_h5ad(output / "cell-eval" / "real.h5ad")
    for name in ("ours", "state"):
        pred = ad.read_h5ad(output / "cell-eval" / f"{name}.pred.h5ad")
        assert list(pred.var_names) == list(real.var_names) == GENES
        assert list(pred.obs.columns) == list(real.obs.columns) == ["pert", "type", "lot"]
        assert pred.X.dtype == real.X.dtype == np.float32 and pred.obs_names.is_unique
        groups = [set(a.obs[["type", "pert"]].itertuples(index=False, name=None)) for a in (pred, real)]
        assert groups[0] == groups[1] and len(groups[0]) == 8
        controls = [a[(a.obs["pert"] == "control").to_numpy()] for a in (pred, real)]
        pd.testing.assert_frame_equal(*(a.obs.reset_index(drop=True) for a in controls))
        np.testing.assert_array_equal(*(np.asarray(ad.AnnData(a.X).to_df()) for a in controls))
        assert pred.X.min() >= 0 and pred.X.max() < 15


def by_cell_eval(pred, real, folder):
    from cell_eval import MetricsEvaluator

    with celleval.quiet():
        evaluator = MetricsEvaluator(
            pred, real, control_pert="control", pert_col="pert", outdir=str(folder), num_threads=1
        )
        results, _ = evaluator.compute(
            profile="full", skip_metrics=["pearson_edistance", "clustering_agreement"], write_csv=False
        )
    return results.to_pandas().set_index("perturbation").sort_index().astype(float)


def agree(theirs, ours):
    columns = [*DE_METRICS, *MEAN_METRICS]
    assert list(theirs.index) == list(ours["perturbation"])
    assert theirs[list(DE_METRICS)].notna().to_numpy().mean() > 0.9
    for column in columns:
        np.testing.assert_allclose(
            theirs[column].to_numpy(), ours[column].to_numpy(), rtol=2e-4, atol=1e-5, err_msg=column
        )


@needs_celleval
@pytest.mark.parametrize("name", ["ours", "state"])
def test_cell_eval_itself_gets_our_numbers_per_cell_type(exported, name, tmp_path):
    found, output, _ = exported
    pred = ad.read_h5ad(output / "cell-eval" / f"{name}.pred.h5ad")
    real = ad.read_h5ad(output / "cell-eval" / "real.h5ad")
    for kind in ("A", "B"):
        sides = (a[(a.obs["type"] == kind).to_numpy()].copy() for a in (pred, real))
        agree(by_cell_eval(*sides, tmp_path), found.rows.query("model == @name and cell_type == @kind"))


@needs_celleval
def test_cell_eval_without_cell_types_gets_our_pooled_numbers(exported, tmp_path):
    found, output, _ = exported
    pred, real = (ad.read_h5ad(output / "cell-eval2" / file) for file in ("state.pred.h5ad", "real.h5ad"))
    agree(by_cell_eval(pred, real, tmp_path), found.pooled.query("model == 'state'"))


def test_pooled_rows_are_of_all_cells_of_a_perturbation(exported):
    found, output, _ = exported
    rows = pd.read_csv(output / "metrics_pooled.csv")
    assert list(rows.columns) == ["model", "perturbation", *METRICS]
    assert list(dict.fromkeys(rows["model"])) == list(dict.fromkeys(found.rows["model"]))
    assert (rows.groupby("model").size() == 3).all()
    raw = screen()
    pred, real = (
        a[(a.obs["lot"].eq("y") & a.obs["pert"].eq("P2")).to_numpy()].X.toarray()
        for a in (prediction(raw), ad.read_h5ad(output / "cell-eval" / "real.h5ad"))
    )
    row = rows.query("model == 'ours' and perturbation == 'P2'").iloc[0]
    assert row["energy"] == pytest.approx(energy(pred, real), rel=1e-5)
    assert row["r2"] == pytest.approx(r2(pred.mean(axis=0), real.mean(axis=0)), rel=1e-5)
    summary = json.loads((output / "summary.json").read_text())["pooled"]
    assert summary["ours"]["energy"]["count"] == 3
    mean = rows[rows["model"] == "ours"]["energy"].mean()
    assert summary["ours"]["energy"]["mean"] == pytest.approx(mean)


def test_pooled_rows_of_one_cell_type_are_its_rows_and_go_when_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(celleval, "installed", lambda: False)
    pred = prediction(screen(), held_out=[("A", "y")])
    found = evaluated(tmp_path, pred, pooled=True)
    np.testing.assert_array_equal(found.pooled[list(METRICS)], found.rows[list(METRICS)])
    assert (tmp_path / "metrics_pooled.csv").exists()
    assert evaluated(tmp_path, pred).pooled is None and not (tmp_path / "metrics_pooled.csv").exists()


def test_energy_tells_populations_of_one_mean_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(celleval, "installed", lambda: False)
    raw = screen()
    flat = prediction(raw)
    dense = flat.X.toarray()
    for kind in ("A", "B"):
        for name in ("P1", "P2", "P3"):
            rows = (flat.obs["type"].eq(kind) & flat.obs["pert"].eq(name)).to_numpy()
            dense[rows] = dense[rows].mean(axis=0)
    flat.X = dense
    found = evaluated(tmp_path, {"ours": prediction(raw), "flat": flat})
    ours, other = (found.rows[found.rows["model"] == name].reset_index() for name in ("ours", "flat"))
    np.testing.assert_allclose(ours["mse"], other["mse"], rtol=1e-3)  # the same means
    assert (other["energy"] > 5 * ours["energy"]).all()


def test_one_tool_may_be_given_as_a_word(tmp_path, monkeypatch):
    monkeypatch.setattr(celleval, "installed", lambda: False)
    evaluated(tmp_path, prediction(screen()), export="cell-eval")
    assert (tmp_path / "cell-eval" / "perturbdiff.pred.h5ad").exists()


def test_an_unknown_tool_is_refused_first(tmp_path):
    with pytest.raises(RequestError, match=r"(?s)cell-evil.*cell-eval, cell-eval2"):
        evaluated(tmp_path / "out", prediction(screen()), export=["cell-evil"])
    assert not (tmp_path / "out").exists()


def test_what_an_earlier_export_wrote_goes_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(celleval, "installed", lambda: False)
    raw = screen()
    folder = tmp_path / "run" / "cell-eval"

    def export(names):
        evaluated(tmp_path / "run", {name: prediction(raw) for name in names}, export="cell-eval")
        return {path.name for path in folder.iterdir()}

    own = {exports.REAL_FILE, exports.LIST_FILE}
    assert export(["a", "b"]) == {"a.pred.h5ad", "b.pred.h5ad", *own}
    (folder / "mine.pred.h5ad").write_text("somebody else's")
    (folder / "a.scores").mkdir()
    assert export(["b"]) == {"b.pred.h5ad", "mine.pred.h5ad", "a.scores", *own}
    # A list that somebody changed leads nowhere outside the folder, a damaged one to nothing.
    outside = tmp_path / "run" / "x.pred.h5ad"
    outside.write_text("")
    (folder / exports.LIST_FILE).write_text(json.dumps(["../x.pred.h5ad", "a.scores", "mine.txt", 3]))
    (folder / "mine.txt").write_text("")
    export(["b"])
    (folder / exports.LIST_FILE).write_text("{")
    assert export(["c"]) >= {"b.pred.h5ad", "c.pred.h5ad", "mine.pred.h5ad", "mine.txt", "a.scores"}
    assert outside.exists()

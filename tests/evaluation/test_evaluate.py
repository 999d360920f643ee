"""evaluate() from files to files on a small screen, with and without cell-eval, with and without a store."""

import json

import numpy as np
import pandas as pd
import pytest
from toy_cells import GENES, PERTURBATIONS, lognorm, prediction, screen, store_of

from perturbdiff_jax.evaluation import celleval, outputs
from perturbdiff_jax.evaluation.contexts import Context, as_cells
from perturbdiff_jax.evaluation.evaluate import evaluate
from perturbdiff_jax.evaluation.metrics import DE_METRICS, MEAN_METRICS, METRICS, energy, r2
from perturbdiff_jax.evaluation.projection import principal_axes, project, sample

needs_celleval = pytest.mark.skipif(
    not celleval.installed(), reason="cell-eval (extra [eval]) is not installed"
)
MODELS = [
    "perturbdiff",
    "mean per perturbation",
    "mean per cell type",
    "mean per batch",
    "mean overall",
    "context mean + mean delta",
    "control cells + mean delta",
    "ridge",
    "linear",
    "control",
    "ceiling",
]


def run(output, pred=None, real=None, said=None, **options):
    raw = screen()
    return evaluate(
        prediction(raw) if pred is None else pred,
        raw if real is None else real,
        output,
        perturbation_key="pert",
        control="control",
        echo=(lambda _: None) if said is None else said.append,
        **options,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "run"
    said = []
    return run(output, said=said, store=store_of(screen())), output, said


@needs_celleval
def test_files_columns_and_models(whole):
    found, output, _ = whole
    assert sorted(path.name for path in output.iterdir()) == [
        "calibration.csv",
        "de.csv.gz",
        "mean_changes.csv.gz",
        "metrics.csv",
        "metrics_all.csv",
        "pca.csv",
        "real_de",
        "summary.json",
    ]
    ours = pd.read_csv(output / "metrics.csv")
    assert list(ours.columns) == ["cell_type", "perturbation", *METRICS]
    assert list(zip(ours["cell_type"], ours["perturbation"])) == [(t, p) for t in "AB" for p in PERTURBATIONS]
    everything = pd.read_csv(output / "metrics_all.csv")
    assert list(everything.columns) == ["model", "cell_type", "perturbation", *METRICS]
    assert list(dict.fromkeys(everything["model"])) == MODELS
    assert len(everything) == len(MODELS) * 6
    pd.testing.assert_frame_equal(
        everything[everything["model"] == "perturbdiff"].drop(columns="model").reset_index(drop=True), ours
    )
    summary = json.loads((output / "summary.json").read_text())
    assert list(summary["models"]) == MODELS
    assert summary["models"]["ridge"]["mse"] == found.summary["ridge"]["mse"]
    assert summary["models"]["ridge"]["mse"]["count"] == 6
    assert set(summary["versions"]) >= {"cell-eval", "pdex"}
    assert summary["settings"]["problems"] == []
    assert "takes 500 or more" in summary["settings"]["no_umap"]


@needs_celleval
def test_a_good_prediction_beats_every_baseline_and_says_so(whole):
    found, output, said = whole
    for metric in ("r2", "energy", "pearson_delta", "mse"):
        values = {model: metrics[metric]["mean"] for model, metrics in found.summary.items()}
        best = min if metric in ("energy", "mse") else max
        rivals = {model: value for model, value in values.items() if model != "ceiling" and value == value}
        assert best(rivals, key=rivals.get) == "perturbdiff", metric
    text = "\n".join(said)
    assert "ahead of the best baseline, intervals apart" in text
    assert "raw counts, normalised to 10000" in text
    assert text.endswith(f"results: {output}")


@needs_celleval
def test_gene_table_and_plane(whole):
    _, output, _ = whole
    changes = pd.read_csv(output / "de.csv.gz")
    assert list(changes.columns) == [
        *("cell_type", "perturbation", "gene", "real_padj", "pred_padj", "real_lfc", "pred_lfc")
    ]
    assert len(changes) == 6 * len(GENES)
    hit = changes[(changes["perturbation"] == "P2") & (changes["real_padj"] < 0.05)]
    assert {"g8", "g9", "g10", "g11"} & set(hit["gene"])
    up = hit[hit["gene"].isin(["g8", "g9", "g10", "g11"])]
    assert (up["real_lfc"] > 0).all() and (up["pred_lfc"] > 0).all()
    plane = pd.read_csv(output / "pca.csv")
    assert list(plane.columns) == ["cell_type", "perturbation", "kind", "pc1", "pc2"]
    assert set(plane["kind"]) == {"predicted", "real", "control"}


@needs_celleval
def test_same_seed_same_bytes(whole, tmp_path):
    _, output, _ = whole
    run(tmp_path / "run", store=store_of(screen()))
    for path in output.iterdir():
        if path.is_file() and path.name != "summary.json":  # has the seconds it took
            assert path.read_bytes() == (tmp_path / "run" / path.name).read_bytes(), path.name


@needs_celleval
def test_predicted_controls_and_later_draws_do_not_matter(whole, tmp_path):
    found, _, _ = whole
    pred = prediction(screen())
    spoilt = pred.copy()
    dense = spoilt.X.toarray()
    dense[(spoilt.obs["pert"] == "control").to_numpy()] += 3.25
    spoilt.X = dense
    pd.testing.assert_frame_equal(run(tmp_path / "a", pred=spoilt, store=store_of(screen())).rows, found.rows)
    import anndata as ad

    second = pred.copy()
    second.obs["draw"] = 1
    second.X = second.X * 0.5
    second.obs_names = [f"second{i}" for i in range(second.n_obs)]
    both = ad.concat([pred, second], uns_merge="same")
    twice = run(tmp_path / "b", pred=both)
    assert twice.settings["conditions_with_other_cell_count"] == 0
    assert twice.settings["predicted_cells"] == twice.settings["real_cells"]
    once = found.rows[found.rows["model"] == "perturbdiff"]
    again = twice.rows[twice.rows["model"] == "perturbdiff"]
    pd.testing.assert_frame_equal(again, once)


def test_without_cell_eval_our_columns_stand_and_one_line_says_it(whole, tmp_path, monkeypatch):
    found, _, _ = whole
    monkeypatch.setattr(celleval, "installed", lambda: False)
    said = []
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "de.csv.gz").write_text("from an earlier evaluation")
    poor = run(tmp_path / "run", said=said, store=store_of(screen()))
    assert sum("cell-eval is not installed" in line and "pip install" in line for line in said) == 1
    assert not (tmp_path / "run" / "de.csv.gz").exists()
    assert poor.rows[list(DE_METRICS)].isna().all(axis=None)
    for metric in (*MEAN_METRICS, "r2", "energy"):
        np.testing.assert_allclose(poor.rows[metric], found.rows[metric], rtol=1e-4, err_msg=metric)


def test_untrained_perturbations_leave_empty_rows_that_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(celleval, "installed", lambda: False)
    store = store_of(screen(), lambda name, _, batch: "test" if batch == "y" or name == "P3" else "train")
    said = []
    found = run(tmp_path / "run", said=said, store=store)
    ridge = found.rows[(found.rows["model"] == "ridge") & (found.rows["perturbation"] == "P3")]
    assert len(ridge) == 2 and ridge[list(METRICS)].isna().all(axis=None)
    assert found.settings["undefined_rows"]["ridge"] == 2
    assert found.summary["ridge"]["mse"]["count"] == 4
    assert any(line.startswith("note: ridge: undefined for 2") for line in said)
    assert list(found.summary)[-1] == "ceiling"


def test_without_a_store_there_is_control_and_ceiling_only(tmp_path, monkeypatch):
    monkeypatch.setattr(celleval, "installed", lambda: False)
    found = run(tmp_path / "run")
    assert list(found.summary) == ["perturbdiff", "control", "ceiling"]
    raw = screen()
    pred, real = (
        adata[
            ((adata.obs["type"] == "B") & (adata.obs["lot"] == "y") & (adata.obs["pert"] == "P2")).to_numpy()
        ].X.toarray()
        for adata in (prediction(raw), lognorm(raw))
    )
    row = found.rows.query("model == 'perturbdiff' and cell_type == 'B' and perturbation == 'P2'").iloc[0]
    assert row["energy"] == pytest.approx(energy(pred, real), rel=1e-5)
    assert row["r2"] == pytest.approx(r2(pred.mean(axis=0), real.mean(axis=0)), rel=1e-5)


def test_a_failing_write_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(celleval, "installed", lambda: False)

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(outputs.os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        run(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_a_prepared_store_serves_as_real_cells_and_as_training(tmp_path, monkeypatch):
    from perturbdiff_jax.data.prepare import PrepareOptions, prepare

    monkeypatch.setattr(celleval, "installed", lambda: False)
    raw = screen()
    raw.write_h5ad(tmp_path / "raw.h5ad")
    split = {"fraction": 1.0, "context": {"batch": "y"}, "validation_fraction": 0.0, "seed": 0}
    options = PrepareOptions(
        perturbation_key="pert",
        control="control",
        cell_type_key="type",
        batch_key="lot",
        hvg=None,
        holdout=split,
    )
    prepare([tmp_path / "raw.h5ad"], tmp_path / "store", options, echo=lambda _: None)
    pred = prediction(raw, held_out=[("A", "y"), ("B", "y"), ("B", "x")])  # (B, x) is training: left out
    said = []
    a = run(tmp_path / "a", pred=pred, real=tmp_path / "store", store=tmp_path / "store", said=said)
    assert any("3 of 9 predicted conditions" in line for line in said)
    pred = pred[(pred.obs["lot"] == "y").to_numpy()].copy()
    b = run(tmp_path / "b", pred=pred, real=tmp_path / "raw.h5ad", store=store_of(raw))
    exact = ~a.rows["model"].isin(["control", "control cells + mean delta", "ceiling"])  # others draw cells
    for metric in ("r2", "mse", "energy"):
        np.testing.assert_allclose(a.rows.loc[exact, metric], b.rows.loc[exact, metric], rtol=1e-3)


def test_the_plane_is_fitted_on_real_and_control_cells():
    log = lognorm(screen()).X.toarray().astype(np.float64)
    mean, axes = principal_axes(log, 2)
    wanted = np.linalg.svd(log - log.mean(axis=0), full_matrices=False)[2][:2]
    np.testing.assert_allclose(np.abs(axes @ wanted.T), np.eye(2), atol=1e-6)
    np.testing.assert_allclose(mean, log.mean(axis=0))
    parts = {"control": as_cells(log[:40]), "real": as_cells(log[40:65])}
    context = Context("A", tuple(GENES), {"x": parts["control"]}, {("x", "P1"): parts["real"]})
    rng = np.random.default_rng
    near, far = (
        project(sample([context], {"A": {"P1": as_cells(log[40:65] + moved)}}, "control", rng(0)))
        for moved in (0.0, 50.0)
    )
    keep = near["kind"] != "predicted"
    pd.testing.assert_frame_equal(near[keep], far[keep])
    assert not np.allclose(near.loc[~keep, "pc1"], far.loc[~keep, "pc1"])

"""The whole job, run once: everything that it promises lies in its work directory and is right."""

import json
import re

import anndata
import numpy as np
import pandas as pd
import pytest
from tiny_run import EVERY, STEPS

from perturbdiff_jax.bundle import read_bundle
from perturbdiff_jax.data.store import Store


@pytest.fixture(scope="module")
def store(finished):
    return Store.open(finished.workdir / "store")


@pytest.fixture(scope="module")
def predictions(finished):
    return anndata.read_h5ad(finished.workdir / "predictions.h5ad")


def test_says_what_it_does_and_where_the_results_are(finished):
    assert finished.code == 0
    assert finished.err == ""
    for name in ("bundle", "predictions.h5ad", "report.html"):
        assert (finished.workdir / name).exists()
        assert str(finished.workdir / name) in finished.out
    assert re.search(
        rf"step {STEPS}/{STEPS}  loss [\d.]+ \(mse [\d.]+ energy [\d.]+\)  [\d,]+ cells/s  done", finished.out
    )
    assert re.search(r"time left \d+:\d\d", finished.out)
    assert re.search(
        r"Times: prepare \d+ s, train \d+ s, calibrate \d+ s, predict \d+ s, evaluate \d+ s; peak memory",
        finished.out,
    )


def test_nothing_half_written_is_left(finished):
    left = [p.name for p in finished.workdir.rglob("*") if "partial" in p.name or "tmp" in p.name]
    assert left == []


def test_predictions_are_the_test_split_with_as_many_cells_as_the_real_data(predictions, store):
    groups = store.groups
    test = np.flatnonzero(groups.split == 2)
    wanted = {
        (
            store.perturbations[groups.perturbation[g]],
            store.cell_types[groups.cell_type[g]],
            store.batches[groups.batch[g]],
        ): int(groups.size[g])
        for g in test
    }
    own = predictions.obs[predictions.obs["perturbation"] != "control"]
    assert own.groupby(["perturbation", "cell_type", "batch"], observed=True).size().to_dict() == wanted


def test_predictions_are_in_the_documented_form(predictions, store, finished):
    assert list(predictions.var_names) == store.genes
    assert list(predictions.obs.columns) == [
        "perturbation",
        "cell_type",
        "batch",
        "draw",
        "seen_perturbation",
    ]
    assert predictions.obs["draw"].dtype.kind == "i" and (predictions.obs["draw"] == 0).all()
    assert predictions.obs["seen_perturbation"].dtype == bool and predictions.obs["seen_perturbation"].all()
    assert predictions.obs_names.is_unique
    X = predictions.X.toarray()
    assert X.dtype == np.float32 and np.isfinite(X).all() and (X >= 0).all() and X.max() < np.log1p(1e4)
    assert (X.max(axis=1) > 0).all()
    facts = predictions.uns["perturbdiff"]
    assert facts["checkpoint"] == str(finished.workdir / "bundle")
    assert (facts["sampler"]["steps"], facts["sampler"]["name"], facts["seed"]) == (2, "ddim", 0)
    assert facts["target_sum"] == 1e4 and facts["divisor"] == 10
    assert dict(facts["keys"]) == {"perturbation": "perturbation", "cell_type": "cell_type", "batch": "batch"}


def test_the_real_control_cells_are_appended(predictions, store):
    control = predictions[predictions.obs["perturbation"] == "control"]
    groups = store.groups
    rows = [g for g in np.flatnonzero(groups.is_control) if store.batches[groups.batch[g]] == "B2"]
    real = store.to_anndata(rows)
    assert set(control.obs_names) <= set(real.obs_names) and control.n_obs > 20
    np.testing.assert_array_equal(control.X.toarray(), real[control.obs_names].X.toarray())
    assert (
        control.obs["cell_type"].astype(str) == real[control.obs_names].obs["cell_type"].astype(str)
    ).all()


def test_the_bundle_knows_every_name_that_a_prediction_needs(finished, store):
    bundle = read_bundle(finished.workdir / "bundle")
    assert bundle.genes == store.genes and bundle.perturbations == store.perturbations
    assert (
        bundle.control == "control" and bundle.batches == ["B1", "B2"] and bundle.cell_types == ["T1", "T2"]
    )
    assert bundle.values["target_sum"] == 1e4 and bundle.values["divisor"] == 10
    assert bundle.settings["model"]["width"] == 16 and bundle.settings["train"]["steps"] == STEPS
    assert bundle.split == store.manifest["split"] and bundle.split["sha256"]
    groups = store.groups
    assert len(bundle.trained) == (groups.split == 0).sum()
    tested = {store.perturbations[p] for p in groups.perturbation[groups.split == 2]}
    assert not any(name in tested and batch == "B2" for name, _, batch in bundle.trained)
    assert {"jax", "flax", "numpy"} <= set(bundle.versions)


def test_the_log_has_every_row_and_the_validation(finished):
    rows = finished.log()
    train = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in train] == sorted({2, 4, 6, EVERY, STEPS})
    assert all(np.isfinite(row["loss/total"]) and row["learning_rate"] > 0 for row in train)
    assert all(
        row["loss/total"] == pytest.approx(row["loss/mse"] + row["loss/energy"], abs=1e-5) for row in train
    )
    validation = {row["step"]: row for row in rows if row["kind"] == "validation"}
    assert sorted(validation) == [EVERY, STEPS]
    assert {"validation/r2", "validation/pearson_delta", "validation/energy"} <= set(validation[STEPS])
    assert list((finished.workdir / "logs").glob("events.out.tfevents*"))


def test_the_best_checkpoint_by_the_validation_metric_predicts(finished, predictions):
    scores = {row["step"]: row["validation/energy"] for row in finished.log() if row["kind"] == "validation"}
    best = min(scores, key=scores.get)
    facts = json.loads((finished.workdir / "run.json").read_text())
    assert facts["covariates"]["perturbation"] == {"onehot": True, "tables": []}
    assert facts["best_step"] == best == predictions.uns["perturbdiff"]["checkpoint_step"]
    assert f"checkpoint of step {best}" in finished.out


def test_metrics_and_summary_cover_ours_the_rivals_and_the_ceiling(finished, predictions):
    rows = pd.read_csv(finished.workdir / "metrics.csv")
    own = predictions.obs[predictions.obs["perturbation"] != "control"]
    wanted = set(zip(own["cell_type"].astype(str), own["perturbation"].astype(str)))
    assert set(zip(rows["cell_type"], rows["perturbation"])) == wanted
    assert {"pearson_delta", "discrimination_score_l1", "energy", "r2"} <= set(rows.columns)
    summary = json.loads((finished.workdir / "summary.json").read_text())
    models = set(summary["models"])
    assert {
        "perturbdiff",
        "control cells + mean delta",
        "mean per perturbation",
        "ridge",
        "control",
        "ceiling",
    } <= models
    cell = summary["models"]["perturbdiff"]["energy"]
    assert (
        cell["mean"] == pytest.approx(rows["energy"].mean()) and cell["low"] <= cell["mean"] <= cell["high"]
    )


def test_the_report_is_one_file_with_the_run_in_it(finished):
    page = (finished.workdir / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "control cells + mean delta" in page and "simulated.h5ad" in page
    assert not re.search(r"""(src|href)=["']https?://""", page)


def test_the_record_tells_stages_devices_and_data(finished):
    facts = json.loads((finished.workdir / "run.json").read_text())
    assert set(facts["seconds"]) == {"prepare", "train", "calibrate", "predict", "evaluate"}
    assert facts["devices"].startswith("8 x") and facts["store"]["genes"] == 40 and facts["parameters"] > 0
    config = json.loads((finished.workdir / "config.json").read_text())
    assert config["model"]["width"] == 16 and config["simulate"]["genes"] == 40

"""What a model errs on held-out conditions: learned, kept in the bundle, taken along by predictions."""

import dataclasses
import json
import shutil

import anndata
import numpy as np
import pandas as pd
import pytest
from small_jobs import CONTEXTS, bundle, controls, job, request
from tiny_run import KEYS, said

import perturbdiff_jax
from perturbdiff_jax import cli
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.evaluation import spread
from perturbdiff_jax.prediction import gene_table, model_error
from perturbdiff_jax.prediction.controls import from_store
from perturbdiff_jax.prediction.design import check_design, requests_of, split_design


def silent(_):
    pass


@pytest.fixture(scope="module")
def learned(model, finished):
    store = Store.open(finished.workdir / "store")
    return model_error.learn(model, store, draws=3, cells=6, echo=silent)


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished.workdir / "bundle", tmp_path / "bundle")
    return tmp_path / "bundle"


def test_it_is_what_the_predicted_and_the_real_cells_say(model, finished, learned):
    store = Store.open(finished.workdir / "store")
    design, held = split_design(store, "validation", most_cells=6), from_store(store)
    cells = model.predict_design(design.drop(columns="group"), held, draws=3, echo=silent)
    obs, x, known = cells.obs, cells.X.toarray().astype(np.float64), []
    for row in design.itertuples():
        own = (obs["perturbation"] == row.perturbation) & (obs["cell_type"] == row.cell_type)
        own &= obs["batch"] == row.batch
        parts = [x[(own & (obs["draw"] == k)).to_numpy()] for k in range(3)]
        start, size = (int(getattr(store.groups, name)[row.group]) for name in ("start", "size"))
        real = store.read(start, start + size).toarray().astype(np.float64).mean(axis=0)
        base = held.cells[(row.cell_type, row.batch)].toarray().astype(np.float64).mean(axis=0)
        seen = np.maximum(real, base) >= 0.05
        known.append((spread.drawn(parts, base).at(seen), (real - base)[seen], size))
    assert learned.conditions == len(known) == (store.groups.split == 1).sum() > 0
    wanted = spread.model_error(known)
    assert learned.value.cells == pytest.approx(wanted.cells, rel=1e-3, abs=1e-9)
    assert learned.value.change == pytest.approx(wanted.change, rel=1e-3, abs=1e-9)
    assert learned.value != spread.TRUSTED
    before = np.mean([np.nanmean(spread.coverage(d, t, 0.8, cells=n)) for d, t, n in known])
    assert learned.before[1] == pytest.approx(before, abs=1e-9) and before < 0.8 <= learned.after[1] < 0.85
    assert learned.before[0] < learned.before[1] < learned.before[2] < learned.after[2]


def test_the_main_job_learns_it_of_its_best_checkpoint(finished, model):
    found = json.loads((finished.workdir / "bundle" / "model_error.json").read_text())
    assert found["checkpoint_step"] == model.step and found["split"] == "validation" and found["draws"] == 8
    assert model.error == model_error.read(finished.workdir / "bundle", model.step)
    assert model.error.told() in finished.out
    told = anndata.read_h5ad(finished.workdir / "predictions.h5ad").uns["perturbdiff"]
    assert dict(told["model_error"]) == found["value"]
    assert told["model_error_learned_on"] == f"{found['conditions']} validation conditions, 8 draws"


def test_it_is_of_one_checkpoint_only(copied, learned):
    path = model_error.write(copied, learned)
    assert model_error.read(copied, learned.checkpoint_step) == learned
    assert model_error.read(copied, learned.checkpoint_step + 1) is None
    path.unlink()
    assert model_error.read(copied, learned.checkpoint_step) is None
    assert perturbdiff_jax.load(copied).error is None


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"format": "perturbdiff-model-error"}', "minus"],
    ids=["cut", "list", "empty", "no facts", "negative"],
)
def test_a_file_that_is_none_is_named(copied, learned, text):
    if text == "minus":
        facts = dataclasses.asdict(learned) | {
            "format": model_error.FORMAT,
            "value": {"cells": -1.0, "change": 0.0},
        }
        text = json.dumps(facts)
    (copied / "model_error.json").write_text(text)
    with pytest.raises(RequestError, match=r"model_error\.json: cannot be read .*calibrate"):
        perturbdiff_jax.load(copied)


def test_gene_tables_count_with_it(model, screen, learned):
    given = dataclasses.replace(model, error=dataclasses.replace(learned, value=spread.Error(0.5, 0.1)))
    asked = {"cells_per_condition": 6, "draws": 3, "echo": silent, **KEYS}
    wide, narrow = (
        pd.concat(gene_table.gene_table(one.predict(screen, ["P02"], **asked), calls=False))
        for one in (given, dataclasses.replace(model, error=None))
    )
    np.testing.assert_array_equal(wide["change"], narrow["change"])
    width, plain = (t["high_80"] - t["low_80"] for t in (wide, narrow))
    assert (width >= plain).all() and width.median() > 1.5 * plain.median()


def test_the_command(copied, finished, tmp_path):
    asked = ["--checkpoint", copied, "--store", finished.workdir / "store", "--draws", "2", "--cells", "4"]
    code, out, _ = said(cli.run, "calibrate", *map(str, asked), "--split", "test", "--conditions", "3")
    found = perturbdiff_jax.load(copied).error
    assert code == 0 and found.told() in out and str(copied / "model_error.json") in out
    assert (found.conditions, found.draws, found.split) == (3, 2, "test")
    before = (copied / "model_error.json").read_bytes()
    for wrong, words in (
        (["--draws", "0"], "--draws=0: must be at least 1"),
        (["--conditions", "-1"], "--conditions=-1: must be at least 1"),
        (["--store", str(tmp_path / "none")], str(tmp_path / "none")),
        (["--split", "train"], "validation"),
    ):
        code, _, err = said(cli.run, "calibrate", *map(str, asked), *wrong)
        assert code == 2 and words in err
    assert (copied / "model_error.json").read_bytes() == before


def test_what_people_read(learned):
    some = dataclasses.replace(learned, value=spread.Error(0.02), conditions=9, before=[0.3, 0.63, 0.8])
    assert some.told().startswith(
        "model error: it errs as much as the mean of 50 cells; learned on 9 validation"
    )
    assert some.told().endswith("without it 63 %")


def test_draws_go_through_the_batches_that_training_saw():
    trained = [["P1", "T1", "B2"], ["P1", "T1", "B4"], ["P1", "T2", "B3"], ["P1", "T2", "B1"]]
    known, given = bundle(batches=["B1", "B2", "B3", "B4"], trained=trained), controls()
    rows = pd.DataFrame([("P1", "T1", "B1", 5)], columns=["perturbation", "cell_type", "batch", "draws"])
    rows = check_design(rows, known, 4, 1)
    own, _ = requests_of(rows, given, known, None, silent)
    assert {one.codes[2] for one in own} == {0} and {one.covariate_batch for one in own} == {""}
    every, contexts = requests_of(rows, given, known, None, silent, "all")
    assert [one.codes[2] for one in every] == [0, 1, 3, 0, 1]
    assert [one.covariate_batch for one in every] == ["", "B2", "B4", "", "B2"]
    assert {one.batch for one in every} == {"B1"} and contexts == {("T1", "B1"): ("T1", "B1")}
    assert every[0] == own[0] or every[0].names == own[0].names
    unseen = dataclasses.replace(known, trained=[["P1", "T2", "B3"]])  # a cell type that training never saw
    every, _ = requests_of(rows, given, unseen, None, silent, "all")
    assert [one.codes[2] for one in every] == [0, 2, 0, 2, 0]
    with pytest.raises(RequestError, match="draw_batches='some': allowed are own, all"):
        requests_of(rows, given, known, None, silent, "some")


def test_cells_say_whose_batch_they_were_told(model, screen):
    asked = {"cells_per_condition": 5, "draws": 2, "echo": silent, **KEYS}
    own = model.predict(screen, ["P02"], **asked)
    every = model.predict(screen, ["P02"], draw_batches="all", **asked)
    assert "covariate_batch" not in own.obs
    told = every.obs[every.obs["perturbation"] == "P02"]
    lent = told["covariate_batch"].astype(str) != told["batch"].astype(str)
    assert (lent == (told["draw"] == 1)).all()
    first = (every.obs["draw"] == 0).to_numpy()
    np.testing.assert_array_equal(every.X.toarray()[first], own.X.toarray()[first])


def test_the_column_of_files_that_mix(tmp_path):
    given, known = controls(), bundle()
    lent = dataclasses.replace(request(given, "P1", CONTEXTS[0], 3, draw=1), covariate_batch="B2")
    mixed = job([request(given, "P1", CONTEXTS[0], 3), lent], given, known)
    found = anndata.read_h5ad(mixed.to_file(tmp_path / "p.h5ad")).obs
    pd.testing.assert_frame_equal(found, mixed.in_memory().obs, check_index_type=False)
    assert list(found["covariate_batch"][:6]) == ["B1"] * 3 + ["B2"] * 3
    assert set(found["covariate_batch"][6:]) == {"B1"}

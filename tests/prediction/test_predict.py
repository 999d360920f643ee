"""Prediction from a bundle: the same cells by every way of asking, and in the bundle's own words."""

import dataclasses
import json
import shutil

import anndata
import jax
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from tiny_run import FLAGS, KEYS, said

import perturbdiff_jax
from perturbdiff_jax import cli
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.diffusion.samplers import SamplerOptions
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.prediction.controls import from_store
from perturbdiff_jax.prediction.design import split_design


def silent(_):
    pass


@pytest.fixture(scope="module")
def base(model, screen):
    """P02 and P05 in every context, 5 cells each."""
    return model.predict(screen, ["P02", "P05"], cells_per_condition=5, echo=silent, **KEYS)


def cells_of(predicted, perturbation, cell_type="T1", batch="B2", draw=0):
    obs = predicted.obs
    rows = (obs["perturbation"] == perturbation) & (obs["cell_type"] == cell_type) & (obs["batch"] == batch)
    return predicted[rows & (obs["draw"] == draw)].X.toarray()


def test_every_context_of_the_controls_is_predicted(base):
    own = base.obs[base.obs["perturbation"] != "control"]
    assert own.groupby(["perturbation", "cell_type", "batch"], observed=True).size().to_dict() == {
        (p, c, b): 5 for p in ("P02", "P05") for c in ("T1", "T2") for b in ("B1", "B2")
    }
    assert (base.X.toarray() >= 0).all()
    assert not np.allclose(cells_of(base, "P02"), cells_of(base, "P05"))


def test_cells_do_not_depend_on_what_else_is_asked_for(model, screen, base):
    design = pd.DataFrame([("P05", "T1", "B2")], columns=["perturbation", "cell_type", "batch"])
    alone = model.predict(screen, design=design, cells_per_condition=5, echo=silent, **KEYS)
    np.testing.assert_allclose(cells_of(alone, "P05"), cells_of(base, "P05"), atol=1e-4)
    assert cells_of(alone, "P02").size == 0


@pytest.mark.parametrize("sets", [1, 3])
def test_cells_do_not_depend_on_how_many_sets_walk_together(model, finished, sets):
    store = Store.open(finished.workdir / "store")
    design, controls = split_design(store, "test").iloc[:3], from_store(store)
    a, b = (model.predict_design(design, controls, sets_per_batch=n, echo=silent) for n in (sets, 8))
    np.testing.assert_allclose(a.X.toarray(), b.X.toarray(), atol=1e-4)
    assert (a.obs_names == b.obs_names).all()


def test_the_perturbations_code_reaches_the_network(model, screen):
    """Under another name's code the same noise and the same control cells give other cells."""
    draw = np.random.default_rng(0)  # weights that have learnt more than six steps can teach
    loud = jax.tree.map(lambda p: p + 0.2 * draw.normal(size=p.shape).astype(np.float32), model.params)
    model = dataclasses.replace(model, params=loud)
    base = model.predict(screen, ["P02", "P05"], cells_per_condition=5, echo=silent, **KEYS)
    names = list(model.bundle.perturbations)
    i, j = names.index("P02"), names.index("P05")
    names[i], names[j] = names[j], names[i]
    swapped = dataclasses.replace(model, bundle=dataclasses.replace(model.bundle, perturbations=names))
    other = swapped.predict(screen, ["P02", "P05"], cells_per_condition=5, echo=silent, **KEYS)
    assert (other.obs_names == base.obs_names).all()
    assert np.abs(cells_of(other, "P05") - cells_of(base, "P05")).max() > 1e-4


def test_draws_and_seeds_differ_and_repeat(model, screen, base):
    again = model.predict(screen, "P05", cells_per_condition=5, draws=2, echo=silent, **KEYS)
    assert sorted(set(again.obs["draw"])) == [0, 1]
    np.testing.assert_allclose(cells_of(again, "P05"), cells_of(base, "P05"), atol=1e-4)
    assert not np.allclose(cells_of(again, "P05", draw=1), cells_of(again, "P05", draw=0))
    other = model.predict(screen, "P05", cells_per_condition=5, seed=1, echo=silent, **KEYS)
    assert not np.allclose(cells_of(other, "P05"), cells_of(base, "P05"))


def test_more_cells_than_controls_use_every_control_before_any_twice(model, screen):
    many = model.predict(screen, "P05", cells_per_condition=21, echo=silent, **KEYS)
    counts = many.obs["perturbation"].value_counts()
    assert counts["P05"] == 4 * 21 and counts["control"] == 64
    default = model.predict(screen, "P05", echo=silent, **KEYS)
    assert (default.obs["perturbation"].value_counts() == 64).all()  # as many as there are control cells


def test_sampler_options_are_used_and_told(model, screen, base):
    walk = SamplerOptions(start=10, steps=2, guidance=1.0)
    guided = model.predict(screen, "P05", cells_per_condition=5, sampler=walk, echo=silent, **KEYS)
    assert guided.uns["perturbdiff"]["sampler"]["guidance"] == 1.0
    assert not np.allclose(cells_of(guided, "P05"), cells_of(base, "P05"))


def test_all_three_ways_of_the_command_line(finished, model, screen, base, tmp_path):
    source = finished.workdir / "simulated.h5ad"
    common = ("predict", "--checkpoint", finished.workdir, "--cells-per-condition", 5)
    out = tmp_path / "new" / "p.h5ad"
    done = said(cli.run, *common, "--input", source, "--output", out, *FLAGS, "--perturbations", "P02, P05")
    assert done[0] == 0 and done[2] == "" and str(out) in done[1]
    listed = anndata.read_h5ad(out)
    np.testing.assert_allclose(listed.X.toarray(), base.X.toarray(), atol=1e-4)
    table = tmp_path / "design.csv"
    table.write_text("perturbation,cell_type,batch,cells,draws\nP02,T1,B2,,2\nP05,T1,B2,7,\n")
    done = said(cli.run, *common, "--input", source, "--output", out, *FLAGS, "--design", table)
    assert done[0] == 0 and done[2] == ""
    designed = anndata.read_h5ad(out)
    np.testing.assert_allclose(cells_of(designed, "P02"), cells_of(base, "P02"), atol=1e-4)
    assert [len(cells_of(designed, p, draw=d)) for p, d in (("P02", 0), ("P02", 1), ("P05", 0))] == [5, 5, 7]
    store = finished.workdir / "store"
    done = said(cli.run, *common[:3], "--split", "test", "--store", store, "--output", out)
    assert done[0] == 0 and done[2] == ""
    split = anndata.read_h5ad(out)
    first = anndata.read_h5ad(finished.workdir / "predictions.h5ad")
    assert (split.obs == first.obs).all().all()
    np.testing.assert_allclose(split.X.toarray(), first.X.toarray(), atol=1e-4)
    assert [path.name for path in out.parent.iterdir()] == ["p.h5ad"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--perturbations", "P2"), "perturbations: unknown perturbation 'P2'. Did you mean 'P02'"),
        (("--perturbations", ""), "unknown perturbation ''"),
        (("--perturbations", "P02,P02"), "P02 / T1 / B1 is asked for twice"),
        (("--perturbations", "control"), "'control' is the control"),
        (("--perturbations", "P02", "--draws", "0"), "draws must be whole numbers from 1 up, got '0'"),
        (("--perturbations", "P02", "--cells-per-condition", "-1"), "cells must be whole numbers from 1 up"),
        (("--perturbations", "P02", "--steps", "0"), "steps=0: must be between 1 and"),
        (("--perturbations", "P02", "--start", "2000"), "the schedule has 1000 timesteps"),
        (("--perturbations", "P02", "--guidance", "nan"), "guidance=nan: must be a finite number"),
        (("--perturbations", "P02", "--seed", "-1"), "seed -1: allowed are"),
        (("--perturbations", "P02", "--sampler", "dpm"), "invalid choice: 'dpm'"),
        (("--design", "bach"), "unknown column 'bach'. Did you mean 'batch'"),
        (("--design", "perturbation,cell_type,batch\nP02,T3,B1"), "unknown cell type 'T3'"),
        (("--design", "perturbation,cell_type,batch\nP02,T1,B7"), "unknown batch 'B7'"),
        (("--design", "perturbation,cell_type,batch\nP02,T1,"), "column 'batch' has no value in row 1"),
        (("--design", "perturbation,cell_type\nP02,T1"), "column 'batch' is missing"),
        (("--design", "cell_type,batch\nT1,B1"), "column 'perturbation' is missing"),
        (("--design", "perturbation,cell_type,batch\n"), "no condition is asked for"),
        (
            ("--design", "perturbation,cell_type,batch,cells\nP02,T1,B1,2.5"),
            "whole numbers from 1 up, got '2.5'",
        ),
        (("--design", "perturbation,cell_type,batch,cells\nP02,T1,B1,few"), "got 'few'"),
        (("--design", ""), "cannot be read as csv"),
        (("--design", None), "no such file"),
    ],
)
def test_wrong_requests_are_named_and_write_nothing(finished, tmp_path, words, message):
    if words[0] == "--design":
        if words[1] is not None:
            (tmp_path / "d.csv").write_text(words[1])
        words = ("--design", tmp_path / "d.csv")
    source, out = finished.workdir / "simulated.h5ad", tmp_path / "o.h5ad"
    command = ("predict", "--checkpoint", finished.workdir, "--input", source, "--output", out, *FLAGS)
    code, _, err = said(cli.run, *command, *words)
    assert code == 2 and message in err and len(err.splitlines()) <= 2 and "Traceback" not in err
    assert not list(tmp_path.glob("o.h5ad*"))
    if words[0] == "--design":
        assert "d.csv" in err


def test_a_store_of_other_genes_or_another_unit_is_refused(finished, tmp_path):
    command = ("predict", "--checkpoint", finished.workdir, "--output", tmp_path / "o.h5ad", "--split")
    for change, message in (
        ({"genes": [f"x{i}" for i in range(40)]}, "lacks GENE0001, GENE0002"),
        (
            {"values": {"encoding": "counts", "target_sum": 5000.0}},
            "normalised to 5000, those of the bundle to 10000",
        ),
    ):
        store = tmp_path / "store"
        shutil.copytree(finished.workdir / "store", store, dirs_exist_ok=True)
        manifest = json.loads((store / "manifest.json").read_text())
        (store / "manifest.json").write_text(json.dumps(manifest | change))
        code, _, err = said(cli.run, *command, "test", "--store", store)
        assert code == 2 and message in err
    code, _, err = said(cli.run, *command, "tst", "--store", finished.workdir / "store")
    assert code == 2 and "unknown split 'tst'. Did you mean 'test'" in err


def test_a_copied_bundle_is_enough(finished, screen, base, tmp_path):
    shutil.copytree(finished.workdir / "bundle", tmp_path / "elsewhere")
    copied = perturbdiff_jax.load(tmp_path / "elsewhere")
    again = copied.predict(screen, ["P02", "P05"], cells_per_condition=5, echo=silent, **KEYS)
    np.testing.assert_allclose(again.X.toarray(), base.X.toarray(), atol=1e-4)


def test_python_refuses_in_the_same_words(model, screen):
    with pytest.raises(RequestError, match="either perturbations or a design"):
        model.predict(screen, **KEYS)
    with pytest.raises(RequestError, match="either perturbations or a design"):
        model.predict(screen, ["P02"], design=pd.DataFrame({"perturbation": ["P02"]}), **KEYS)
    with pytest.raises(RequestError, match="Did you mean 'P02'"):
        model.predict(screen, ["P2"], **KEYS)
    assert model.perturbations == [f"P0{i}" for i in range(1, 7)]
    assert model.cell_types == ["T1", "T2"] and model.batches == ["B1", "B2"]


def test_a_perturbation_that_training_never_saw_is_refused_or_marked(model, screen):
    kept = [triple for triple in model.bundle.trained if triple[0] != "P05"]
    bundle = dataclasses.replace(model.bundle, trained=kept)
    with pytest.raises(RequestError, match="perturbation 'P05' has no training cell"):
        dataclasses.replace(model, bundle=bundle).predict(screen, ["P02", "P05"], echo=silent, **KEYS)
    settings = bundle.settings | {"covariates": {"allow_unknown": True}}
    other = dataclasses.replace(model, bundle=dataclasses.replace(bundle, settings=settings))
    predicted = other.predict(screen, ["P02", "P05"], cells_per_condition=2, echo=silent, **KEYS)
    seen = predicted.obs.groupby("perturbation", observed=True)["seen_perturbation"].agg(set).to_dict()
    assert seen == {"P02": {True}, "P05": {False}, "control": {True}}


def test_an_untrained_excess_is_capped_at_what_a_cell_can_hold(model, screen):
    values = model.bundle.values | {"largest": 1.5}
    capped = dataclasses.replace(model, bundle=dataclasses.replace(model.bundle, values=values))
    store_units = screen.copy()
    store_units.X = sp.csr_matrix(store_units.X)
    predicted = capped.predict(store_units, "P05", cells_per_condition=4, echo=silent, **KEYS)
    assert cells_of(predicted, "P05").max() == 1.5

"""The benchmark configs in small, at work: on a mesh of eight devices, and one of them from cells to report."""

import json

import anndata
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_recipes import CONFIGS, SIZES, config_of
from tiny_run import said

from perturbdiff_jax import main, sharding
from perturbdiff_jax.bundle import build_model
from perturbdiff_jax.data.conditions import TEST
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.finetuning.start import Start, covariate_genes
from perturbdiff_jax.optim import optimizer
from perturbdiff_jax.placement import placed
from perturbdiff_jax.run_setup import describe, settle
from perturbdiff_jax.run_store import open_store
from perturbdiff_jax.settings import from_config
from perturbdiff_jax.state import create_state, init_params
from perturbdiff_jax.step import StepParts, compile_step, initial_state
from perturbdiff_jax.train import train
from perturbdiff_jax.training_sets import training_sets

# A step and a validation: less than any of them asks for.
QUICK = {
    "train.steps": 2,
    "train.validate_every": 2,
    "train.log_every": 1,
    "train.validation_conditions": 1,
    "train.max_epochs": None,
    "sampler.steps": 2,
    "sampler.guidance": 0.0,
    "simulate.cells_per_group": 8,
    "simulate.genes": 40,
    "simulate.perturbations": 6,
    "data.hvg": 30,
    "model.depth": 1,
}
MESH = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}


def prepared(name, workdir, **changes):
    """(settings, store) of a config in small, made smaller."""
    config = config_of(name, "smoke")
    for key, value in (QUICK | MESH | changes).items():
        section, _, last = key.rpartition(".")
        (config[section] if section else config)[last] = value
    workdir.mkdir()
    settings = from_config(config)
    store = open_store(settings, workdir)
    return settle(settings, store), store


def stepped(name, workdir):
    """(settings, store, facts) of two steps of a config in small, on eight devices."""
    settings, store = prepared(name, workdir)
    return settings, store, train(settings, store, workdir)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """(work directory, settings, store, facts) of a pretraining of two steps."""
    workdir = tmp_path_factory.mktemp("pretrained") / "run"
    return workdir, *stepped("pretrain", workdir)


def losses(workdir):
    rows = [json.loads(line) for line in (workdir / "logs" / "metrics.jsonl").read_text().splitlines()]
    return [row["loss/total"] for row in rows if "loss/total" in row]


def test_the_scaling_study_and_the_ablation_in_small_are_pbmc_in_small():
    small = config_of("pbmc", "smoke").to_dict()
    assert all(config_of(name, "smoke").to_dict() == small for name in SIZES)
    ablated = config_of("without_mmd", "smoke").to_dict()
    assert ablated["objective"].pop("mmd_weight") == 0.0 and small["objective"].pop("mmd_weight") == 1.0
    assert ablated == small


@pytest.mark.parametrize(("name", "sets"), [("pbmc", 8), ("without_mmd", 8), ("replogle", 4)])
def test_a_step_on_a_mesh(name, sets, tmp_path):
    """Of those that take their steps in no test below."""
    settings, store = prepared(name, tmp_path / "run")
    mesh = sharding.make_mesh(settings.mesh)
    sharding.check_divisible(settings.loader.sets_per_batch, mesh, settings.train.accumulate)
    dealt = training_sets(settings, store, mesh)
    assert len(jax.devices()) == 8 and np.shape(dealt[0].mask) == (sets, 16)
    parts = StepParts(
        model=build_model(describe(settings, store), settings.model),
        tx=optimizer(settings.optim, settings.train.steps),
        schedule=settings.schedule,
        objective=settings.objective,
        ema=settings.ema,
        seed=settings.seed,
    )
    state, step = initial_state(parts, mesh), compile_step(parts, mesh)
    ((_, batch),) = placed(dealt, mesh, 0, 1)
    state, metrics = step(state, batch)
    assert int(state.step) == 1 and 0 < float(metrics["loss/total"]) < np.inf
    assert (float(metrics["loss/energy"]) == 0) == (name == "without_mmd")
    assert (store.groups.split == TEST).any() and store.control == settings.data.control
    assert store.manifest["keys"]["perturbation"] == settings.data.perturbation_key


def test_a_pretraining_step_on_a_mesh(pretrained):
    workdir, _, store, facts = pretrained
    assert store.names == ["pbmc", "tahoe100m", "replogle", "cellxgene"] and facts["steps"] == 2
    assert np.isfinite(losses(workdir)).all() and len(store.genes) == 40
    assert not store.measured.all()  # each lacks some of the genes
    assert [(one.groups.split == TEST).any() for one in store.stores] == [True] * 3 + [False]


@pytest.mark.parametrize("name", ["finetune_pbmc", "finetune_tahoe", "finetune_replogle"])
def test_finetuning_goes_on_from_pretraining(name, pretrained, tmp_path):
    """What each strategy takes of the pretrained weights, once the run has prepared its own cells."""
    workdir, _, there, _ = pretrained
    given = {"init_from": str(workdir / "bundle")}
    if name != "finetune_tahoe":
        given["data.genes"] = str(workdir / "bundle" / "bundle.json")
    tmp_path = tmp_path / "run"
    settings, store = prepared(name, tmp_path, **given)
    bundle = describe(settings, store, covariate_genes=covariate_genes(settings, tmp_path / "bundle"))
    model, tx = build_model(bundle, settings.model), optimizer(settings.optim, 2)
    shapes = jax.eval_shape(lambda: create_state(init_params(model, jax.random.key(0)), tx))
    state, account = Start.of(settings).put_into(
        jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes), bundle, settings
    )
    facts, keeps = account.facts(), name == "finetune_pbmc"
    for layer in ("embed_perturbed", "embed_control", "head/out"):
        assert layer in facts["taken" if keeps else "drawn anew"]
    assert {"trunk", "covariates/mix", "covariates/cell_type"} <= set(facts["taken"])
    taken, size = facts["partly taken" if "covariates/batch" in facts["partly taken"] else "taken"][
        "covariates/batch"
    ]
    assert taken == size  # its batches are batches of its source there
    assert np.asarray(state.params["head"]["out"]["linear"]["kernel"]).any() == keeps
    if name == "finetune_tahoe":
        assert set(store.genes) < set(there.genes) and bundle.covariate_genes == len(there.genes)
    else:
        assert store.genes == there.genes


@pytest.fixture(scope="module")
def tahoe(tmp_path_factory):
    """The drug screen in small from its cells to its report, through the command line."""
    workdir = tmp_path_factory.mktemp("tahoe") / "run"
    flags = [f"--config.{name}={value}" for name, value in (QUICK | MESH).items()]
    return workdir, *said(main.run, f"--config={CONFIGS / 'tahoe.py'}:smoke", f"--workdir={workdir}", *flags)


def test_a_whole_run_in_small(tahoe):
    workdir, code, out, err = tahoe
    assert code == 0, err
    assert "Simulating tahoe100m in small" in out and (workdir / "report.html").is_file()
    store = Store.open(workdir / "store")
    groups = store.groups
    held = {store.perturbations[code] for code in groups.perturbation[groups.split == TEST].tolist()}
    predicted = anndata.read_h5ad(workdir / "predictions.h5ad").obs
    drugs = set(predicted["drugname_drugconc"]) - {store.control}
    assert drugs == held and set(predicted["cell_line"]) == {"CVCL_1097"}
    listed = json.loads((CONFIGS / "splits" / "tahoe100m.json").read_text())["holdout_perturbations"]
    assert held <= set(listed["test"])
    summary = json.loads((workdir / "summary.json").read_text())
    assert "perturbdiff" in str(summary) and "ridge" in str(summary)

"""Marginal pretraining on several sources: what is drawn, what the bundle says, zero-shot predictions, refusals."""

import json
import re

import anndata
import jax
import numpy as np
import pytest
from pretraining_world import pretraining_config, write_sources

from perturbdiff_jax import cli, load, sharding
from perturbdiff_jax import training_sets as training_sets_module
from perturbdiff_jax.bundle import read_bundle
from perturbdiff_jax.data.conditions import TEST
from perturbdiff_jax.data.prepare import PrepareOptions, prepare
from perturbdiff_jax.data.storage.joined import JoinedStores
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.run_setup import settle
from perturbdiff_jax.run_store import open_store
from perturbdiff_jax.settings import from_config
from perturbdiff_jax.train import train_and_evaluate
from perturbdiff_jax.training_sets import shares_by_cells, training_sets
from perturbdiff_jax.validation import of_contexts


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def run(stores, tmp_path_factory):
    """A finished pretraining; do not change its directory."""
    workdir = tmp_path_factory.mktemp("pretraining") / "run"
    train_and_evaluate(pretraining_config(stores), workdir)
    return workdir


def joined(stores):
    return JoinedStores({name: Store.open(path) for name, path in stores.items()})


def sets_of(stores, **changes):
    config = pretraining_config(stores)
    for name, value in changes.items():
        section, key = name.split("__")
        config[section][key] = value
    settings = from_config(config)
    store = open_store(settings, None)
    settings = settle(settings, store)
    return training_sets(settings, store, sharding.make_mesh(settings.mesh)), store


def test_vocabularies_are_united_and_batches_keep_their_source(stores):
    store = joined(stores)
    assert store.cell_types == ["T1", "T2", "T3"] and store.perturbations == ["control"]
    assert store.batches == ["screen_B1", "screen_B2", "atlas_B1", "atlas_B2"]
    assert store.n_cells == sum(part.n_cells for part in store.stores)
    groups = store.groups
    for name, part in zip(store.names, store.stores):
        mine = np.flatnonzero([store.names[store.source_of(g)] == name for g in range(len(groups))])
        assert len(mine) == len(part.groups)
        for own, group in enumerate(mine.tolist()):
            assert store.cell_types[groups.cell_type[group]] == part.cell_types[part.groups.cell_type[own]]
            assert store.batches[groups.batch[group]] == f"{name}_{part.batches[part.groups.batch[own]]}"
            assert groups.perturbation[group] == 0 and groups.control[group] == mine[part.groups.control[own]]
            here, there = int(groups.start[group]), int(part.groups.start[own])
            cells = store.read(here, here + 3).toarray()
            np.testing.assert_array_equal(cells, part.read(there, there + 3).toarray())


@pytest.mark.parametrize("densify", ["host", "device"])
def test_every_cell_comes_with_its_own_cell_type_batch_and_source(stores, densify):
    mixture, store = sets_of(stores, loader__densify=densify, data__weights="screen=1, atlas=2")
    # A cell's expression tells which cell it is.
    origin = {}
    for number, part in enumerate(store.stores):
        kind, place = (part.obs[part.manifest["keys"][role]].astype(str) for role in ("cell_type", "batch"))
        for row, cell in enumerate(np.round(part.load().toarray() / 10, 5)):
            place_here = f"{store.names[number]}_{place.iloc[row]}"
            origin.setdefault((number, cell.tobytes()), set()).add((kind.iloc[row], place_here))
    trained, sources = set(), []
    for step in range(40):
        batch = mixture[step]
        if densify == "device":
            from perturbdiff_jax.kernels.densify import densify as dense

            batch = dense(jax.tree.map(np.asarray, batch), genes=len(store.genes), divisor=10.0)
        sources += batch.source.tolist()
        assert np.asarray(batch.batch).shape == (8, 8) and not np.asarray(batch.perturbation).any()
        for row, source in enumerate(np.asarray(batch.source).tolist()):
            for cell, place in zip(
                np.round(np.asarray(batch.perturbed)[row], 5), np.asarray(batch.batch)[row]
            ):
                known = origin[(source, cell.astype(np.float32).tobytes())]
                told = (store.cell_types[batch.cell_type[row]], store.batches[place])
                assert told in known
                trained.add((source, cell.tobytes()))
            if source == 0:
                assert len(set(np.asarray(batch.batch)[row].tolist())) == 1
    assert abs(np.mean(sources) - 2 / 3) < 0.1
    # Control cells are targets as well, held-out conditions are not.
    screen = store.stores[0]
    held = np.repeat(np.isin(screen.groups.split, (1, 2)), screen.groups.size)
    cells = [np.round(cell / 10, 5).astype(np.float32).tobytes() for cell in screen.load().toarray()]
    control = np.repeat(screen.groups.is_control, screen.groups.size)
    once = np.array([cells.count(cell) == 1 for cell in cells])
    seen = np.array([(0, cell) in trained for cell in cells])
    assert seen[control].any() and seen[~control & ~held].any() and not seen[held & once].any()


def test_shares_are_those_asked_for_or_the_cells(stores):
    mixture, _ = sets_of(stores)
    cells = [source.n_cells for source in mixture.sources]
    assert mixture.shares.tolist() == [round(1024 * count / sum(cells)) for count in cells]
    # A source of few cells is not forgotten, nor does it stop the run.
    assert shares_by_cells([10**6, 10]) == [10**6, 2 / 1024 * (10**6 + 10)]


def test_the_bundle_tells_its_sources(run, stores):
    bundle, store = read_bundle(run / "bundle"), joined(stores)
    assert bundle.sources == ["screen", "atlas"] and bundle.datasets == {"screen": "screen", "atlas": "atlas"}
    assert bundle.batches == store.batches and bundle.perturbations == ["control"]
    assert bundle.keys == {
        "perturbation": "perturbation",
        "cell_type": "cell_type",
        "batch": "batch",
        "dose": None,
    }
    contexts = {(kind, place) for _, kind, place in bundle.trained}
    assert len(bundle.trained) == len(contexts) == 4 + 6 and ("T3", "atlas_B2") in contexts
    model = load(run)
    assert model.params["embed_perturbed"]["kernel"].shape[0] == 2
    record = json.loads((run / "run.json").read_text())
    assert record["store"]["cells"] == store.n_cells and "zero-shot screen" in record["seconds"]


def test_checkpoints_are_compared_on_contexts_of_every_source(run):
    rows = [json.loads(line) for line in (run / "logs" / "metrics.jsonl").read_text().splitlines()]
    scores = [row for row in rows if "validation/energy" in row]
    assert len(scores) == 2 and all(row["validation/energy"] > 0 for row in scores)
    assert not any("validation/pearson_delta" in row for row in rows)


def test_held_out_conditions_are_predicted_zero_shot(run, stores):
    folder, screen = run / "zero_shot" / "screen", Store.open(stores["screen"])
    cells = anndata.read_h5ad(folder / "predictions.h5ad")
    predicted = cells[cells.obs["perturbation"] != "control"].obs
    groups = screen.groups
    held = {
        tuple(
            getattr(screen, names)[getattr(groups, role)[group]]
            for role, names in (
                ("perturbation", "perturbations"),
                ("cell_type", "cell_types"),
                ("batch", "batches"),
            )
        )
        for group in np.flatnonzero(groups.split == TEST)
    }
    found = set(zip(predicted["perturbation"], predicted["cell_type"], predicted["batch"]))
    assert found == held and not predicted["seen_perturbation"].any()
    assert json.loads((folder / "summary.json").read_text()) and (folder / "report.html").is_file()
    assert not (run / "predictions.h5ad").exists()
    page = (run / "report.html").read_text()
    energy = json.loads((folder / "summary.json").read_text())["models"]["perturbdiff"]["energy"]["mean"]
    assert f'<a href="zero_shot/screen/report.html">screen</a>: Energy distance {energy:.3f}' in page


def test_the_command_predicts_the_same_cells(run, stores, tmp_path):
    words = ["--checkpoint", run, "--store", stores["screen"], "--split", "test", "--source", "screen"]
    assert cli.run(["predict", *map(str, words), "--output", str(tmp_path / "p.h5ad")]) == 0
    one, other = (
        anndata.read_h5ad(path) for path in (tmp_path / "p.h5ad", run / "zero_shot/screen/predictions.h5ad")
    )
    np.testing.assert_array_equal(one.X.toarray(), other.X.toarray())
    assert (one.obs["batch"].astype(str) == other.obs["batch"].astype(str)).all()


def test_a_batch_that_several_sources_have_needs_one_to_be_named(run, stores, tmp_path, capsys):
    words = ["--checkpoint", run, "--store", stores["screen"], "--split", "test"]
    assert cli.run(["predict", *map(str, words), "--output", str(tmp_path / "p.h5ad")]) == 2
    assert (
        "may be any of screen_B2, atlas_B2; give the full name, or the source (--source)"
        in capsys.readouterr().err
    )
    assert (
        cli.run(["predict", *map(str, words), "--source", "atlss", "--output", str(tmp_path / "p.h5ad")]) == 2
    )
    assert "atlss" in capsys.readouterr().err and not (tmp_path / "p.h5ad").exists()


def test_any_perturbation_is_predicted_from_control_cells(run, stores, tmp_path):
    model, screen = load(run), Store.open(stores["screen"])
    controls = screen.to_anndata(np.flatnonzero(screen.groups.is_control))
    keys = {"cell_type_key": "cell_type", "batch_key": "batch", "source": "screen"}
    cells = model.predict(controls, ["IFN-beta"], cells_per_condition=4, echo=lambda _: None, **keys)
    asked = cells.obs[cells.obs["perturbation"] == "IFN-beta"]
    assert len(asked) == 4 * 4 and set(asked["batch"]) == {"B1", "B2"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.sources": "a={screen}, a={atlas}"}, "'a' is given twice"),
        ({"data.sources": "{screen}"}, "is not NAME=STORE"),
        ({"data.sources": "a_b={screen}"}, "letters, digits, dots and hyphens"),
        ({"data.weights": "screen=1"}, "must give each of data.sources a number; they are screen, atlas"),
        ({"data.weights": "screen=1, atlas=0"}, "must be numbers above 0"),
        ({"data.weights": "screen=1, atlas=many"}, "must be numbers above 0"),
        ({"data.store": "elsewhere"}, "instead of data.store and data.input"),
        ({"data.fraction": 0.5}, "config.data.fraction: is for training on one store"),
        ({"model.use_perturbation": "yes"}, "set config.model.use_perturbation='no'"),
        ({"train.best_metric": "pearson_delta"}, "allowed are energy, r2"),
    ],
)
def test_refused_before_anything_is_opened(stores, changes, words):
    config = pretraining_config(stores)
    for name, value in changes.items():
        section, key = name.split(".")
        config[section][key] = value.format(**stores) if isinstance(value, str) else value
    with pytest.raises(RequestError, match=words.replace("(", r"\(")) as refused:
        from_config(config)
    assert len(str(refused.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("fact", "value", "words"),
    [
        (
            "genes",
            [f"OTHER{i}" for i in range(40)],
            "its genes are not those of .*Prepare all sources with one",
        ),
        ("values", {"encoding": "counts", "target_sum": 1e6}, "cells are normalised to 1e.06, those of"),
    ],
)
def test_sources_that_do_not_fit_are_refused(stores, tmp_path, fact, value, words):
    one, other = (Store.open(path) for path in stores.values())
    other.manifest = {**other.manifest, fact: value}
    other.genes = other.manifest["genes"]
    with pytest.raises(RequestError, match=f"(?s){words}"):
        JoinedStores({"screen": one, "atlas": other})


def test_sources_of_different_kinds_become_matrices_on_the_host(stores, tmp_path, monkeypatch):
    monkeypatch.setattr(training_sets_module.jax, "default_backend", lambda: "gpu")
    assert sets_of(stores)[0].batcher.form == "packed"
    atlas = Store.open(stores["atlas"])
    cells = atlas.to_anndata(range(len(atlas.groups)))
    cells.X = cells.X * 0.9  # no counts can have been behind these
    cells.write_h5ad(tmp_path / "logs.h5ad")
    options = PrepareOptions(cell_type_key="cell_type", batch_key="batch", all_genes=True, unperturbed=True)
    prepare([tmp_path / "logs.h5ad"], tmp_path / "logs", options, echo=lambda _: None)
    mixed = stores | {"atlas": str(tmp_path / "logs")}
    with pytest.raises(RequestError, match=re.escape("Allowed: config.loader.densify=host")):
        sets_of(mixed, loader__densify="device")
    mixture, _ = sets_of(mixed)
    assert [source.batcher.form for source in mixture.sources] == ["dense", "dense"]
    assert mixture[0].perturbed.shape == (8, 8, 40)


def test_genes_that_nobody_counted_are_not_compared(stores):
    store, rng, asked = joined(stores), np.random.default_rng(0), set()

    def walker(noise):
        def walk(params, requests):
            for request in requests:
                asked.add((request.source, request.batch.split("_")[0]))
                cells = request.controls.toarray()
                if request.source == 1:
                    cells[:, ~store.stores[1].measured.any(axis=0)] += noise
                yield request, cells, None

        return walk

    assert (~store.stores[1].measured.any(axis=0)).sum() == 5
    scores = [of_contexts(store, walker(noise), conditions=4, cells=9)({}) for noise in (0.0, rng.random())]
    assert scores[0] == scores[1] and len(of_contexts(store, walker(0.0), conditions=4, cells=9)) == 4
    assert scores[0]["validation/r2"] == 1.0
    assert asked == {(0, "screen"), (1, "atlas")}

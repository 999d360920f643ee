"""Perturbations that training never saw are predicted from their vectors or parts, flagged, and never made up."""

import dataclasses
import shutil
import sys
from pathlib import Path

import anndata
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from covariate_runs import NAMES, WHOLE, untrained, vectors, write_table
from tiny_run import KEYS, tiny_config

from perturbdiff_jax.bundle import build_model
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.run_store import open_store
from perturbdiff_jax.settings import from_config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def store(workdir):
    return open_store(from_config(tiny_config(**WHOLE)), workdir)


@pytest.fixture(scope="module")
def screen(workdir, store):
    return anndata.read_h5ad(workdir / "simulated.h5ad")


@pytest.fixture(scope="module")
def told(store, tmp_path_factory):
    path = tmp_path_factory.mktemp("told")
    table = write_table(path / "mine.npz")
    return untrained(store, path / "bundle", covariates__perturbation=f"onehot + mine={table}")


@pytest.fixture(scope="module")
def parts(store, tmp_path_factory):
    """One-hot, combinations as sums."""
    changes = {"covariates__combinations": "sum", "covariates__allow_unknown": True}
    return untrained(store, tmp_path_factory.mktemp("parts") / "bundle", **changes)


def predicted(model, screen, names, heard=None, **asked):
    echo = (lambda _: None) if heard is None else heard.append
    return model.predict(screen, names, cells_per_condition=9, echo=echo, **KEYS, **asked)


def cells(adata, name):
    return adata[adata.obs["perturbation"] == name].X.toarray()


def test_a_new_name_is_predicted_as_if_the_vocabulary_had_it(told, screen):
    found = predicted(told, screen, ["NEW", "P01"])
    # The same by hand: one more row of the table, one more name, one more row without a learned part.
    covariates = dict(told.params["covariates"])
    row = vectors()[NAMES.index("NEW")][None]
    covariates["frozen_perturbation"] = jnp.concatenate([covariates["frozen_perturbation"], jnp.asarray(row)])
    facts = told.bundle.tables["perturbation"]
    facts = {**facts, "shape": [9, 5], "learned": [*facts["learned"], []]}
    bundle = dataclasses.replace(
        told.bundle, perturbations=[*told.bundle.perturbations, "NEW"], tables={"perturbation": facts}
    )
    by_hand = dataclasses.replace(
        told,
        bundle=bundle,
        model=build_model(bundle, told.options.model),
        params={**told.params, "covariates": covariates},
    )
    wanted = predicted(by_hand, screen, ["NEW", "P01"])
    np.testing.assert_array_equal(found.X.toarray(), wanted.X.toarray())
    alone = cells(predicted(told, screen, ["P01"]), "P01")
    np.testing.assert_allclose(cells(found, "P01"), alone, atol=1e-4)
    other = cells(predicted(told, screen, ["NEAR3"]), "NEAR3")
    assert np.abs(cells(found, "NEW") - other).max() > 1e-3


def test_it_is_flagged_with_the_nearest_trained_one(told, screen, tmp_path):
    heard = []
    path = told.predict_to(
        tmp_path / "p.h5ad",
        screen,
        ["NEAR3", "P02", "P05"],
        cells_per_condition=3,
        echo=heard.append,
        **KEYS,
    )
    found = anndata.read_h5ad(path)
    seen = found.obs.groupby("perturbation", observed=True)["seen_perturbation"].all()
    assert seen.to_dict() == {"NEAR3": False, "P02": False, "P05": True, "control": True}
    facts = found.uns["perturbdiff"]["unseen"]
    assert facts["perturbation"].tolist() == ["NEAR3", "P02"] and facts["nearest"][0] == "P03"
    table = vectors()
    a, b = table[NAMES.index("NEAR3")], table[NAMES.index("P03")]
    wanted = 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_allclose(facts["distance"][0], wanted, atol=1e-6)
    assert facts["nearest"][1] in {"P01", "P03", "P06"}  # P04 is in the table, but was not trained
    assert next(line for line in heard if "never trained" in line).startswith(
        "NEAR3 was never trained: told by its"
    )
    assert "unseen" not in predicted(told, screen, ["P01"]).uns["perturbdiff"]


def test_what_nothing_tells_is_refused_with_the_closest(told, screen, store, tmp_path):
    with pytest.raises(RequestError, match="unknown perturbation 'NEWER'"):
        predicted(told, screen, ["NEWER"])
    with pytest.raises(RequestError, match=r"unknown perturbation 'NEW\+P99'"):
        predicted(told, screen, ["NEW+P99"])
    plain = untrained(store, tmp_path / "bundle", covariates__allow_unknown=True)
    # Allowed in the run that was asked for; in another the same bundle refuses it.
    predicted(plain, screen, ["P02"])
    settings = {**plain.bundle.settings, "covariates": {"allow_unknown": False}}
    strict = dataclasses.replace(plain, bundle=dataclasses.replace(plain.bundle, settings=settings))
    with pytest.raises(
        RequestError, match=r"perturbation 'P02' has no training cell .*\nTrained are P01, P03, P05"
    ):
        predicted(strict, screen, ["P02"])
    with pytest.raises(RequestError, match="unknown perturbation 'NEW'"):
        predicted(strict, screen, ["NEW"])
    predicted(strict, screen, ["P01"])


def test_what_is_unknown_by_leave_is_not_called_told(store, screen, tmp_path):
    """Nor is a row of zeros a vector: a table that lacks what was never trained tells nothing of it."""
    plain = untrained(store, tmp_path / "plain", covariates__allow_unknown=True)
    shorter = write_table(tmp_path / "s.npz", NAMES[2:], vectors()[2:])  # without P02, which no cell trains
    lacking = untrained(
        store, tmp_path / "lacking", covariates__perturbation=str(shorter), covariates__allow_unknown=True
    )
    for model in (plain, lacking):
        heard = []
        facts = predicted(model, screen, ["P02"], heard).uns["perturbdiff"]["unseen"]
        assert facts["nearest"].tolist() == [""] and np.isnan(facts["distance"]).all()
        assert "P02 was never trained, and nothing tells it from others (covariates.allow_unknown)." in heard
        settings = {**model.bundle.settings, "covariates": {"allow_unknown": False}}
        strict = dataclasses.replace(model, bundle=dataclasses.replace(model.bundle, settings=settings))
        with pytest.raises(
            RequestError, match="perturbation 'P02' has no training cell and nothing else tells"
        ):
            predicted(strict, screen, ["P02"])


def test_combinations_of_vectors(told, screen):
    found = predicted(told, screen, ["NEW+NEAR3", "P01+control"])
    covariates = np.asarray(told.params["covariates"]["frozen_perturbation"])
    facts = found.uns["perturbdiff"]["unseen"]
    both = vectors()[NAMES.index("NEW")] + vectors()[NAMES.index("NEAR3")]
    rows = {
        name: covariates[1 + told.bundle.perturbations.index(name)] for name in ("P01", "P03", "P05", "P06")
    }
    with np.errstate(invalid="ignore"):
        distance = {n: 1 - v @ both / np.linalg.norm(v) / np.linalg.norm(both) for n, v in rows.items()}
    nearest = min((d, n) for n, d in distance.items() if np.isfinite(d))
    assert facts["nearest"][0] == nearest[1]
    np.testing.assert_allclose(facts["distance"][0], nearest[0], atol=1e-6)
    # "P01+control" is P01 by its vector, but a name of its own: no learned part.
    assert facts["nearest"][1] == "P01" and abs(facts["distance"][1]) < 1e-6


def test_combinations_of_learned_parts(parts, screen):
    heard = []
    found = predicted(parts, screen, ["P01+P03"], heard)
    assert "P01+P03 was never trained: told as the sum of its parts." in heard
    assert np.isnan(found.uns["perturbdiff"]["unseen"]["distance"][0])
    learned = [*parts.bundle.tables["perturbation"]["learned"]]
    rows = [learned[1 + parts.bundle.perturbations.index(name)][0] for name in ("P01", "P03")]
    facts = {**parts.bundle.tables["perturbation"], "learned": [*learned, rows]}
    names = [*parts.bundle.perturbations, "P01+P03"]
    bundle = dataclasses.replace(parts.bundle, perturbations=names, tables={"perturbation": facts})
    by_hand = dataclasses.replace(parts, bundle=bundle, model=build_model(bundle, parts.options.model))
    wanted = predicted(by_hand, screen, ["P01+P03"])
    np.testing.assert_array_equal(found.X.toarray(), wanted.X.toarray())
    with pytest.raises(RequestError, match=r"unknown perturbation 'P01\+P02'"):  # P02 was never trained
        predicted(parts, screen, ["P01+P02"])


def test_a_table_that_is_not_the_one_of_the_bundle_is_refused(told, screen, tmp_path):
    shutil.copytree(told.path, tmp_path / "bundle")
    moved = dataclasses.replace(told, path=tmp_path / "bundle")
    predicted(moved, screen, ["NEW"])
    file = tmp_path / "bundle/embeddings/perturbation-0.npz"
    write_table(file, NAMES, vectors() + 1)
    with pytest.raises(
        RequestError, match=r"perturbation-0\.npz: is not the table mine that bundle\.json names"
    ):
        predicted(moved, screen, ["NEW"])
    file.unlink()
    with pytest.raises(RequestError, match=r"perturbation-0\.npz: no such file"):
        predicted(moved, screen, ["NEW"])
    predicted(moved, screen, ["P01"])  # needs no table

"""What the rooms above ask of a store, asked of an index over two stores and of one store of the same files."""

import types

import numpy as np
import pytest
from made_stores import OPTIONS
from tiny_run import tiny_config

from perturbdiff_jax.data.prepare import PrepareOptions, prepare
from perturbdiff_jax.data.storage.merge import MergeOptions, merge
from perturbdiff_jax.evaluation.baselines import training_of
from perturbdiff_jax.evaluation.inputs import Keys
from perturbdiff_jax.evaluation.real_cells import from_store as real_from_store
from perturbdiff_jax.evaluation.real_cells import triples
from perturbdiff_jax.prediction.controls import check_store, from_store
from perturbdiff_jax.prediction.design import split_design
from perturbdiff_jax.run_setup import describe, settle
from perturbdiff_jax.run_store import open_store, store_facts
from perturbdiff_jax.settings import from_config
from perturbdiff_jax.validation import of_split

RULE = {"fraction": 0.4, "context": {"batch": "b2"}, "validation_fraction": 0.3, "seed": 1}


@pytest.fixture
def pair(build, save, tmp_path):
    """(one store of two files, an index over a store of each); the condition (P1, T, b1) is in both files."""
    adata = build()
    adata.obs_names = [f"cell-{name}" for name in adata.obs_names]
    first = (adata.obs["donor"] == "b1").to_numpy(copy=True)
    moved = np.flatnonzero(first & (adata.obs["pert"] == "P1") & (adata.obs["kind"] == "T"))[:3]
    first[moved] = False
    files = [save(adata[first].copy(), "a.h5ad"), save(adata[~first].copy(), "b.h5ad")]
    options = PrepareOptions(**OPTIONS, holdout=RULE)
    whole = prepare(files, tmp_path / "whole", options, echo=lambda line: None)
    for number, file in enumerate(files):
        prepare([file], tmp_path / "parts" / str(number), PrepareOptions(**OPTIONS), echo=lambda line: None)
    index = merge(
        [tmp_path / "parts"], tmp_path / "index", MergeOptions(holdout=RULE), echo=lambda line: None
    )
    assert len(index.parts) == 2 and index.groups.size.max() == 7
    return whole, index


def bare(names):
    """Names of cells without that of their part."""
    return [name.split(":")[-1] for name in names]


def test_designs_and_controls(pair):
    whole, index = pair
    for split in ("train", "validation", "test"):
        assert split_design(index, split).equals(split_design(whole, split))
    bundle = types.SimpleNamespace(
        genes=whole.genes, values={"target_sum": 1e4}, batches=whole.batches, datasets={}, origin={}
    )
    check_store(index, bundle)
    ours, theirs = from_store(index), from_store(whole)
    assert ours.cells.keys() == theirs.cells.keys()
    for context, cells in theirs.cells.items():
        names = bare(ours.names[context])
        order = np.argsort(names), np.argsort(theirs.names[context])
        assert sorted(names) == sorted(theirs.names[context])
        np.testing.assert_array_equal(ours.cells[context].toarray()[order[0]], cells.toarray()[order[1]])


def test_real_cells_and_baselines(pair):
    whole, index = pair
    wanted = triples(split_design(whole, "test"))
    keys = Keys("pert", "control", "kind", "donor")
    ours, answered = real_from_store(index.path, wanted, keys, lambda line: None)
    theirs, _ = real_from_store(whole.path, wanted, keys, lambda line: None)
    ours.obs_names = bare(ours.obs_names)
    assert answered == wanted and sorted(ours.obs_names) == sorted(theirs.obs_names)
    theirs = theirs[ours.obs_names]
    np.testing.assert_array_equal(ours.X.toarray(), theirs.X.toarray())
    for key in ("pert", "kind", "donor"):
        assert ours.obs[key].tolist() == theirs.obs[key].tolist()
    for one, other in zip(
        training_of(index, index.genes).groups, training_of(whole, whole.genes).groups, strict=True
    ):
        assert (one.perturbation, one.cell_type, one.batch, one.size) == (
            other.perturbation,
            other.cell_type,
            other.batch,
            other.size,
        )
        np.testing.assert_allclose(one.mean, other.mean, rtol=1e-5)
        np.testing.assert_allclose(one.control_mean, other.control_mean, rtol=1e-5)


def test_validation(pair):
    def walker(params, requests):
        return ((request, request.controls[:, ::-1], None) for request in requests)

    scores = [of_split(s, walker, split="validation", conditions=9, cells=5)({}) for s in pair]
    assert scores[0].keys() == scores[1].keys()
    for name, value in scores[0].items():
        np.testing.assert_allclose(scores[1][name], value, rtol=1e-4, err_msg=name, equal_nan=False)


def test_setting_up_a_run(pair, tmp_path):
    whole, index = pair
    settings = from_config(tiny_config(data__store=str(index.path)))
    opened = open_store(settings, tmp_path / "run")
    assert type(opened) is type(index)
    settled = settle(settings, opened)
    ours, theirs = describe(settled, opened), describe(settled, whole)
    assert {**vars(ours), "split": None} == {**vars(theirs), "split": None}
    assert ours.split["sha256"] == theirs.split["sha256"]
    facts = store_facts(opened)
    assert facts["path"] == str(index.path)
    assert {**facts, "path": ""} == {**store_facts(whole), "path": ""}

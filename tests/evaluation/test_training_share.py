"""Baselines see the training cells that the model saw: against a screen from which the others were taken out."""

import numpy as np
import pytest
from toy_cells import foreign, prediction, screen, store_of

from perturbdiff_jax.data.low_data import low_data
from perturbdiff_jax.data.prepare import PrepareOptions, prepare
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.evaluation import celleval
from perturbdiff_jax.evaluation.evaluate import evaluate

DRAWN = ["control", "control cells + mean delta", "ceiling"]  # they draw cells, in another order


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    screen().write_h5ad(folder / "raw.h5ad")
    options = PrepareOptions(
        perturbation_key="pert",
        control="control",
        cell_type_key="type",
        batch_key="lot",
        hvg=None,
        holdout={"fraction": 1.0, "context": {"batch": "y"}, "validation_fraction": 0.0, "seed": 0},
    )
    return prepare([folder / "raw.h5ad"], folder / "store", options, echo=lambda _: None)


@pytest.fixture(autouse=True)
def without_celleval(monkeypatch):
    monkeypatch.setattr(celleval, "installed", lambda: False)


def ours(fraction=None, seed=0, draw=1):
    """A prediction that says how its model was trained."""
    pred = prediction(screen(), seed=draw)
    pred.uns["perturbdiff"]["checkpoint"] = "somewhere"
    if fraction is not None:
        pred.uns["perturbdiff"]["training_cells"] = {"fraction": fraction, "fraction_seed": seed}
    return pred


def scored(output, pred, store, said=None, **options):
    echo = (lambda _: None) if said is None else said.append
    names = {"perturbation_key": "pert", "control": "control", "cell_type_key": "type", "batch_key": "lot"}
    return evaluate(pred, screen(), output, **names, store=store, echo=echo, **options)


def numbers(found):
    rows = found.rows[~found.rows["model"].isin(DRAWN)]
    return rows.set_index(["model", "cell_type", "perturbation"])[["r2", "mse", "energy"]].sort_index()


def reduced(store, fraction, seed=0):
    """Stand-in for a store of a screen that never had the other training cells."""
    kept = set(low_data(store, fraction=fraction, seed=seed).obs.index)
    raw = screen()
    return store_of(raw[[name in kept for name in raw.obs_names]].copy())


@pytest.mark.parametrize(("fraction", "seed"), [(0.1, 0), (0.4, 3)])
@pytest.mark.parametrize("by", ["account", "argument"])
def test_baselines_are_those_of_a_screen_without_the_other_cells(store, tmp_path, fraction, seed, by):
    said = []
    pred = ours(fraction, seed) if by == "account" else foreign(screen())
    options = {} if by == "account" else {"fraction": fraction, "fraction_seed": seed}
    found = scored(tmp_path / "a", pred, store, said, **options)
    wanted = scored(tmp_path / "b", pred, reduced(store, fraction, seed), fraction=1)
    np.testing.assert_allclose(numbers(found), numbers(wanted), rtol=1e-3)
    whole = numbers(scored(tmp_path / "c", pred, store, fraction=1))
    assert not np.allclose(numbers(found).loc["ridge"], whole.loc["ridge"], rtol=1e-2)
    line = f"baselines: fitted on {100 * fraction:g} % of the perturbed training cells of each perturbation (seed "
    assert sum(text.startswith(f"{line}{seed})") for text in said) == 1
    assert found.settings["baselines_trained_on"] == {"fraction": fraction, "fraction_seed": seed}


def test_an_account_survives_its_file(store, tmp_path):
    ours(0.1, 2).write_h5ad(tmp_path / "pred.h5ad")
    found = scored(tmp_path / "run", tmp_path / "pred.h5ad", store)
    assert found.settings["baselines_trained_on"] == {"fraction": 0.1, "fraction_seed": 2}


def test_files_that_tell_nothing_get_all_cells(store, tmp_path):
    said = []
    assert (
        scored(tmp_path / "a", foreign(screen()), store, said).settings["baselines_trained_on"]["fraction"]
        == 1
    )
    assert scored(tmp_path / "b", ours(), store, said).settings["baselines_trained_on"]["fraction"] == 1
    assert not any("baselines: fitted" in line for line in said)
    assert scored(tmp_path / "c", ours(0.1), None).settings["baselines_trained_on"] is None


def test_several_models_of_one_share(store, tmp_path):
    pred = {"scratch": ours(0.1), "finetuned": ours(0.1, draw=2), "state": foreign(screen())}
    found = scored(tmp_path / "run", pred, store)
    assert found.settings["baselines_trained_on"] == {"fraction": 0.1, "fraction_seed": 0}


def test_models_of_other_shares_need_a_word(store, tmp_path):
    pred = {"one": ours(0.01), "five": ours(0.05, draw=2), "all": ours(draw=3)}
    with pytest.raises(RequestError) as told:
        scored(tmp_path / "run", pred, store)
    first, second = str(told.value).splitlines()
    assert "one 0.01 (seed 0), five 0.05 (seed 0), all 1 (seed 0)" in first and "--fraction" in second
    assert not (tmp_path / "run").exists()
    assert (
        scored(tmp_path / "run", pred, store, fraction=0.05).settings["baselines_trained_on"]["fraction"]
        == 0.05
    )
    scored(tmp_path / "other", pred, None)  # without baselines there is nothing to decide


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"fraction": 0.0}, r"fraction=0.0: must be above 0 and at most 1"),
        ({"fraction": 2}, r"fraction=2: must be above 0 and at most 1"),
        ({"fraction": 0.5, "fraction_seed": -3}, r"fraction_seed=-3: allowed are whole numbers"),
    ],
)
def test_a_share_that_is_none_is_refused(store, tmp_path, options, told):
    with pytest.raises(RequestError, match=told):
        scored(tmp_path / "run", ours(), store, **options)


def test_a_share_of_nothing_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"fraction=0.1: a share of which training cells\? Name a store"):
        scored(tmp_path / "run", ours(), None, fraction=0.1)


@pytest.mark.parametrize("cells", ["5 %", {"fraction": -1.0}, {"fraction": 0.5, "fraction_seed": 0.5}])
def test_a_spoilt_account_is_refused(store, tmp_path, cells):
    pred = ours()
    pred.uns["perturbdiff"]["training_cells"] = cells
    with pytest.raises(RequestError, match=r"predictions: uns\['perturbdiff'\]\['training_cells'\]"):
        scored(tmp_path / "run", pred, store)

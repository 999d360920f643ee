"""A run on a share of its training cells, from its command line to its scores; what binds it, and what is refused."""

import json
import math
import shutil

import anndata
import jax
import numpy as np
import pandas as pd
import pytest
from tiny_run import EVERY, FLAGS, QUICKSTART, STEPS, Finished, flags, said, tiny_config

from perturbdiff_jax import cli, main, train, training_sets, validation
from perturbdiff_jax.data.low_data import low_data
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.run_record import check_same_run
from perturbdiff_jax.run_setup import describe, settle
from perturbdiff_jax.run_store import open_store, training_share
from perturbdiff_jax.settings import from_config

SHARE = {"data__fraction": 0.2}


def started(workdir, **changes):
    return said(main.run, f"--config={QUICKSTART}", f"--workdir={workdir}", *flags(**changes))


@pytest.fixture(scope="module")
def low(tmp_path_factory):
    """The tiny job on 20 % of its training cells, through its command line; do not change its directory."""
    workdir = tmp_path_factory.mktemp("low") / "run"
    return Finished(workdir, *started(workdir, **SHARE))


def trained_cells(store, fraction, seed=0):
    """obs of the training cells that are kept."""
    share = low_data(store, fraction=fraction, seed=seed)
    return share.obs[np.repeat(share.groups.split == 0, share.groups.size)]


def test_the_run_says_what_it_trains_on(low):
    assert low.code == 0, low.err
    store = Store.open(low.workdir / "store")
    whole, kept = trained_cells(store, 1.0), trained_cells(store, 0.2)
    columns = ["perturbation", "cell_type", "batch"]
    wanted = sum(math.ceil(count / 5) for count in whole["perturbation"].value_counts() if count)
    assert len(kept) == wanted < len(whole)
    line = (
        f"Training on 20 % of the perturbed cells: {wanted} of {len(whole)} in "
        f"{len(kept[columns].drop_duplicates())} of {len(whole[columns].drop_duplicates())} groups; "
        "all 6 perturbations are kept."
    )
    assert low.out.count("Training on") == 1 and line in low.out
    record = json.loads((low.workdir / "run.json").read_text())
    sizes = kept.groupby(columns, observed=True).size()
    assert record["n_sets"] == np.ceil(sizes / 8).sum()
    assert record["training_cells"]["cells"] == wanted and record["store"]["cells"] == store.n_cells
    page = (low.workdir / "report.html").read_text()
    assert line in page and "Low data" in page
    bundle = json.loads((low.workdir / "bundle/bundle.json").read_text())
    named = kept[columns].drop_duplicates().itertuples(index=False, name=None)
    assert {tuple(triple) for triple in bundle["trained"]} == set(named)


def test_a_run_on_all_cells_says_nothing_of_it(finished):
    assert "Training on" not in finished.out
    assert "training_cells" not in json.loads((finished.workdir / "run.json").read_text())


def test_rivals_are_fitted_on_the_cells_of_the_model(low, tmp_path):
    """In the job and in `evaluate`, which the predictions tell; --fraction says otherwise."""
    predictions, store = low.workdir / "predictions.h5ad", low.workdir / "store"
    told = anndata.read_h5ad(predictions).uns["perturbdiff"]["training_cells"]
    assert {name: float(value) for name, value in told.items()} == {"fraction": 0.2, "fraction_seed": 0}

    def scored(name, *more):
        files = ("--pred", predictions, "--real", store, "--baselines", store, "--output", tmp_path / name)
        names = ("--perturbation-key", "perturbation", "--control", "control", *FLAGS)
        code, out, err = said(cli.run, "evaluate", *files, *names, *more)
        assert code == 0, err
        return out, pd.read_csv(tmp_path / name / "metrics_all.csv").set_index("model")["r2"]

    job = pd.read_csv(low.workdir / "metrics_all.csv").set_index("model")["r2"]
    out, same = scored("same")
    assert "baselines: fitted on 20 % of the perturbed training cells" in out and out.count("seed 0") == 1
    pd.testing.assert_series_equal(same, job)
    out, other = scored("other", "--fraction", "1")
    assert "baselines: fitted on" not in out
    assert not np.allclose(other["mean per perturbation"], job["mean per perturbation"])
    np.testing.assert_allclose(other["control"], job["control"])
    _, third = scored("third", "--fraction", "0.2", "--fraction-seed", "1")
    assert not np.allclose(third["mean per perturbation"], job["mean per perturbation"])


def test_epochs_are_those_of_the_kept_cells(low, capsys):
    store = Store.open(low.workdir / "store")
    settings = from_config(tiny_config(**SHARE, train__max_epochs=2.0, train__steps=100))
    share, _ = training_share(settings, store)
    sizes = trained_cells(store, 0.2).groupby(["perturbation", "cell_type", "batch"], observed=True).size()
    sets = np.ceil(sizes / settings.loader.cells_per_set).sum()
    limit = math.ceil(2 * sets / settings.loader.sets_per_batch)
    assert settle(settings, share).train.steps == limit < settle(settings, store).train.steps
    assert f"2 passes over {sets:.0f} sets" in capsys.readouterr().out


def test_a_batch_that_a_share_leaves_without_cells_is_read_off_its_controls(low, capsys):
    store = Store.open(low.workdir / "store")
    seed = next(s for s in range(999) if set(trained_cells(store, 0.01, s)["batch"]) == {"B1"})
    auto = {"model__use_batch": "auto", "loader__train_on_controls": "auto"}
    settings = from_config(tiny_config(**auto, data__fraction=0.01, data__fraction_seed=seed))
    share, _ = training_share(settings, store)
    settled = settle(settings, share)
    assert settled.model.use_batch == "no" and settled.loader.train_on_controls == "yes"
    assert "No perturbed cell of B2 in training" in capsys.readouterr().out
    assert settle(settings, store).model.use_batch == "yes"
    seen = describe(settled, share).trained
    assert {batch for name, _, batch in seen if name != "control"} == {"B1"} and [
        "control",
        "T1",
        "B2",
    ] in seen


def test_groups_below_min_cells_were_not_trained_on(low):
    """Neither do they count for what is decided from the cells."""
    store = Store.open(low.workdir / "store")
    # One perturbation of the test split has larger groups nowhere.
    settings = from_config(tiny_config(loader__min_cells=12, covariates__allow_unknown=True))
    columns = ["perturbation", "cell_type", "batch"]
    sizes = trained_cells(store, 1.0).groupby(columns, observed=True).size()
    large = {names for names, size in sizes.items() if size >= 12}
    assert 0 < len(large) < len(sizes)
    assert {tuple(triple) for triple in describe(settings, store).trained} == large
    largest = sizes.groupby("batch", observed=True).max()
    assert largest["B2"] < largest["B1"]
    auto = {"model__use_batch": "auto", "loader__min_cells": int(largest["B2"]) + 1}
    assert settle(from_config(tiny_config(**auto)), store).model.use_batch == "no"
    assert settle(from_config(tiny_config(**auto | {"loader__min_cells": 1})), store).model.use_batch == "yes"


def test_a_resumed_run_is_the_unbroken_one(low, tmp_path, monkeypatch, capsys):
    from perturbdiff_jax.bundle import build_model
    from perturbdiff_jax.checkpoint import Checkpoints
    from perturbdiff_jax.optim import optimizer
    from perturbdiff_jax.state import create_state, init_params

    monkeypatch.setattr(validation.SampledValidation, "__call__", lambda *_: {"validation/energy": 1.0})
    shutil.copytree(low.workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/bundle/checkpoints" / str(STEPS))
    store = Store.open(tmp_path / "run/store")
    settings = from_config(tiny_config(**SHARE))
    share, _ = training_share(settings, store)
    settings = settle(settings, share)
    drawn_from, whole = [], training_sets.SetSource
    monkeypatch.setattr(
        training_sets, "SetSource", lambda cells, **k: drawn_from.append(cells) or whole(cells, **k)
    )
    train.train(settings, share, tmp_path / "run")
    assert {set(cells.groups.split.tolist()) == {0, 3} for cells in drawn_from} == {True}
    assert f"Resuming at step {EVERY} of {STEPS}." in capsys.readouterr().out
    model = build_model(describe(settings, share), settings.model)
    like = jax.eval_shape(
        lambda: create_state(init_params(model, jax.random.key(0)), optimizer(settings.optim, STEPS))
    )
    states = []
    for workdir in (low.workdir, tmp_path / "run"):
        kept = Checkpoints(workdir / "bundle", metric="energy", mode="min", keep=2, read_only=True)
        states.append(kept.restore(STEPS, like))
        kept.close()
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data__fraction": 0.3}, "config.data.fraction was 0.2, is 0.3"),
        ({}, "config.data.fraction was 0.2, is 1.0"),
        (SHARE | {"data__fraction_seed": 1}, "config.data.fraction_seed was 0, is 1"),
    ],
)
def test_another_share_cannot_go_on_with_a_run(low, changes, told):
    code, _, err = started(low.workdir, **changes)
    assert code == 2 and told in err and "another --workdir" in err


def test_the_cells_do_not_follow_from_the_seed_of_training(tmp_path):
    kept = []
    for seed in (1, 2):
        settings = from_config(tiny_config(**SHARE, seed=seed))
        kept.append(sorted(trained_cells(open_store(settings, tmp_path / str(seed)), 0.2).index))
    assert kept[0] == kept[1]


def test_shares_can_be_changed_while_there_is_only_a_store(tmp_path):
    settings = [
        from_config(tiny_config(data__fraction=fraction, data__fraction_seed=seed))
        for fraction, seed in ((0.1, 0), (0.2, 0), (0.2, 1), (1.0, 0))
    ]
    check_same_run(tmp_path, settings[0])
    (tmp_path / "store").mkdir()
    check_same_run(tmp_path, settings[1])
    # Their stores would have other rows first.
    for other, told in (
        (settings[2], "fraction_seed was 0, is 1"),
        (settings[3], "fraction was 0.2, is 1.0"),
    ):
        with pytest.raises(RequestError, match=told):
            check_same_run(tmp_path, other)


@pytest.mark.parametrize("fraction", ["0", "-0.5", "1.01"])
def test_a_fraction_out_of_range_is_refused_in_a_line(tmp_path, fraction):
    code, out, err = started(tmp_path / "run", data__fraction=fraction)
    assert (code, out) == (2, "") and not (tmp_path / "run").exists()
    assert err == (
        f"error: config.data.fraction={float(fraction)}: must be above 0 and at most 1, the share of the perturbed "
        "training cells.\n"
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data__fraction": "half"}, "config.data.fraction=half"),
        ({"data__fraction": "nan"}, "config.data.fraction=nan: must be a finite number"),
        ({"data__fraction_seed": -1}, "config.data.fraction_seed=-1: allowed are whole numbers from 0"),
    ],
)
def test_what_is_no_share_is_refused(tmp_path, changes, told):
    code, _, err = started(tmp_path / "run", **changes)
    assert code == 2 and told in err and "Traceback" not in err


def test_min_cells_that_leave_a_perturbation_without_cells_are_refused_and_can_be_mended(low, tmp_path):
    """The store of the work directory stays; one that is named elsewhere leaves no work directory behind."""
    code, _, err = started(tmp_path / "run", data__fraction=0.1, loader__min_cells=5)
    first, second = err.splitlines()
    assert code == 2 and first.startswith("error: config.data.fraction=0.1: leaves P01, P02, ")
    assert first.endswith("without a group of config.loader.min_cells=5 cells (6 of 6 perturbations).")
    enough = int(second.split("at most ")[1].split(",")[0])
    assert not (tmp_path / "run/bundle").exists()
    settings = from_config(tiny_config(data__fraction=0.1, loader__min_cells=enough))
    check_same_run(tmp_path / "run", settings)
    assert training_share(settings, Store.open(tmp_path / "run/store"))[1].perturbations == 6
    store = {"data__store": str(low.workdir / "store")}
    code, _, err = started(tmp_path / "other", data__fraction=0.1, loader__min_cells=5, **store)
    assert code == 2 and "leaves P01" in err and not (tmp_path / "other").exists()

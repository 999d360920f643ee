"""A broken and resumed run is the unbroken one, bit for bit; a finished one does not train again."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from tiny_run import EVERY, QUICKSTART, STEPS, flags, read_log, said, state_of, tiny_config

from perturbdiff_jax import holdout, main, sharding, train, validation
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.errors import RequestError, RunError
from perturbdiff_jax.run_setup import settle
from perturbdiff_jax.settings import from_config


@pytest.fixture(scope="module")
def broken(finished, tmp_path_factory):
    """A copy of the tiny job's store, trained until it is killed after the first checkpoint."""
    workdir = tmp_path_factory.mktemp("broken") / "run"
    workdir.mkdir()
    shutil.copytree(finished.workdir / "store", workdir / "store")
    shutil.copy(finished.workdir / "config.json", workdir)
    store = Store.open(workdir / "store")
    settings = settle(from_config(tiny_config()), store)
    whole = train.placed

    def cut(*arguments, **keywords):
        for step, batch in whole(*arguments, **keywords):
            if step == EVERY + 2:
                raise KeyboardInterrupt
            yield step, batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "placed", cut)
        with pytest.raises(KeyboardInterrupt):
            train.train(settings, store, workdir)
    # What a kill leaves besides: a checkpoint under way and a line cut short.
    (workdir / "bundle/checkpoints/5.orbax-checkpoint-tmp-0").mkdir()
    with open(workdir / "logs/metrics.jsonl", "a") as log:
        log.write('{"step": 5, "kind": "tra')
    return workdir, store, settings


def test_a_resumed_run_is_the_unbroken_one(finished, broken, capsys):
    workdir, store, settings = broken
    assert (
        max(
            row["step"]
            for row in map(json.loads, (workdir / "logs/metrics.jsonl").read_text().splitlines()[:-1])
        )
        > EVERY
    )
    train.train(settings, store, workdir)
    assert f"Resuming at step {EVERY} of {STEPS}." in capsys.readouterr().out
    unbroken, best = state_of(finished.workdir, STEPS)
    resumed, best_resumed = state_of(workdir, STEPS)
    assert int(resumed.step) == STEPS and best == best_resumed
    jax.tree.map(np.testing.assert_array_equal, resumed, unbroken)
    assert read_log(workdir) == finished.log()
    assert not list((workdir / "bundle/checkpoints").glob("*tmp*"))


@pytest.mark.parametrize(("devices", "fsdp"), [(1, 1), (8, 4)], ids=["one device", "data 2 x fsdp 4"])
def test_a_run_goes_on_with_another_mesh(finished, tmp_path, monkeypatch, capsys, devices, fsdp):
    """The first half was computed by eight devices that each hold all parameters."""
    shutil.copytree(finished.workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/bundle/checkpoints" / str(STEPS))
    store = Store.open(tmp_path / "run/store")
    settings = settle(from_config(tiny_config(mesh__fsdp=fsdp)), store)
    whole = sharding.make_mesh
    monkeypatch.setattr(sharding, "make_mesh", lambda options: whole(options, jax.devices()[:devices]))
    monkeypatch.setattr(validation.SampledValidation, "__call__", lambda *_: {"validation/energy": 1.0})
    train.train(settings, store, tmp_path / "run")
    assert f"Resuming at step {EVERY} of {STEPS}." in capsys.readouterr().out
    ours, unbroken = state_of(tmp_path / "run", STEPS)[0], state_of(finished.workdir, STEPS)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours.params, unbroken.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours.ema, unbroken.ema)
    rows, before = (
        [row for row in log if row.pop("kind") == "train"]
        for log in (read_log(tmp_path / "run"), finished.log())
    )
    assert len(rows) == len(before) and all(a == pytest.approx(b, rel=1e-3) for a, b in zip(rows, before))


def test_the_state_has_moved_and_the_average_is_not_the_parameters(finished):
    first, _ = state_of(finished.workdir, EVERY)
    last, _ = state_of(finished.workdir, STEPS)
    kernel = ("head", "out", "linear", "kernel")
    for tree in ("params", "ema"):
        a, b = getattr(first, tree), getattr(last, tree)
        for name in kernel:
            a, b = a[name], b[name]
        assert not np.array_equal(a, b)
    assert not np.array_equal(last.params["null_condition"], last.ema["null_condition"])


def test_the_same_command_again_does_not_train_again(finished, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(finished.workdir, workdir)
    monkeypatch.setattr(train.TrainingLoop, "fit", lambda *a, **k: pytest.fail("trained again"))
    monkeypatch.setattr(holdout, "evaluate", lambda *a, **k: None)
    settings = json.loads((workdir / "config.json").read_text())
    train.train_and_evaluate(settings, workdir)
    assert read_log(workdir) == finished.log()
    # How to sample is free to change; the weights stay and the predictions are made anew.
    settings["sampler"]["steps"] = 1
    train.train_and_evaluate(settings, workdir)
    assert json.loads((workdir / "bundle/bundle.json").read_text())["settings"]["sampler"]["steps"] == 1


def test_other_settings_in_a_used_directory_are_refused(finished):
    command = [f"--config={QUICKSTART}", f"--workdir={finished.workdir}"]
    code, _, err = said(main.run, *command, *flags(optim__learning_rate=0.5))
    assert code == 2 and "config.optim.learning_rate was 0.001, is 0.5" in err and "another --workdir" in err


def test_a_refused_run_can_be_mended_in_the_same_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "train", lambda *a: {})
    monkeypatch.setattr(holdout, "predict_test", lambda *a: pytest.fail("no test split was asked for"))
    with pytest.raises(RequestError, match="unknown batch"):
        train.train_and_evaluate(tiny_config(holdout__batch="B9"), tmp_path)
    assert not (tmp_path / "store").exists()
    with pytest.raises(RequestError, match=r"model.heads=5"):
        train.train_and_evaluate(tiny_config(model__heads=5), tmp_path)
    report = train.train_and_evaluate(
        tiny_config(holdout__fraction=0.0, holdout__validation_fraction=0.0, simulate__genes=30), tmp_path
    )
    assert report.exists() and len(Store.open(tmp_path / "store").genes) == 30


@pytest.mark.parametrize("stage", ["prepare", "predict", "evaluate"])
def test_a_run_broken_in_any_stage_leaves_nothing_half_written(finished, tmp_path, monkeypatch, stage):
    """Each stage is stopped in the middle of its writing."""
    import anndata
    import pandas

    from perturbdiff_jax.data.storage.writer import StoreWriter

    def stop(_, path=None, *__, **___):
        if isinstance(path, pathlib.Path):
            path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    workdir = tmp_path / "run"
    if stage == "prepare":
        monkeypatch.setattr(StoreWriter, "finish", stop)
    else:
        shutil.copytree(finished.workdir, workdir)
        for name in (
            "predictions.h5ad",
            "metrics.csv",
            "metrics_all.csv",
            "summary.json",
            "pca.csv",
            "report.html",
        ):
            (workdir / name).unlink()
        monkeypatch.setattr(
            *(anndata.AnnData, "write_h5ad") if stage == "predict" else (pandas.DataFrame, "to_csv"), stop
        )
    before = set(workdir.rglob("*"))
    with pytest.raises(KeyboardInterrupt):
        train.train_and_evaluate(tiny_config(), workdir)
    made = {path.relative_to(workdir).as_posix() for path in set(workdir.rglob("*")) - before}
    assert not any(name.endswith(".partial") for name in made)
    kept = (
        "logs/",
        ".lock",
        "predictions.h5ad.parts",
    )  # finished parts are whole, and spare the next run their work
    made = {name for name in made if not name.startswith(kept)}
    assert (
        made
        <= {
            "prepare": {"config.json", "run.json", "simulated.h5ad"},
            "predict": set(),
            "evaluate": {"predictions.h5ad"},
        }[stage]
    )


def test_a_loss_that_is_not_finite_names_the_groups_of_its_batch(finished, tmp_path, monkeypatch):
    store = Store.open(finished.workdir / "store")
    settings = settle(from_config(tiny_config(loader__sets_per_batch=8)), store)
    drawn, whole = [], train.groups_of

    def compiled(parts, mesh):
        def step(state, batch):
            step.done += 1
            value = np.float32(np.nan if step.done == 4 else 1)
            state = dataclasses.replace(state, step=state.step + 1)
            return state, {"loss/total": value, "loss/mse": value, "loss/energy": value}

        step.done = 0
        return step

    def groups_of(source, store, step):
        drawn.extend(source.draw(step).group.tolist())
        return whole(source, store, step)

    monkeypatch.setattr(train, "compile_step", compiled)
    monkeypatch.setattr(train, "groups_of", groups_of)
    monkeypatch.setattr(validation.SampledValidation, "__call__", lambda *_: {"validation/energy": 1.0})
    with pytest.raises(RunError) as told:
        train.train(settings, store, tmp_path)
    first, second = str(told.value).splitlines()
    groups, names = store.groups, []
    for group in dict.fromkeys(drawn):
        vocabularies = (
            ("perturbation", store.perturbations),
            ("cell_type", store.cell_types),
            ("batch", store.batches),
        )
        names.append(" / ".join(names_of[getattr(groups, role)[group]] for role, names_of in vocabularies))
    assert len(drawn) == 8 and len(names) > 4
    assert first == (
        f"step 4: loss/energy, loss/mse, loss/total not finite, in a batch of {', '.join(names[:4])}, "
        f"... ({len(names) - 4} more)."
    )
    assert second.startswith(f"The last good checkpoint is that of step 3 ({tmp_path}/bundle).")

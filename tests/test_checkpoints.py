"""Checkpoints: which stay, which is chosen, what travels with them, and a disk that is full."""

import errno
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from small_checkpoints import left, opened, saved, state

from perturbdiff_jax import checkpoint_folder, sharding
from perturbdiff_jax.errors import RequestError, RunError, full_disk_told
from perturbdiff_jax.history import BestMetric, Recall
from perturbdiff_jax.stored_arrays import fingerprint


@pytest.mark.parametrize(("mode", "kept", "best"), [("min", [2, 3, 5], 2), ("max", [1, 4, 5], 4)])
def test_the_best_and_the_latest_are_kept(tmp_path, mode, kept, best):
    scores = {1: 0.8, 2: 0.2, 3: 0.4, 4: 0.9, 5: 0.6}
    checkpoints = opened(tmp_path, mode=mode)
    assert checkpoints.latest_step() is None and checkpoints.best_step() is None
    assert checkpoints.newest(state(0)) is None
    assert saved(tmp_path, scores, mode=mode) == [str(step) for step in kept]
    again = opened(tmp_path, mode=mode, read_only=True)
    assert again.best_step() == best and again.latest_step() == 5
    for found, step in (
        (again.weights("best", state(0).ema), best),
        (again.weights("latest", state(0).ema), 5),
    ):
        assert found[0] == step
        np.testing.assert_array_equal(found[1]["w"], state(step).ema["w"])
    jax.tree.map(np.testing.assert_array_equal, again.restore(5, state(0)), state(5))


def test_what_has_no_score_is_never_the_best_and_goes_when_it_is_not_the_latest(tmp_path):
    kept = saved(tmp_path, {1: 0.5, 2: None, 3: float("nan"), 4: None, 5: None}, keep=1)
    assert kept == ["1", "5"]
    again = opened(tmp_path, read_only=True)
    assert again.best_step() == 1 and again.latest_step() == 5 and again.ranked("best") == [1, 5]


def test_without_any_score_the_newest_is_the_best(tmp_path):
    assert saved(tmp_path, {1: None, 2: None}) == ["2"]
    assert opened(tmp_path, read_only=True).best_step() == 2
    assert saved(tmp_path, {3: float("nan"), 4: None}) == ["3", "4"]  # a bad score is one
    assert opened(tmp_path, read_only=True).best_step() == 3


def test_history_and_window_travel_with_a_checkpoint(tmp_path):
    recall = Recall([[2, 0.1], [4, float("nan")]], [{"loss/total": 0.1 + 0.2}])
    with opened(tmp_path) as checkpoints:
        checkpoints.save(state(4), None, recall)
        recall.history.append([6, 0.0])  # what happens afterwards is not its business
    found, again = opened(tmp_path).newest(state(0))
    assert int(found.step) == 4 and again.window == recall.window
    assert again.history[0] == [2, 0.1] and np.isnan(again.history[1][1]) and len(again.history) == 2


NAN = float("nan")


@pytest.mark.parametrize(
    ("mode", "scores", "patience", "over"),
    [
        ("min", [3.0, 2.0, 2.5, 2.1], 2, True),
        ("min", [3.0, 2.0, 2.5], 2, False),
        ("max", [3.0, 2.0, 2.5], 2, True),
        ("min", [3.0, 2.0, 2.0, 2.0], 2, True),  # equal is not better
        ("min", [3.0, 2.0, 2.5, 1.0], 2, False),
        ("min", [2.0, NAN, NAN], 2, True),
        ("max", [NAN, NAN, 0.1], 2, False),
        ("min", [1.0, 2.0, 3.0], 0, False),
        ("min", [], 1, False),
    ],
)
def test_patience(mode, scores, patience, over):
    history = [[step, score] for step, score in enumerate(scores)]
    assert Recall(history).is_over(BestMetric("validation/energy", mode), patience) is over


def test_a_state_comes_back_onto_another_mesh(tmp_path):
    def placed(shape, spec):
        mesh = jax.make_mesh(shape, sharding.AXES, devices=jax.devices()[: np.prod(shape)])
        cut = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.device_put(state(3), jax.tree.map(lambda x: cut if x.ndim == 2 else whole(mesh), state(3)))

    def whole(mesh):
        return NamedSharding(mesh, PartitionSpec())

    eight, four = placed((8, 1, 1), ("data",)), placed((1, 2, 2), ("tensor", "fsdp"))
    assert fingerprint(eight) == fingerprint(four) == fingerprint(state(3))
    with opened(tmp_path) as checkpoints:
        checkpoints.save(eight)
    found = opened(tmp_path).restore(3, four)
    assert found.params["w"].sharding == four.params["w"].sharding
    jax.tree.map(np.testing.assert_array_equal, found, state(3))


def test_the_fingerprint_sees_a_single_bit_and_an_exchange():
    tree = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(3, bool), "c": np.int32(7)}
    prints = {fingerprint(tree)}
    for change in (
        lambda t: t["a"].view(np.uint32).__setitem__((1, 2), t["a"].view(np.uint32)[1, 2] ^ 1 << 31),
        lambda t: t["a"].__setitem__((slice(None), [0, 1]), t["a"][:, [1, 0]]),
        lambda t: t["b"].__setitem__(1, False),
        lambda t: t.update(c=np.int32(8)),
        lambda t: t.update(a=t["a"][::-1]),
    ):
        other = jax.tree.map(np.copy, tree)
        change(other)
        prints.add(fingerprint(other))
    assert len(prints) == 6
    bfloat = jnp.arange(5, dtype=jnp.bfloat16)
    assert fingerprint([bfloat]) != fingerprint([bfloat[::-1]])


def test_weights_from_before_there_were_fingerprints_are_read(tmp_path):
    saved(tmp_path, {2: 0.3})
    shutil.rmtree(tmp_path / "checkpoints/2/run")
    assert opened(tmp_path, read_only=True).weights("best", state(0).ema)[0] == 2
    with pytest.raises(RequestError, match="run: not there"):
        opened(tmp_path).newest(state(0))


def test_what_a_killed_run_leaves_is_swept_and_never_read(tmp_path):
    saved(tmp_path, {2: 0.3})
    for name in ("5.orbax-checkpoint-tmp-0", "removed-1"):
        shutil.copytree(tmp_path / "checkpoints/2", tmp_path / "checkpoints" / name)
    assert opened(tmp_path, read_only=True).latest_step() == 2
    assert left(tmp_path) == ["2", "5.orbax-checkpoint-tmp-0", "removed-1"]
    opened(tmp_path)
    assert left(tmp_path) == ["2"]


def test_a_removal_that_is_broken_off_leaves_nothing_that_looks_like_a_checkpoint(tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    saved(tmp_path, {2: 0.3, 4: 0.5})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_folder.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            saved(tmp_path, {6: 0.1}, keep=1)
    assert left(tmp_path) == ["2", "6", "removed-4"] or left(tmp_path) == ["6", "removed-2", "removed-4"]


def test_a_reader_that_comes_too_late_for_a_checkpoint_takes_the_next(tmp_path, monkeypatch, capfd):
    """A run that goes on removes and adds checkpoints while somebody loads its bundle."""
    saved(tmp_path, {2: 0.3})
    reader = opened(tmp_path, read_only=True)
    whole = reader.restore_ema

    def late(step, like):
        if step == 2:
            saved(tmp_path, {4: 0.1, 6: 0.2}, keep=1)
        return whole(step, like)

    monkeypatch.setattr(reader, "restore_ema", late)
    assert reader.weights("best", state(0).ema)[0] == 4
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "whatever the language of the machine says"),
        ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device [source locations]"),
    ],
    ids=["system", "tensorstore"],
)
def test_a_full_disk_is_told_from_the_background(tmp_path, monkeypatch, caplog, capfd, error):
    saved(tmp_path, {2: 0.3})

    def fail(*_):
        raise error

    monkeypatch.setattr(ocp.CompositeCheckpointHandler, "finalize", fail)
    with (
        pytest.raises(RunError) as told,
        full_disk_told("WORKDIR", lambda: "Step 2 is safe"),
        opened(tmp_path) as checkpoints,
    ):
        checkpoints.save(state(4))
        checkpoints.wait()
    assert str(told.value) == (
        "WORKDIR: no space is left on the disk.\nStep 2 is safe; make room and give the same command again."
    )
    assert capfd.readouterr().err == "" and caplog.records == [] and opened(tmp_path).latest_step() == 2
    assert left(tmp_path) == ["2"]


def test_other_errors_are_not_called_a_full_disk():
    with pytest.raises(OSError, match="Input/output"), full_disk_told("W", lambda: ""):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

"""Checkpoints that the disk gives back as something else: noticed, told, and passed over for the next."""

import dataclasses
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from small_checkpoints import left, opened, saved, state
from tiny_run import EVERY, STEPS

from perturbdiff_jax import load
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.stored_arrays import Damaged


# What a disk, a copy that broke off, or a hasty hand does to a checkpoint.
def largest(folder):
    return max(folder.rglob("d/*"), key=lambda file: file.stat().st_size)


def truncate(folder):
    file = largest(folder / "ema")
    os.truncate(file, file.stat().st_size // 2)


def garbage(folder):
    file = largest(folder / "ema")
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 8] = b"garbage!"
    file.write_bytes(content)


def lost_data(folder):
    for part in (folder / "ema").rglob("d/*"):
        part.unlink()


def half_removed(folder):
    shutil.rmtree(folder / "ema")
    shutil.rmtree(folder / "metrics")


def metadata_gone(folder):
    for name in ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"):
        for file in folder.rglob(name):
            file.unlink()


def facts_cut(folder):
    file = folder / "run" / "metadata"
    file.write_text(file.read_text()[:20])


def scores_cut(folder):
    (folder / "metrics" / "metrics").write_text('{"validation')
    truncate(folder)


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


HARMS = (truncate, garbage, lost_data, half_removed, metadata_gone, facts_cut, scores_cut, emptied)


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, capfd, harm):
    assert saved(tmp_path, {2: 0.3, 4: 0.5, 6: 0.1}, keep=3) == ["2", "4", "6"]
    harm(tmp_path / "checkpoints" / "6")
    with opened(tmp_path, read_only=True) as reader:
        step, found = reader.weights("best", state(0).ema)
    assert step == 2
    np.testing.assert_array_equal(found["w"], state(2).ema["w"])
    said = capfd.readouterr().err
    with opened(tmp_path, keep=3) as checkpoints:
        found, _ = checkpoints.newest(state(0))
        assert checkpoints.latest_step() == int(found.step) == 4
        warning = capfd.readouterr().err
        for text, to in ((said, 2), (warning, 4)):
            assert text.count("\n") == 1
            assert (
                text.startswith(f"warning: {tmp_path}/checkpoints/6: damaged (")
                and f"going back to step {to}." in text
            )
        jax.tree.map(np.testing.assert_array_equal, found, state(4))
        # The step comes round again: nothing is in its way, and it is whole.
        checkpoints.save(state(6), {"validation/energy": 0.1})
    assert left(tmp_path) == ["2", "4", "6", "6.damaged"]
    with opened(tmp_path) as again:
        assert again.best_step() == 6 and int(again.newest(state(0))[0].step) == 6
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("harm", [truncate, garbage], ids=lambda harm: harm.__name__)
def test_moments_are_looked_at_as_well(tmp_path, harm):
    saved(tmp_path, {2: 0.3, 4: 0.5})
    folder = tmp_path / "checkpoints" / "4"
    (folder / "ema").rename(folder / "aside")
    (folder / "train").rename(folder / "ema")
    harm(folder)
    (folder / "ema").rename(folder / "train")
    (folder / "aside").rename(folder / "ema")
    assert int(opened(tmp_path).newest(state(0))[0].step) == 2


def test_a_run_with_nothing_but_damaged_checkpoints_is_refused_and_stays_refused(tmp_path):
    saved(tmp_path, {2: 0.3, 4: 0.5})
    for step in ("2", "4"):
        truncate(tmp_path / "checkpoints" / step)
    for _ in range(2):  # a second try must not begin from nothing
        with pytest.raises(RequestError, match="no checkpoint can be read; that of step 4: ema: ") as refusal:
            opened(tmp_path).newest(state(0))
        assert len(str(refusal.value).splitlines()) == 2
    assert left(tmp_path) == ["2", "4"]
    with pytest.raises(RequestError, match="the bundle is damaged, checkpoint 2 cannot be read"):
        opened(tmp_path, read_only=True).weights("best", state(0).ema)


def test_other_shapes_are_named(tmp_path):
    saved(tmp_path, {2: 0.3})
    other = dataclasses.replace(state(0), ema={"w": jnp.zeros((64, 33))})
    with pytest.raises(Damaged, match=r"w has shape \(64, 32\), the settings ask for \(64, 33\)"):
        opened(tmp_path).restore(2, other)


def test_running_out_of_memory_is_not_damage(tmp_path, monkeypatch):
    saved(tmp_path, {2: 0.3, 4: 0.1})

    def full(*_, **__):
        raise Exception("while reading") from MemoryError()

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", full)
    with pytest.raises(Exception, match="while reading"):
        opened(tmp_path).newest(state(0))
    assert left(tmp_path) == ["2", "4"]


@pytest.mark.parametrize("which", ["best", "latest"])
def test_loading_falls_back_as_well(finished, tmp_path, capfd, which):
    bundle = shutil.copytree(finished.workdir / "bundle", tmp_path / "bundle")
    for step, score in ((EVERY, 2.0), (STEPS, 1.0)):  # the last is the best and the latest
        file = bundle / "checkpoints" / str(step) / "metrics" / "metrics"
        file.write_text(json.dumps({"validation/energy": score}))
    assert load(bundle, which=which).step == STEPS
    lost_data(bundle / "checkpoints" / str(STEPS))
    capfd.readouterr()
    model = load(bundle, which=which)
    said = capfd.readouterr().err
    assert model.step == EVERY and said.count("\n") == 1
    assert f"/{STEPS}: damaged (ema: " in said and f"); going back to step {EVERY}." in said

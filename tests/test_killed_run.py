"""A run that is killed, stopped and starved of disk, in real processes, ends as the one that nothing happened to."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from killed_runs import CANNOT
from test_resume import state_of
from tiny_run import ROOT, STEPS, read_log

MOMENTS = {
    "in_the_middle_of_a_step": -9,
    "while_arrays_are_written": -9,
    "sigterm_twice_while_training": 0,
    "full_disk": 1,
    "while_an_old_checkpoint_is_removed": -9,
    "sigterm_while_predicting": 0,
}


@pytest.fixture(scope="module")
def tormented(finished, tmp_path_factory):
    """(work directory, what was said at each moment, exit codes): one run through all of MOMENTS, in their order."""
    workdir = tmp_path_factory.mktemp("killed") / "run"
    workdir.mkdir()
    shutil.copytree(finished.workdir / "store", workdir / "store")
    shutil.copy(finished.workdir / "config.json", workdir)
    environ = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, ROOT / "tests/killed_runs.py", workdir, *MOMENTS]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = {moment: workdir.with_name(f"run.{moment}.txt").read_text() for moment in MOMENTS}
    return workdir, said, json.loads(done.stdout)


def test_every_process_ended_as_it_was_made_to(tormented):
    _, said, codes = tormented
    wanted = {moment: codes[moment] if codes[moment] == CANNOT else code for moment, code in MOMENTS.items()}
    assert codes == wanted, said


def test_no_more_is_lost_than_the_steps_since_the_last_save(tormented):
    _, said, codes = tormented
    # The save of step 2 was under way when its run was killed: it is there as a whole or not at all.
    first = said["while_arrays_are_written"]
    assert f"Resuming at step 2 of {STEPS}." in first or "Resuming" not in first
    for step, moment in (
        (3, "sigterm_twice_while_training"),
        (4, "full_disk"),
        (4, "while_an_old_checkpoint_is_removed"),
        (6, "sigterm_while_predicting"),
    ):
        if codes[moment] != CANNOT:
            assert f"Resuming at step {step} of {STEPS}." in said[moment]


def test_a_full_disk_is_said_in_two_lines_with_what_is_safe(tormented):
    workdir, said, codes = tormented
    if codes["full_disk"] == CANNOT:
        pytest.skip("mounting a small disk needs rights that this user has not")
    lines = said["full_disk"].splitlines()
    errors = [line for line in lines if not line.startswith(("step ", "Resuming", "  "))]
    assert errors[0] == f"error: {workdir}: no space is left on the disk."
    assert errors[1].startswith("The last good checkpoint is that of step ") and len(errors) == 2


def test_sigterm_saves_says_how_to_go_on_and_predicts_nothing(tormented):
    _, said, _ = tormented
    text = said["sigterm_twice_while_training"]
    assert text.splitlines()[-1] == (
        "Stopped by SIGTERM at step 4; saved. Give the same command again to go on."
    )
    assert "Traceback" not in text and "Predicting" not in text


def test_sigterm_after_training_leaves_what_is_done(tormented):
    workdir, said, _ = tormented
    assert said["sigterm_while_predicting"].splitlines()[-1] == (
        "Stopped by SIGTERM; what is done stays. Give the same command again to go on."
    )
    seconds = json.loads((workdir / "run.json").read_text())["seconds"]
    assert {"train", "predict"} <= set(seconds) and not (workdir / "predictions.h5ad").exists()


def test_the_end_is_that_of_the_unbroken_run(finished, tormented):
    workdir = tormented[0]
    (ours, best), (unbroken, best_unbroken) = state_of(workdir, STEPS), state_of(finished.workdir, STEPS)
    assert best == best_unbroken
    jax.tree.map(np.testing.assert_array_equal, ours, unbroken)
    assert read_log(workdir) == finished.log()
    left = [path.name for path in (workdir / "bundle/checkpoints").iterdir() if not path.name.isdecimal()]
    assert left == []

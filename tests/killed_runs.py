"""Runs the tiny job again and again in one work directory, ending it in the middle each time; for test_killed_run.py.

    python killed_runs.py WORKDIR MOMENT...

Every moment is a process of its own, forked from one that has imported everything and computed nothing. It runs the
command line until it is hit, saving at every second step, and what it says goes to WORKDIR.MOMENT.txt. Printed are the
exit codes, negative for signals, as JSON.
"""

import ctypes
import json
import os
import pathlib
import shutil
import signal
import sys
import threading

import orbax.checkpoint as ocp
from tiny_run import QUICKSTART, flags

from perturbdiff_jax import checkpoint, checkpoint_folder, holdout, main, train

CANNOT = 77  # a moment that this machine has no means for
SAVE_EVERY = {"sigterm_twice_while_training": 0}  # what is saved there is saved for the signal


def kill(number=signal.SIGKILL):
    os.kill(os.getpid(), number)


def before(owner, name, strike):
    """Makes `owner.name` call `strike` with its arguments first."""
    whole = getattr(owner, name)

    def struck(*arguments, **keywords):
        strike(*arguments)
        return whole(*arguments, **keywords)

    setattr(owner, name, struck)


def at_step(step, *signals):
    """Sends the signals when the batch of `step` (from 0) is handed over."""
    whole = train.placed

    def placed(*arguments):
        for number, batch in whole(*arguments):
            if number == step:
                for one in signals:
                    kill(one)
            yield number, batch

    train.placed = placed


def in_the_middle_of_a_step():
    at_step(2, signal.SIGKILL)


def while_arrays_are_written():
    """All arrays of step 4 are there, but its folder has not got its name yet."""
    before(ocp.CompositeCheckpointHandler, "finalize", lambda _, folder: "/4." in str(folder) and kill())


def while_an_old_checkpoint_is_removed():
    def strike(folder, **_):
        if folder.name.startswith(checkpoint_folder.REMOVED):
            remove(folder / "train")
            kill()

    remove = shutil.rmtree
    before(checkpoint_folder.shutil, "rmtree", strike)


def sigterm_twice_while_training():
    at_step(3, signal.SIGTERM)
    before(checkpoint.Checkpoints, "save", lambda *_: kill(signal.SIGTERM))


def sigterm_while_predicting():
    before(holdout, "predict_test", lambda *_: kill(signal.SIGTERM))


def full_disk():
    """The bundle lies on a disk of its own that has room for little more than what is there."""
    libc = ctypes.CDLL(None, use_errno=True)
    bundle = pathlib.Path(workdir) / "bundle"
    content = bundle.with_name("content")
    shutil.copytree(bundle, content)
    room = sum(file.stat().st_size // 4096 + 1 for file in content.rglob("*")) * 4096 + 64 * 1024
    private, new_names = 1 << 18 | 1 << 14, 0x00020000
    if libc.unshare(new_names) or libc.mount(b"none", b"/", None, private, None):
        os._exit(CANNOT)
    if libc.mount(b"tmpfs", str(bundle).encode(), b"tmpfs", 0, f"size={room}".encode()):
        os._exit(CANNOT)
    shutil.copytree(content, bundle, dirs_exist_ok=True)
    shutil.rmtree(content)


def run(moment):
    """The exit code of a process that goes on with the run until `moment` ends it."""
    assert threading.active_count() == 1
    child = os.fork()
    if child == 0:
        said = os.open(f"{workdir}.{moment}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        globals()[moment]()
        code = main.run(
            [
                f"--config={QUICKSTART}",
                f"--workdir={workdir}",
                *flags(train__save_every=SAVE_EVERY.get(moment, 2)),
            ]
        )
        sys.stdout.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    workdir = sys.argv[1]
    print(json.dumps({moment: run(moment) for moment in sys.argv[2:]}))

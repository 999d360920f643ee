"""Runs `perturbdiff predict` again and again on one output, killing it in the middle; for test_killed_prediction.py.

    python killed_predictions.py RUN OUTPUT MOMENT...

RUN is the work directory of the tiny job. Every moment is a process of its own, forked from one that has imported
everything and computed nothing; what it says goes to OUTPUT.MOMENT.txt. Printed are, as JSON, the exit codes and the
files that each has left.
"""

import json
import os
import pathlib
import sys
import threading

import numpy as np
from killed_runs import before, kill

from perturbdiff_jax import cli, settings
from perturbdiff_jax.prediction import h5ad_file, job, parts, predictor

ASKED = [
    "--perturbations",
    "P02,P05",
    "--cells-per-condition",
    "120",
    "--cell-type-key",
    "cell_type",
    "--batch-key",
    "batch",
]


def at_call(count):
    """A strike that kills at the `count`-th call."""
    calls = []

    def strike(*_, **__):
        calls.append(1)
        if len(calls) == count:
            kill()

    return strike


def before_anything_is_walked():
    before(job.PredictionJob, "_walked", lambda *_: kill())


def in_the_middle_of_a_part():
    """Half of the third part is in its file."""
    whole, strike = np.savez, at_call(3)

    def savez(file, **arrays):
        file.write(b"half")
        file.flush()
        strike()
        file.seek(0)
        whole(file, **arrays)

    parts.np.savez = savez


def before_a_part_gets_its_name():
    before(parts.os, "replace", at_call(3))


def between_two_parts():
    before(parts.PartFolder, "write", at_call(4))


def while_the_parts_are_joined():
    before(h5ad_file, "_write_obs", lambda *_: kill())


def before_the_file_gets_its_name():
    before(h5ad_file.os, "replace", lambda source, _: str(source).endswith("h5ad.partial") and kill())


def while_the_parts_are_removed():
    def strike(folder):
        folder.file(1).unlink()
        kill()

    before(parts.PartFolder, "remove", strike)


def not_at_all():
    pass


def run(moment):
    """The exit code of a process that goes on with the prediction until `moment` ends it, and what is there then."""
    assert threading.active_count() == 1
    child = os.fork()
    if child == 0:
        said = os.open(f"{output}.{moment}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        # A kill loses what is not written out; a file is not by the line, unless that is asked for.
        sys.stdout.reconfigure(line_buffering=True)
        globals()[moment]()
        code = cli.run(
            [
                *f"predict --checkpoint {workdir} --input {workdir}/simulated.h5ad".split(),
                *ASKED,
                "--output",
                str(output),
            ]
        )
        sys.stdout.flush()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    files = output.parent.rglob(f"{output.name}*")
    files = [*files, *pathlib.Path(f"{output}.parts").glob("*")]
    return code, sorted({str(file.relative_to(output.parent)) for file in files if file.suffix != ".txt"})


if __name__ == "__main__":
    workdir, output = sys.argv[1], pathlib.Path(sys.argv[2])
    assert predictor and settings  # imported before the first process is forked
    print(json.dumps({moment: run(moment) for moment in sys.argv[3:]}))

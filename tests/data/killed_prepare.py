"""Prepares a store again and again, is killed on the way every time, and says what came out.

    python killed_prepare.py INPUT.h5ad FOLDER WORKERS TIMES STEPS

TIMES kills at random moments spread over the time that an unbroken run takes, then STEPS kills between two steps that
change files, spread over all of them. A program of its own, because it forks: modules are read once, before any thread
has begun. Prints a line of JSON: the hash of the unbroken store, and for every kill the hash after the second run, what
the killed run had left, and what the second one left.
"""

import json
import os
import pathlib
import signal
import sys
import time
import types

import numpy as np

from perturbdiff_jax.data import prepare as story
from perturbdiff_jax.data.preparation import parts as prepare_parts
from perturbdiff_jax.data.preparation import scan as prepare_scan
from perturbdiff_jax.data.preparation import tasks as prepare_tasks
from perturbdiff_jax.data.storage import shards as store_shards
from perturbdiff_jax.data.storage import writer as store_writer
from perturbdiff_jax.data.storage.writer import store_hash

OPTIONS = {
    "perturbation_key": "pert",
    "control": "control",
    "cell_type_key": "kind",
    "batch_key": "donor",
    "hvg": 40,
}


class Steps:
    """Counts calls that change files; at the last one allowed the process kills itself."""

    def __init__(self, most: int | None = None):
        self.count, self.most = 0, most
        os.replace = self.counted(os.replace)
        os.unlink = self.counted(os.unlink)
        prepare_tasks.write_ranges = self.counted(prepare_tasks.write_ranges)
        store_writer.write_whole = self.counted(store_writer.write_whole)
        # A part's file is open and empty when its first line is made.
        prepare_parts.json = types.SimpleNamespace(dumps=self.counted(json.dumps), loads=json.loads)

    def counted(self, function):
        def step(*args, **kwargs):
            self.count += 1
            if self.count == self.most:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return step


def forked(work) -> int:
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def main(source: str, folder: str, workers: int, times: int, steps: int) -> None:
    # Small enough that a few thousand cells make many stretches and shards.
    prepare_scan.TASK, prepare_tasks.BLOCK = 80_000, 30_000
    store_shards.SHARD, store_shards.CHUNK = 128_000, 4_000
    story.PARALLEL = story.WORKER_BYTES = 1
    options = story.PrepareOptions(**OPTIONS, memory=4 * 1024**2, workers=workers)

    def make(output: pathlib.Path, most: int | None = None) -> int:
        counter = Steps(most)
        story.prepare([source], output, options, echo=lambda line: None)
        return counter.count

    def finish(output: pathlib.Path) -> dict:
        """The second run, if the first has not got through."""
        left = sorted({path.name.split("-")[0] for path in output.parent.glob(f".{output.name}.partial/*")})
        finished = output.exists()
        if not finished and os.waitpid(forked(lambda: make(output)), 0)[1]:
            raise SystemExit(f"the run after {output.name} failed")
        rest = [path.name for path in output.parent.glob(f".{output.name}*")]
        found = store_hash(json.loads((output / "manifest.json").read_text()))
        return {"hash": found, "left": left, "finished": finished, "rest": rest}

    whole = pathlib.Path(folder, "whole")
    began = time.monotonic()
    if os.waitpid(forked(lambda: pathlib.Path(folder, "steps").write_text(str(make(whole)))), 0)[1]:
        raise SystemExit("the unbroken run failed")
    wall, every = time.monotonic() - began, int(pathlib.Path(folder, "steps").read_text())
    rng = np.random.default_rng(7)
    timed, stepped = [], []
    for kill in range(times):
        output = pathlib.Path(folder, f"timed{kill}")
        child = forked(lambda: make(output))  # noqa: B023
        time.sleep(wall * (kill + rng.random()) / times)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        timed.append(finish(output))
    for kill in range(steps):
        output = pathlib.Path(folder, f"stepped{kill}")
        most = 1 + int(every * (kill + rng.random()) / steps)
        os.waitpid(forked(lambda: make(output, most)), 0)  # noqa: B023
        stepped.append(finish(output))
    print(json.dumps({"hash": finish(whole)["hash"], "timed": timed, "stepped": stepped}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))

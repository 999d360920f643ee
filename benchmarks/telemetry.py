"""What does telemetry cost? The training step with and without everything that a run says about itself.

    python benchmarks/telemetry.py [--workdir=runs/telemetry] [--pairs=12] [--rows TEXT]

Runs stretches of the same compiled step on the same batch, by turns with and without telemetry (meter, a trace that is
not asked for, JSONL and TensorBoard log, progress line; the metrics are fetched in both), prints one table and writes
telemetry.json. "In telemetry" is the time that passed inside its calls as a share of the stretch: the figure that
counts. "Longer" is how much longer a stretch with telemetry took than its neighbour without, the median of all pairs
with the quartiles: on a machine that does other things as well these show its noise.
"""

import argparse
import contextlib
import io
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from perturbdiff_jax import sharding
from perturbdiff_jax.array_types import Batch
from perturbdiff_jax.diffusion.objective import ObjectiveOptions
from perturbdiff_jax.diffusion.schedule import Schedule
from perturbdiff_jax.models.mmdit import Denoiser, ModelOptions
from perturbdiff_jax.optim import EmaOptions, OptimOptions, optimizer
from perturbdiff_jax.run_record import write_json
from perturbdiff_jax.step import StepParts, compile_step, initial_state
from perturbdiff_jax.telemetry.environment import cores, versions
from perturbdiff_jax.telemetry.flops import step_flops
from perturbdiff_jax.telemetry.meter import Meter
from perturbdiff_jax.telemetry.peaks import peak_flops
from perturbdiff_jax.telemetry.progress import Progress
from perturbdiff_jax.telemetry.run_log import RunLog
from perturbdiff_jax.telemetry.trace import Trace

SMALL = {
    "model": ModelOptions(width=128, depth=4, heads=4, anchor="control"),
    "genes": 500,
    "sets": 8,
    "cells": 32,
}
FULL = {"model": ModelOptions(), "genes": 2000, "sets": 2, "cells": 256}
# Row -> (sizes, steps of a stretch, a report every so many steps).
ROWS = {
    "quickstart, report every 100 steps": (SMALL, 100, 100),
    "quickstart, report every step": (SMALL, 50, 1),
    "full size, report every 5 steps": (FULL, 5, 5),
}


class Telemetry:
    """All of a run's telemetry, with a stopwatch on its calls."""

    def __init__(self, folder: Path, parts: StepParts, sizes: dict, steps: int):
        sets, cells = sizes["sets"], sizes["cells"]
        flops = step_flops(parts.model, parts.objective, sets=sets, cells=cells)
        peak, self.peak = peak_flops(jax.devices(), parts.model.options.dtype)
        self.meter = Meter(cells_per_step=sets * cells, flops_per_step=flops, peak_flops=peak)
        self.log = RunLog(folder)
        self.trace = Trace(None, folder / "profile")
        self.progress = Progress(steps, "step")
        self.inside = 0.0

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.inside += time.perf_counter() - began

    def next(self, batches: Iterator[Batch], step: int, state) -> Batch:
        """The next batch, as the training loop asks for it."""
        with self._timed():
            with self.meter.waiting():
                batch = next(batches)
            self.trace.at(step, state.step)
        return batch

    def report(self, step: int, means: dict[str, float], steps: int) -> None:
        """What the training loop does with the means of a window."""
        with self._timed():
            means = means | self.meter.take(steps)
            self.log.write(step, "train", means)
            self.progress.show(
                step, f"loss {means['loss/total']:.4f}  {means['speed/cells_per_second']:,.0f} cells/s"
            )


class Silence:
    """The same without any."""

    def next(self, batches: Iterator[Batch], step: int, state) -> Batch:
        """The next batch."""
        return next(batches)

    def report(self, step: int, means: dict[str, float], steps: int) -> None:
        """Nothing."""


def parts_of(sizes: dict) -> StepParts:
    """The step of a run of this size, with the default recipe."""
    model = Denoiser(sizes["model"], sizes["genes"], 24, 3, 4)
    tx = optimizer(OptimOptions(), 1_000_000)
    objective = ObjectiveOptions()
    return StepParts(model=model, tx=tx, schedule=Schedule(), objective=objective, ema=EmaOptions(), seed=0)


def batch_of(sizes: dict) -> Batch:
    """One batch of invented cells."""
    rng = np.random.default_rng(0)
    shape = (sizes["sets"], sizes["cells"], sizes["genes"])
    cells = [rng.gamma(0.5, 0.2, shape).astype(np.float32) for _ in range(2)]
    codes = [rng.integers(0, count, sizes["sets"]).astype(np.int32) for count in (24, 3, 4)]
    return Batch(*cells, *codes, mask=np.ones(shape[:2], np.float32))


def stretch(step_of, state, batch, telemetry, *, steps: int, every: int):
    """Runs the loop; (state, seconds)."""
    batches, pending = itertools.repeat(batch), []
    jax.block_until_ready(state)
    began = time.perf_counter()
    for k in range(steps):
        state, metrics = step_of(state, telemetry.next(batches, k, state))
        pending.append(metrics)
        if (k + 1) % every == 0:
            fetched = jax.device_get(pending)
            means = {name: float(np.mean([row[name] for row in fetched])) for name in fetched[0]}
            telemetry.report(k + 1, means, len(pending))
            pending.clear()
    return state, time.perf_counter() - began


def measured(sizes: dict, steps: int, every: int, pairs: int, folder: Path) -> dict:
    """The figures of one row."""
    parts, mesh = parts_of(sizes), sharding.make_mesh(devices=jax.devices()[:1])
    step_of = compile_step(parts, mesh)
    batch = jax.device_put(batch_of(sizes), sharding.batch_sharding(mesh))
    state, silence = initial_state(parts, mesh), Silence()
    telemetry = Telemetry(folder, parts, sizes, steps)
    state, _ = stretch(step_of, state, batch, silence, steps=2, every=1)  # compiles
    with_, without, inside = [], [], []
    for pair in range(pairs):
        order = (telemetry, silence) if pair % 2 else (silence, telemetry)
        for one in order:
            telemetry.inside = 0.0
            with contextlib.redirect_stdout(io.StringIO()):
                state, seconds = stretch(step_of, state, batch, one, steps=steps, every=every)
            (without if one is silence else with_).append(seconds)
            if one is telemetry:
                inside.append(telemetry.inside)
    telemetry.log.close()
    longer = [100 * (a / b - 1) for a, b in zip(with_, without)]
    low, middle, high = statistics.quantiles(longer, n=4)
    return {
        "ms_a_step": 1e3 * statistics.median(without) / steps,
        "telemetry_us_a_step": 1e6 * statistics.median(inside) / steps,
        "in_telemetry_percent": 100 * sum(inside) / sum(with_),
        "longer_percent": middle,
        "longer_quartiles": [low, high],
        "mfu": telemetry.meter.totals()["mfu"],
        "peak": telemetry.peak,
    }


def lines(rows: dict[str, dict]) -> list[str]:
    """The table."""
    out = [
        "| step | ms a step | telemetry, us a step | in telemetry | longer, median [quartiles] |",
        "|---" * 5 + "|",
    ]
    for row, got in rows.items():
        low, high = got["longer_quartiles"]
        shown = [
            f"{got['ms_a_step']:,.0f}",
            f"{got['telemetry_us_a_step']:,.0f}",
            f"{got['in_telemetry_percent']:.3f} %",
            f"{got['longer_percent']:+.1f} % [{low:+.1f}, {high:+.1f}]",
        ]
        out.append(f"| {row} | " + " | ".join(shown) + " |")
    return out


def main() -> None:
    """Runs every row and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/telemetry"))
    parser.add_argument("--pairs", type=int, default=12, help="stretches with and without telemetry, each")
    parser.add_argument("--rows", default="", help="only rows whose name contains this")
    args = parser.parse_args()
    rows = {}
    for row, (sizes, steps, every) in ROWS.items():
        if args.rows in row:
            with tempfile.TemporaryDirectory() as folder:
                rows[row] = measured(sizes, steps, every, args.pairs, Path(folder))
            print(f"{row}: {rows[row]['in_telemetry_percent']:.3f} %", flush=True)
    facts = {"versions": versions(), "cores": cores(), "load": os.getloadavg()[0], "pairs": args.pairs}
    args.workdir.mkdir(parents=True, exist_ok=True)
    write_json(args.workdir / "telemetry.json", {"rows": rows, **facts})
    print("", *lines(rows), sep="\n")


if __name__ == "__main__":
    main()

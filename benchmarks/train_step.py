"""How long is a training step at full size, next to the released code's, and what is it spent on?

    python benchmarks/train_step.py [--reference CHECKOUT --reference-python PYTHON] [--large]

CHECKOUT is a clone of the released code, PYTHON an interpreter with PyTorch and its requirements; without them ours
is timed alone. Every side is a process that lives through the whole run and works when it is asked to: the sides take
turns, a step each, so that what else the machine does is shared. Ratios are those of the medians; their spread is
that of the ratios round by round. Both sides are told to use all the CPUs that this process may use.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from perturbdiff_jax.run_record import write_json

SHAPES = {"2 x 256": {"sets": 2, "cells": 256}, "8 x 256": {"sets": 8, "cells": 256}}
GENES = 2000
WARM = 2  # steps before the clock counts
EVERY = 10  # steps between updates of the released average, as in the commands of its README
SETTLE = 0.3  # seconds for the threads of the side before to fall asleep


class Side:
    """A process that waits for orders."""

    def __init__(self, command: list[str]):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = self._answer()
        self.taken: dict[str, list[dict]] = {}

    def order(self, what: str, **more) -> dict:
        """Sends one order and waits for its answer."""
        time.sleep(SETTLE)
        print(json.dumps({"what": what, **more}), file=self.process.stdin, flush=True)
        return self._answer()

    def step(self, row: str, **order) -> None:
        """One step, kept under the name of a row."""
        self.taken.setdefault(row, []).append(self.order("step", **order))

    def end(self) -> None:
        """Closes its input and waits."""
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict:
        while (line := self.process.stdout.readline()) and not line.startswith("{"):
            pass  # what the released code prints
        if not line:
            raise SystemExit("a side ended; its message is above")
        return json.loads(line)


def measure(args: argparse.Namespace, shape: dict) -> dict:
    """All rows of one shape: what was taken, by side and row."""
    here = Path(__file__).parent
    job = {**shape, "genes": GENES, "threads": len(os.sched_getaffinity(0))}
    sides = {
        dtype: Side(
            [
                sys.executable,
                str(here / "train_step_worker.py"),
                json.dumps(job | {"model": {"dtype": dtype, "scan": args.scan}}),
            ]
        )
        for dtype in args.dtypes
    }
    if args.reference:
        job["reference"] = args.reference
        worker = here / "train_step_released.py"
        sides["released"] = Side([args.reference_python, str(worker), json.dumps(job)])
    ceilings: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.rounds + WARM):
        for name, side in sides.items():
            for fed_back in (False, True):
                side.step(rowname(fed_back), fed_back=fed_back, twice=True)
            if name == "released":
                side.step("logged once", fed_back=False, twice=False)
            ceilings[name].append(side.order("matrix")["flops"])
    found = {
        name: {"facts": side.facts, "steps": side.taken, "ceilings": ceilings[name]}
        for name, side in sides.items()
    }
    found[args.dtypes[0]]["parts"] = sides[args.dtypes[0]].order("parts", fed_back=False, steps=3)["parts"]
    for side in sides.values():
        side.end()
    return found


def rowname(fed_back: bool) -> str:
    """Name of a row."""
    return "with self-conditioning" if fed_back else "without"


def summary(taken: list[dict]) -> dict:
    """Median, quickest, quartiles of the wall seconds, median CPU seconds, peak memory."""
    wall = [one["wall"] for one in taken[WARM:]]
    low, middle, high = statistics.quantiles(wall, n=4)
    return {
        "median": middle,
        "quickest": min(wall),
        "quartiles": [low, high],
        "cpu": statistics.median(one["cpu"] for one in taken[WARM:]),
        "memory": max(one["memory"] for one in taken),
    }


def ratio(theirs: list[dict], ours: list[dict], what: str) -> dict:
    """Theirs over ours: of the medians, and the quartiles of the ratios round by round."""
    pairs = [(a[what], b[what]) for a, b in zip(theirs[WARM:], ours[WARM:])]
    each = statistics.quantiles([a / b for a, b in pairs], n=4)
    medians = [statistics.median(values) for values in zip(*pairs)]
    return {"of_medians": medians[0] / medians[1], "quartiles": [each[0], each[2]]}


def table(shape: str, found: dict) -> list[dict]:
    """Prints the rows of one shape and returns them."""
    ceiling = max(max(side["ceilings"]) for side in found.values())
    rows = []
    print(
        f"\n{shape} cells, {GENES:,} genes; float32 products of this machine: {ceiling / 1e9:.0f} GFLOP/s\n"
    )
    print(
        "| step | side | median, s | quickest, s | CPU, s | released / it | quartiles | of the ceiling | memory, GiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in ("without", "with self-conditioning", "logged once"):
        for side, content in found.items():
            if name not in content["steps"]:
                continue
            taken = content["steps"][name]
            row = {"shape": shape, "step": name, "side": side, **summary(taken)}
            if "released" in found and side != "released":
                theirs = found["released"]["steps"][name]
                row["ratio"], row["ratio_cpu"] = ratio(theirs, taken, "wall"), ratio(theirs, taken, "cpu")
            if side == "float32":
                needed = content["facts"]["flops"][name != "without"]
                row["flops"], row["of_ceiling"] = needed, needed / row["quickest"] / ceiling
            rows.append(row)
            faster = spread = share = ""
            if "ratio" in row:
                faster = f"{row['ratio']['of_medians']:.2f}"
                spread = "-".join(f"{value:.2f}" for value in row["ratio"]["quartiles"])
            if "of_ceiling" in row:
                share = f"{row['of_ceiling']:.0%}"
            figures = " | ".join(f"{row[what]:.2f}" for what in ("median", "quickest", "cpu"))
            memory = f"{row['memory'] / 2**30:.1f}"
            print(f"| {name} | {side} | {figures} | {faster} | {spread} | {share} | {memory} |")
    return rows


def main() -> None:
    """Times every shape and prints its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference")
    parser.add_argument("--reference-python")
    parser.add_argument("--large", action="store_true", help="8 x 256 cells as well")
    parser.add_argument("--scan", choices=("auto", "yes", "no"), default="auto", help="blocks in a loop")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", default="runs/train_step")
    args = parser.parse_args()
    if bool(args.reference) != bool(args.reference_python):
        parser.error("--reference and --reference-python belong together")
    shapes = list(SHAPES)[: 2 if args.large else 1]
    everything = {shape: measure(args, SHAPES[shape]) for shape in shapes}
    rows = []
    for shape, found in everything.items():
        rows += table(shape, found)
        parts = found[args.dtypes[0]]["parts"]
        total = sum(parts.values())
        print("\n" + "\n".join(f"{share / total:6.1%}  {part}" for part, share in parts.items()))
        if "released" in found:
            updates = [
                one["average"]["wall"] for steps in found["released"]["steps"].values() for one in steps
            ]
            due = sorted(updates)[-len(updates) // EVERY :]
            print(f"\nreleased average, not in its steps: {statistics.median(due):.2f} s every {EVERY} steps")
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "train_step.json", {"rows": rows, "taken": everything})


if __name__ == "__main__":
    main()

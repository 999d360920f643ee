"""How fast, how large and how exact is the energy distance, next to what others have for it?

    python benchmarks/energy_distance.py [--torch-python PYTHON] [--ott-python PYTHON] [--sizes 8x256x2000 ...]

PYTHON is an interpreter with PyTorch and geomloss (with pykeops for its online form), or with ott-jax; without one
its rows are left out. Sides are processes that take turns, a call each, so that what else the machine does is shared.
Prints a table for every size, forward alone and with the derivative with respect to y, and writes
energy_distance.json and energy_distance.png. Memory is the peak of a call beyond what was held before it; errors are
against float64.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from train_step import Side

from perturbdiff_jax.run_record import write_json

ROUNDS = {"8x256x2000": 12, "8x256x12626": 7, "1x2048x2000": 7, "1x20000x2000": 1}
# (row, side, way, largest pairs * genes that it is asked for or None): the others take minutes or tens of GB there.
WAYS = (
    ("ours, gram", "ours", "gram", 2e11),
    ("ours, blockwise", "ours", "blockwise", None),
    ("ours, fused", "ours", "fused", None),
    ("jnp, as first written", "ours", "naive", 1.1e9),
    ("geomloss", "torch", "tensorized", None),
    ("geomloss, online", "torch", "online", 1.1e9),
    ("torch.cdist", "torch", "cdist", 1e10),
    ("ott-jax", "ott-jax", "ott", 1.1e9),
    ("scipy", "scipy", "scipy", 1e10),
)
VALUE_ONLY = ("scipy", "ott")  # one has no derivative, the other takes a minute and 10 GB for it
OPPONENT = "geomloss"
ENOUGH = 8  # seconds of one row; a slow one has fewer rounds than the others


def sides_of(args: argparse.Namespace) -> dict[str, Side]:
    """The processes of this run."""
    here, job = Path(__file__).parent, {"threads": len(os.sched_getaffinity(0))}
    pythons = {"ours": sys.executable, "scipy": sys.executable, "ott-jax": args.ott_python}
    sides = {
        name: Side([python, str(here / "energy_worker.py"), json.dumps(job | {"side": name})])
        for name, python in pythons.items()
        if python
    }
    if args.torch_python:
        sides["torch"] = Side([args.torch_python, str(here / "energy_worker_torch.py"), json.dumps(job)])
    return sides


def measure(size: str, sides: dict[str, Side], rounds: int, accelerated: bool) -> list[dict]:
    """The rows of one size."""
    sets, cells, genes = (int(part) for part in size.split("x"))
    shape = {"sets": sets, "cells": cells, "genes": genes}
    true = exact(shape)
    rows = []
    for backward in (False, True):
        running = []
        for name, side, way, most in WAYS:
            if side not in sides or (way == "fused" and not accelerated) or (backward and way in VALUE_ONLY):
                continue
            if most and sets * cells * cells * genes > most:
                continue
            order = {**shape, "way": way, "backward": backward}
            facts = sides[side].order("prepare", **order)
            row = {"size": size, "backward": backward, "way": name, **shape, **facts, "taken": []}
            rows.append(row)
            if "failed" in facts:
                print(f"{name}, {size}: {facts['failed']}", file=sys.stderr)
                continue
            row |= errors(sides[side], order, true) | sides[side].order("memory", **order)
            running.append((row, sides[side], order))
        for _ in range(rounds):
            for row, side, order in running:
                if sum(one["wall"] for one in row["taken"]) < ENOUGH or row["way"] == OPPONENT:
                    row["taken"].append(side.order("run", **order))
    return [summarised(row) for row in rows]


def exact(shape: dict) -> tuple[np.ndarray, np.ndarray]:
    """(values [B], derivative of their mean with respect to y) in float64."""
    from energy_worker import cells

    x, y = (a.astype(np.float64) for a in cells(shape))
    found = [_exact_of_set(a, b) for a, b in zip(x, y)]
    values, gradients = zip(*found)
    return np.array(values), np.stack(gradients) / len(x)


def _exact_of_set(x: np.ndarray, y: np.ndarray, block: int = 2048) -> tuple[float, np.ndarray]:
    centre, gradient = x.mean(axis=0), np.zeros_like(y)
    x, y = x - centre, y - centre

    def mean(a, b, pull):
        total = 0.0
        a2, b2 = (np.einsum("ig,ig->i", c, c) for c in (a, b))
        for i in range(0, len(a), block):
            for j in range(0, len(b), block):
                rows, columns = slice(i, i + block), slice(j, j + block)
                squared = a2[rows, None] + b2[None, columns] - 2.0 * (a[rows] @ b[columns].T)
                if a is b and i == j:
                    np.fill_diagonal(squared, 0.0)
                distance = np.sqrt(np.maximum(squared, 1e-8))
                total += distance.sum()
                if pull:
                    weight = np.where(distance > 1.0001e-4, 1.0 / distance, 0.0) * (pull / (len(a) * len(b)))
                    gradient[columns] += weight.sum(axis=0)[:, None] * b[columns] - weight.T @ a[rows]
        return total / (len(a) * len(b))

    return mean(x, y, 1.0) - 0.5 * mean(x, x, 0.0) - 0.5 * mean(y, y, -1.0), gradient


def errors(side: Side, order: dict, true: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """Largest error of a value, and of the gradient in parts of its largest number."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "result.npz")
        side.order("result", **order, file=str(file))
        with np.load(file) as found:
            told = {"error": float(np.abs(found["value"] - true[0]).max())}
            if "gradient" in found:
                apart = np.abs(found["gradient"] - true[1]).max()
                told["gradient_error"] = float(apart / np.abs(true[1]).max())
    return told


def summarised(row: dict) -> dict:
    """With median and quickest seconds, memory, and what they mean in FLOP/s and bytes/s."""
    if not row["taken"]:
        return row
    wall = [one["wall"] for one in row["taken"]]
    pairs = row["sets"] * row["cells"] ** 2
    row |= {"median": statistics.median(wall), "quickest": min(wall)}
    # Three Gram matrices and two products of the derivative; x and y read once, the derivative written.
    row["flops"] = (5 if row["backward"] else 3) * 2.0 * pairs * row["genes"] / row["median"]
    row["bytes"] = (
        (3 if row["backward"] else 2) * 4.0 * row["sets"] * row["cells"] * row["genes"] / row["median"]
    )
    return row


def table(rows: list[dict], ceilings: dict[str, float]) -> None:
    """Prints the rows of a size."""
    opponents = {row["backward"]: row for row in rows if row["way"] == OPPONENT and row["taken"]}
    print(f"\n{rows[0]['size'].replace('x', ' x ')}\n")
    print("| way | ms | quickest | geomloss / it | GFLOP/s | GB/s | memory, MiB | error |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        if not row["taken"]:
            continue
        name = row["way"] + (", with derivative" if row["backward"] else "")
        times = ""
        if opponent := opponents.get(row["backward"]):
            row["ratio"] = statistics.median(
                a["wall"] / b["wall"] for a, b in zip(opponent["taken"], row["taken"])
            )
            times = f"{row['ratio']:.2f}"
        error = f"{row['error']:.0e}"
        if "gradient_error" in row:
            error += f", {row['gradient_error']:.0e}"
        figures = [
            f"{row['median'] * 1e3:,.1f} | {row['quickest'] * 1e3:,.1f} | {times}",
            *(f"{row[of] / 1e9:,.1f} ({row[of] / ceilings[of]:.0%})" for of in ("flops", "bytes")),
            f"{row['memory'] / 2**20:,.0f} | {error}",
        ]
        print(f"| {name} | {' | '.join(figures)} |")


def bandwidth() -> float:
    """Bytes/s of the quickest of ten copies of 256 MiB, read and written."""
    import time

    source = np.ones(2**26, np.float32)
    target, taken = np.empty_like(source), []
    for _ in range(10):
        began = time.perf_counter()
        np.copyto(target, source)
        taken.append(time.perf_counter() - began)
    return 2.0 * source.nbytes / min(taken)


def main() -> None:
    """Measures every size, prints its table, writes all rows and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch-python")
    parser.add_argument("--ott-python")
    parser.add_argument("--sizes", nargs="+", choices=list(ROUNDS), default=list(ROUNDS))
    parser.add_argument("--rounds", type=int, help="instead of each size's own")
    parser.add_argument("--output", default="runs/energy_distance")
    args = parser.parse_args()
    import jax

    accelerated = jax.default_backend() != "cpu"
    sides = sides_of(args)
    everything, ceilings = [], {"bytes": bandwidth()}
    for size in args.sizes:
        everything.append(measure(size, sides, args.rounds or ROUNDS[size], accelerated))
        found = [side.order("matrix")["flops"] for side in sides.values()]
        ceilings["flops"] = max(ceilings.get("flops", 0.0), *found)
    for side in sides.values():
        side.end()
    print(
        f"float32 products {ceilings['flops'] / 1e9:.0f} GFLOP/s, copies {ceilings['bytes'] / 1e9:.0f} GB/s"
    )
    for rows in everything:
        table(rows, ceilings)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    rows = [row for rows in everything for row in rows]
    write_json(output / "energy_distance.json", {"ceilings": ceilings, "rows": rows})
    from energy_picture import draw

    draw(rows, output / "energy_distance.png")
    print(f"\nwritten to {output}")


if __name__ == "__main__":
    main()

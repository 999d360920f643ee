"""Does a converted checkpoint predict what the released code predicts, and how much faster?

    python benchmarks/released.py --checkpoint OFFICIAL.ckpt --reference CHECKOUT --reference-python PYTHON

Converts the checkpoint, walks the same noise and control cells with the released code (in its own environment: PYTHON
is an interpreter with PyTorch and its requirements, CHECKOUT a clone of it) and with the bundle, by turns, and prints
one table: seconds, their ratio, and the largest difference of the cells. Compilation is not counted; it is printed.
"Products alone" are the matrix products of the layers by themselves, timed in the same turns: nothing that is done to
what lies between them can make a walk faster than that.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import perturbdiff_jax as pdx
from perturbdiff_jax.convert import convert
from perturbdiff_jax.run_record import write_json

# (sets, cells per set, first timestep, guidance); the released walk has 100 steps, ten show the time of each.
WALKS = ((1, 256, 10, 1.0), (1, 256, 10, 0.0), (4, 64, 10, 1.0))


class Reference:
    """The released code, waiting in a process of its own."""

    def __init__(self, python: str, checkout: str, checkpoint: str, threads: int, folder: Path):
        worker = Path(__file__).with_name("released_worker.py")
        command = [python, str(worker), checkout, checkpoint, str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.folder = folder
        self.facts = json.loads(self._answer())

    def walk(self, arrays: dict, **job) -> tuple[np.ndarray, float]:
        """(cells, seconds) of one walk."""
        given, made = self.folder / "given.npz", self.folder / "made.npy"
        np.savez(given, **arrays)
        line = json.dumps({"input": str(given), "output": str(made), **job})
        print(line, file=self.process.stdin, flush=True)
        seconds = json.loads(self._answer())["seconds"]
        return np.load(made), seconds

    def _answer(self) -> str:
        while (line := self.process.stdout.readline()) and not line.startswith("{"):
            pass  # what the released code prints
        if not line:
            raise SystemExit("the released code ended; its message is above")
        return line


def inputs(model, sets: int, cells: int) -> dict:
    """Sparse control cells, noise, and codes that change from set to set."""
    draw = np.random.default_rng(0)
    shape = (sets, cells, len(model.bundle.genes))
    control = np.where(draw.random(shape) < 0.05, draw.exponential(0.1, shape), 0.0)
    codes = {
        name: np.repeat(np.arange(sets)[:, None] % len(names), cells, axis=1)
        for name, names in (
            ("perturbation", model.bundle.perturbations),
            ("cell_type", model.cell_types),
            ("batch", model.batches),
        )
    }
    return {
        "control": control.astype(np.float32),
        "init_noise": draw.normal(size=shape).astype(np.float32),
        **codes,
    }


class Products:
    """The matrix products of a pass's layers (not those of attention) without anything in between."""

    def __init__(self, model, rows: int, branches: int):
        """`rows` cells walk; the blocks see them once for each branch."""
        options, genes = model.options.model, len(model.bundle.genes)
        width, hidden = options.width, options.mlp_ratio * options.width
        block = ((1, 2 * width, 6 * width), (1, 2 * width, 2 * width), (2, width, hidden), (2, hidden, width))
        shapes = [(options.depth * count, branches * rows, *sides) for count, *sides in block]
        shapes += [(2, rows, genes, width), (1, branches * rows, width, genes)]
        multiply = jax.jit(jnp.matmul)
        self.parts = [(count, multiply, jnp.ones((m, k)), jnp.ones((k, n))) for count, m, k, n in shapes]

    def __call__(self) -> float:
        """Seconds of one pass."""
        return sum(count * self._once(*part) for count, *part in self.parts)

    def _once(self, multiply, x, kernel) -> float:
        taken = []
        for _ in range(4):  # the first may compile
            began = time.perf_counter()
            multiply(x, kernel).block_until_ready()
            taken.append(time.perf_counter() - began)
        return min(taken[1:])


def main() -> None:
    """Runs every walk by turns and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--reference", required=True)
    parser.add_argument("--reference-python", required=True)
    parser.add_argument("--output", default="runs/released")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = pdx.load(convert(args.checkpoint, Path(folder) / "bundle"))
        dataset = next(iter(model.bundle.datasets))
        threads = len(os.sched_getaffinity(0))
        theirs = Reference(args.reference_python, args.reference, args.checkpoint, threads, Path(folder))
        for sets, cells, start, guidance in WALKS:
            arrays = inputs(model, sets, cells)
            source = dataset if model.sources else None

            def ours(arrays=arrays, start=start, guidance=guidance, source=source):
                # One code a set is enough here; the released code wants one a cell.
                given = {name: a if a.ndim == 3 else a[:, 0] for name, a in arrays.items()}
                began = time.perf_counter()
                made = model.sample(**given, start=start, guidance=guidance, source=source)
                return made, time.perf_counter() - began

            first = ours()[1]
            products = Products(model, sets * cells, branches=2 if guidance else 1)
            times = {"theirs": [], "ours": [], "products": []}
            for _ in range(args.repeats):
                wanted, seconds = theirs.walk(arrays, start=start, guidance=guidance, dataset=dataset)
                times["theirs"].append(seconds)
                made, seconds = ours()
                times["ours"].append(seconds)
                times["products"].append(start * products())
            middle = {name: statistics.median(values) for name, values in times.items()}
            rows.append(
                {
                    "walk": f"{sets} x {cells} cells, {start} steps, guidance {guidance:g}",
                    **middle,
                    "all": times,
                    "ratio": middle["theirs"] / middle["ours"],
                    "compile": max(0.0, first - middle["ours"]),
                    "largest_difference": float(np.abs(made - wanted).max()),
                }
            )
    facts = {
        "device": str(jax.devices()[0].device_kind),
        "threads": threads,
        "jax": jax.__version__,
        **theirs.facts,
    }
    write_json(output / "released.json", {"rows": rows, **facts})
    print(
        f"\n{facts}\n\n| walk | released, s | converted, s | products alone, s | times faster | compile, s "
        "| largest difference |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['walk']} | {row['theirs']:.2f} | {row['ours']:.2f} | {row['products']:.2f} | {row['ratio']:.2f} | "
            f"{row['compile']:.1f} | {row['largest_difference']:.1e} |"
        )


if __name__ == "__main__":
    main()

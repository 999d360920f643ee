"""How fast are the matrix products of a full-size step by themselves, and how much of the step is left beside them?

    python benchmarks/products.py

Every kind of product that the step makes is timed alone, by turns, in the layout in which the step asks for it, forward
and for both derivatives. Times the number of them in a step they give the time of a step that does nothing else: what
products cost on this machine with this compiler, where train_step.py's ceiling is its quickest square product.
"""

import argparse
import dataclasses
import json
import math
import os
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from train_step import SHAPES, Side
from train_step_worker import MATRIX

from perturbdiff_jax.main import prepare_process
from perturbdiff_jax.models.mmdit import ModelOptions
from perturbdiff_jax.run_record import write_json

GENES = 2_000
COLD = 3  # operands of each product, by turns: a step meets its weights cold


@dataclasses.dataclass(frozen=True)
class Product:
    """`count` products of a step: an einsum and the shapes of its two operands."""

    kind: str
    count: int
    formula: str
    left: tuple[int, ...]
    right: tuple[int, ...]

    @property
    def flops(self) -> int:
        """Of one of them."""
        sizes = dict(zip(self.formula.replace(",", "").split("->")[0], (*self.left, *self.right)))
        return 2 * math.prod(sizes.values())


def linear(kind: str, count: int, cells: int, inputs: int, outputs: int, data: bool = True) -> list[Product]:
    """A layer's three products; `data` False = nobody asks for the derivative of its input."""
    x, kernel, y = (cells, inputs), (inputs, outputs), (cells, outputs)
    found = [
        Product(f"{kind}: forward", count, "ci,io->co", x, kernel),
        Product(f"{kind}: kernel's derivative", count, "ci,co->io", x, y),
    ]
    if data:
        found.append(Product(f"{kind}: input's derivative", count, "co,io->ci", y, kernel))
    return found


def products(sets: int, cells: int, model: ModelOptions) -> list[Product]:
    """The products of a step without self-conditioning, as telemetry/flops.py counts them."""
    width, depth, heads, all_cells = model.width, model.depth, model.heads, sets * cells
    hidden, head = model.mlp_ratio * width, (sets, heads, cells, 2 * width // heads)
    pairs, set_, matrix = (sets, heads, cells, cells), (sets, cells, GENES), (sets, cells, cells)
    return [
        *linear("input layers", 2, all_cells, GENES, width, data=False),
        *linear("attention's layers, in", depth, all_cells, 2 * width, 6 * width),
        *linear("attention's layers, out", depth - 1, all_cells, 2 * width, 2 * width),
        *linear("attention's layers, out of the last block", 1, all_cells, 2 * width, width),
        Product("attention: q k^T, g v^T", 2 * depth, "bhid,bhjd->bhij", head, head),
        Product("attention: w v, l k", 2 * depth, "bhij,bhjd->bhid", pairs, head),
        Product("attention: w^T g, l^T q", 2 * depth, "bhij,bhid->bhjd", pairs, head),
        *linear("MLPs, in", 2 * depth - 1, all_cells, width, hidden),
        *linear("MLPs, out", 2 * depth - 1, all_cells, hidden, width),
        *linear("head", 1, all_cells, width, GENES),
        Product("energy distance: Gram", 3, "big,bjg->bij", set_, set_),
        Product("energy distance: derivative", 2, "bji,big->bjg", matrix, set_),
    ]


def timed(given: list[Product], rounds: int) -> tuple[list[float], float]:
    """(median seconds of each product, FLOP/s of the quickest square product)."""
    square = jnp.ones((MATRIX, MATRIX))
    programs = [jax.jit(jnp.dot).lower(square, square).compile()]
    operands = [[(square, square)]]
    draw = np.random.default_rng(0)
    for one in given:
        pairs = [
            tuple(jnp.asarray(draw.random(shape, np.float32)) for shape in (one.left, one.right))
            for _ in range(COLD)
        ]
        formula = one.formula
        program = jax.jit(lambda a, b, formula=formula: jnp.einsum(formula, a, b)).lower(*pairs[0]).compile()
        programs.append(program)
        operands.append(pairs)
    taken: list[list[float]] = [[] for _ in programs]
    for number in range(rounds + 1):
        for program, pairs, seconds in zip(programs, operands, taken):
            for pair in pairs:
                began = time.perf_counter()
                jax.block_until_ready(program(*pair))
                if number:
                    seconds.append(time.perf_counter() - began)
    square_seconds, *others = taken
    return [statistics.median(seconds) for seconds in others], 2 * MATRIX**3 / min(square_seconds)


def step_seconds(shape: dict, rounds: int) -> float:
    """Median seconds of the whole step, in a process of its own."""
    job = {**shape, "genes": GENES, "threads": len(os.sched_getaffinity(0)), "model": {"dtype": "float32"}}
    side = Side([sys.executable, str(Path(__file__).parent / "train_step_worker.py"), json.dumps(job)])
    taken = [side.order("step", fed_back=False)["wall"] for _ in range(rounds + 2)][2:]
    side.end()
    return statistics.median(taken)


def main() -> None:
    """Measures both shapes and prints one table for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", default="runs/products")
    args = parser.parse_args()
    prepare_process()
    everything = {}
    for name, shape in SHAPES.items():
        step = step_seconds(shape, args.rounds)
        given = products(shape["sets"], shape["cells"], ModelOptions())
        seconds, square = timed(given, args.rounds)
        print(f"\n{name} cells; a square product: {square / 1e9:.0f} GFLOP/s\n")
        print("| product | in a step | GFLOP/s | ms a step |")
        print("|---|---|---|---|")
        for one, each in zip(given, seconds):
            print(
                f"| {one.kind} | {one.count} | {one.flops / each / 1e9:.0f} | {1e3 * one.count * each:.0f} |"
            )
        flops = sum(one.count * one.flops for one in given)
        total = sum(one.count * each for one, each in zip(given, seconds))
        print(f"| all | {sum(one.count for one in given)} | {flops / total / 1e9:.0f} | {1e3 * total:.0f} |")
        print(f"\na step: {1e3 * step:.0f} ms; its products alone are {total / step:.0%} of it")
        rows = [dataclasses.asdict(one) | {"seconds": each} for one, each in zip(given, seconds)]
        everything[name] = {"step": step, "square": square, "flops": flops, "products": rows}
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "products.json", {"device": jax.devices()[0].device_kind, "shapes": everything})


if __name__ == "__main__":
    main()

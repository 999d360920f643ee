"""Would the input layer be faster as a sum of the rows of its kernel that a sparse cell names?

    python benchmarks/input_layer.py

A clean control cell has 95 % zeros, so that its product with Linear(G, D) is a sum of some hundred rows of the kernel.
Both are timed by turns, value alone and with the kernel's derivative (cells have none): cells made dense on the device
and multiplied, as training does it, and three ways to add up rows. Cells that noise was added to are dense: for
them, and for what is fed back, there is no such choice.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse

from perturbdiff_jax.main import prepare_process
from perturbdiff_jax.run_record import write_json

WIDTH, DENSITY = 512, 0.05
SIZES = ((512, 2_000), (2_048, 2_000), (512, 12_626))  # cells, genes
SETTLE = 0.1


def dense(values, genes, kernel):
    """Made dense, then one product."""
    rows = jnp.arange(len(values))[:, None]
    cells = (
        jnp.zeros((len(values), len(kernel)), jnp.float32).at[rows, genes].set(values, unique_indices=True)
    )
    return cells @ kernel


def gathered(values, genes, kernel):
    """All rows of all cells gathered, then summed."""
    return jnp.einsum("sk,skd->sd", values, kernel[genes])


def one_by_one(values, genes, kernel):
    """The k-th row of every cell, k after k."""

    def add(total, one):
        value, gene = one
        return total + value[:, None] * kernel[gene], None

    start = jnp.zeros((len(values), kernel.shape[1]), jnp.float32)
    return jax.lax.scan(add, start, (values.T, genes.T))[0]


def bcoo(values, genes, kernel):
    """JAX's own sparse product."""
    cells = sparse.BCOO((values, genes[..., None]), shape=(len(values), len(kernel)), unique_indices=True)
    return sparse.bcoo_dot_general(cells, kernel, dimension_numbers=(((1,), (0,)), ((), ())))


WAYS = {"made dense, product": dense, "rows gathered": gathered, "row by row": one_by_one, "BCOO": bcoo}


def cells_of(cells: int, genes: int) -> tuple[np.ndarray, np.ndarray]:
    """(values [S, K] float32, genes [S, K] int32), genes of a cell ascending."""
    draw = np.random.default_rng(0)
    stored = round(DENSITY * genes)
    chosen = np.argsort(draw.random((cells, genes)), axis=1)[:, :stored]
    return draw.exponential(0.1, chosen.shape).astype(np.float32), np.sort(chosen, axis=1).astype(np.int32)


def compiled(way: Callable, backward: bool, given: tuple) -> Callable:
    """The way, or the way with the derivative of its kernel, as a program."""

    def both(values, genes, kernel, pull):
        out, derivative = jax.vjp(lambda kernel: way(values, genes, kernel), kernel)
        return out, derivative(pull)

    def forward(values, genes, kernel, _):
        return way(values, genes, kernel)

    return jax.jit(both if backward else forward).lower(*given).compile()


def measure(cells: int, genes: int, rounds: int) -> list[dict]:
    """Rows of one size."""
    values, chosen = cells_of(cells, genes)
    draw = np.random.default_rng(1)
    kernel, pull = (draw.normal(size=(n, WIDTH)).astype(np.float32) for n in (genes, cells))
    given = tuple(jnp.asarray(array) for array in (values, chosen, kernel, pull))
    programs = {
        (name, backward): compiled(way, backward, given)
        for name, way in WAYS.items()
        for backward in (False, True)
    }
    true = dense(*given[:3])
    taken: dict[tuple, list[float]] = {key: [] for key in programs}
    for number in range(rounds + 1):
        for key, program in programs.items():
            time.sleep(SETTLE)
            began = time.perf_counter()
            found = jax.block_until_ready(program(*given))
            if number:
                taken[key].append(time.perf_counter() - began)
            value = found[0] if key[1] else found
            assert np.allclose(value, true, atol=1e-3), key
    rows = []
    for name in WAYS:
        forward, both = (statistics.median(taken[name, backward]) for backward in (False, True))
        rows.append({"cells": cells, "genes": genes, "way": name, "forward": forward, "both": both})
    return rows


def main() -> None:
    """Measures every size and prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", default="runs/input_layer")
    args = parser.parse_args()
    prepare_process()
    print("| cells x genes | way | value, ms | with derivative, ms | product / it |")
    print("|---|---|---|---|---|")
    rows = []
    for cells, genes in SIZES:
        found = measure(cells, genes, args.rounds)
        for row in found:
            row["ratio"] = found[0]["both"] / row["both"]
            size = f"{cells:,} x {genes:,}"
            figures = f"{row['forward'] * 1e3:.1f} | {row['both'] * 1e3:.1f} | {row['ratio']:.2f}"
            print(f"| {size} | {row['way']} | {figures} |", flush=True)
        rows += found
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "input_layer.json", {"device": jax.devices()[0].device_kind, "rows": rows})


if __name__ == "__main__":
    main()

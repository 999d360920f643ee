"""Mean distances of every cell to a set, fused for GPUs: distances, roots and sums leave no S x R matrix behind.

A program holds a block of rows and walks over a strip of columns; products of a block of pairs are added up in
registers, gene block after gene block, then distances are made, weighted and added to the sums of their rows. Pallas
with its Triton backend, which later versions of JAX will drop: a multiplication in full float32 (no tf32) has no place
on the tensor cores that its successor is made for.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from perturbdiff_jax.kernels.distances import EXACT, FLOOR, padded

ROWS, COLUMNS, GENES = 64, 64, 32  # of a block: 32 sums a thread in 4 warps
STRIPS = 16  # at most; programs for a block of rows


def row_sums(
    x: jax.Array,
    y: jax.Array,
    x2: jax.Array,
    y2: jax.Array,
    weights: jax.Array,
    shift: jax.Array,
    *,
    same: bool,
    interpret: bool = False,
) -> jax.Array:
    """Sums over j of weights_j (|x_i - y_j| - shift), [B, S] float32; arguments as in fused_tpu.py."""
    sets, cells = x.shape[:2]
    strips = min(STRIPS, -(-y.shape[1] // COLUMNS))
    x, x2 = (padded(a, 1, ROWS) for a in (x, x2))
    y, y2, weights = (padded(a, 1, COLUMNS * strips) for a in (y, y2, weights))
    x, y = (padded(a, 2, GENES) for a in (x, y))
    rows, columns, genes = x.shape[1], y.shape[1], x.shape[2]
    steps = columns // (COLUMNS * strips)
    whole = pl.BlockSpec((1, columns), lambda b, i, s: (b, 0))
    sums = pl.pallas_call(
        functools.partial(_kernel, same=same, steps=steps, genes=genes),
        out_shape=jax.ShapeDtypeStruct((sets, strips, rows), jnp.float32),
        grid=(sets, rows // ROWS, strips),
        in_specs=[
            pl.BlockSpec((1, ROWS, genes), lambda b, i, s: (b, i, 0)),
            pl.BlockSpec((1, columns, genes), lambda b, i, s: (b, 0, 0)),
            pl.BlockSpec((1, ROWS), lambda b, i, s: (b, i)),
            whole,
            whole,
            pl.BlockSpec((1,), lambda b, i, s: (b,)),
        ],
        out_specs=pl.BlockSpec((1, 1, ROWS), lambda b, i, s: (b, s, i)),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
    )(x, y, x2, y2, weights, shift)
    return sums.sum(axis=1)[:, :cells]


def _kernel(x_ref, y_ref, x2_ref, y2_ref, weights_ref, shift_ref, sums_ref, *, same, steps, genes):
    first_row, strip = pl.program_id(1) * ROWS, pl.program_id(2)
    x2, shift = x2_ref[0, :], shift_ref[0]

    def add_block(step, sums):
        first = (strip * steps + step) * COLUMNS
        columns = pl.ds(first, COLUMNS)

        def add_genes(k, inner):
            part = pl.ds(k * GENES, GENES)
            a, b = x_ref[0, :, part], y_ref[0, columns, part]
            return inner + jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), precision=EXACT)

        inner = jax.lax.fori_loop(0, genes // GENES, add_genes, jnp.zeros((ROWS, COLUMNS), jnp.float32))
        squared = x2[:, None] + y2_ref[0, columns][None, :] - 2.0 * inner
        if same:
            row, column = (jax.lax.broadcasted_iota(jnp.int32, squared.shape, axis) for axis in (0, 1))
            squared = jnp.where(first_row + row == first + column, 0.0, squared)
        found = jnp.sqrt(jnp.maximum(squared, FLOOR)) - shift
        return sums + (found * weights_ref[0, columns][None, :]).sum(axis=1)

    sums_ref[0, 0, :] = jax.lax.fori_loop(0, steps, add_block, jnp.zeros((ROWS,), jnp.float32))

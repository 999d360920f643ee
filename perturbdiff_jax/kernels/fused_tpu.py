"""Mean distances of every cell to a set, fused for TPUs: distances, roots and sums leave no S x R matrix behind.

Blocks of genes come one after the other; their products are added up in fast memory, and behind the last one the
distances of a block of pairs are made, weighted and added to the sums of their rows. Pallas (Mosaic).
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from perturbdiff_jax.kernels.distances import EXACT, FLOOR, padded

ROWS, COLUMNS, GENES = (
    256,
    256,
    512,
)  # of a block: two inputs of 0.5 MiB, twice each, and 0.25 MiB of products
LANES = 128  # numbers side by side in a register


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
    """Sums over j of weights_j (|x_i - y_j| - shift), [B, S] float32.

    Args:
      x, y: [B, S, G] and [B, R, G] float32.
      x2, y2: [B, S] and [B, R], their squared lengths.
      weights: [B, R].
      shift: [B].
      same: x is y: cell i lies at the floor from itself.
      interpret: run the kernel's steps as ordinary operations, on any device.
    """
    sets, cells = x.shape[:2]
    x, y = (padded(padded(a, 1, n), 2, GENES) for a, n in ((x, ROWS), (y, COLUMNS)))
    x2 = padded(x2, 1, ROWS)[:, :, None]
    y2, weights = (padded(a, 1, COLUMNS)[:, None] for a in (y2, weights))
    grid = (sets, x.shape[1] // ROWS, y.shape[1] // COLUMNS, x.shape[2] // GENES)
    columns = pl.BlockSpec((1, 1, COLUMNS), lambda b, i, j, k: (b, 0, j))
    sums = pl.pallas_call(
        functools.partial(_kernel, same=same),
        out_shape=jax.ShapeDtypeStruct((*x.shape[:2], LANES), jnp.float32),
        grid=grid,
        in_specs=[
            pl.BlockSpec((1, ROWS, GENES), lambda b, i, j, k: (b, i, k)),
            pl.BlockSpec((1, COLUMNS, GENES), lambda b, i, j, k: (b, j, k)),
            pl.BlockSpec((1, ROWS, 1), lambda b, i, j, k: (b, i, 0)),
            columns,
            columns,
            pl.BlockSpec((1, 1, 1), lambda b, i, j, k: (b, 0, 0), memory_space=pltpu.SMEM),
        ],
        out_specs=pl.BlockSpec((1, ROWS, LANES), lambda b, i, j, k: (b, i, 0)),
        scratch_shapes=[pltpu.VMEM((ROWS, COLUMNS), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary")
        ),
        interpret=interpret,
    )(x, y, x2, y2, weights, shift[:, None, None])
    return sums.sum(axis=-1)[:, :cells]


def _kernel(x_ref, y_ref, x2_ref, y2_ref, weights_ref, shift_ref, sums_ref, inner_ref, *, same):
    i, j, k = (pl.program_id(axis) for axis in (1, 2, 3))

    @pl.when(k == 0)
    def _():
        inner_ref[...] = jnp.zeros_like(inner_ref)

    inner_ref[...] += jax.lax.dot_general(
        x_ref[0], y_ref[0], (((1,), (1,)), ((), ())), precision=EXACT, preferred_element_type=jnp.float32
    )

    @pl.when(k == pl.num_programs(3) - 1)
    def _():
        squared = x2_ref[0] + y2_ref[0] - 2.0 * inner_ref[...]
        if same:
            rows, columns = (jax.lax.broadcasted_iota(jnp.int32, squared.shape, axis) for axis in (0, 1))
            squared = jnp.where(i * ROWS + rows == j * COLUMNS + columns, 0.0, squared)
        found = (jnp.sqrt(jnp.maximum(squared, FLOOR)) - shift_ref[0, 0, 0]) * weights_ref[0]
        # Lanes are added to lanes; what is left of a row is added up outside.
        sums = sum(found[:, at : at + LANES] for at in range(0, COLUMNS, LANES))
        sums_ref[0] = jnp.where(j == 0, 0.0, sums_ref[0]) + sums

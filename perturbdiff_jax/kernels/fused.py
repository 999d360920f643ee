"""The energy distance by a fused kernel of the accelerator: no S x R matrix leaves its fast memory.

The kernels (fused_gpu.py, fused_tpu.py) give every cell's mean distance to a set; this is what they have in common. The
derivative comes block by block (blockwise.py). Neither was timed on its device yet, so nothing chooses them by itself.
"""

import functools
from collections.abc import Callable

import jax

from perturbdiff_jax.kernels import blockwise
from perturbdiff_jax.kernels.distances import middle, norms, typical

PLATFORMS = ("gpu", "tpu")


def kernel_of(platform: str) -> Callable[..., jax.Array]:
    """`row_sums` of a platform; platforms without one get the GPU's, run step by step."""
    if platform == "tpu":
        from perturbdiff_jax.kernels.fused_tpu import row_sums
    else:
        from perturbdiff_jax.kernels.fused_gpu import row_sums
    return row_sums if platform in PLATFORMS else functools.partial(row_sums, interpret=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def energy(
    x: jax.Array, y: jax.Array, wx: jax.Array, wy: jax.Array, row_sums: Callable[..., jax.Array]
) -> jax.Array:
    """Half energy distance [B] of x [B, S, G] and y [B, R, G], float32, with weights that sum to 1.

    Differentiable in x and y; weights are constants. `row_sums` is a kernel (see `kernel_of`).
    """
    centre = middle(x, wx)
    x, y = x - centre, y - centre
    x2, y2 = norms(x), norms(y)
    shift = typical(x2, wx, y2, wy)

    def mean(a, b, a2, b2, wa, wb):
        return (row_sums(a, b, a2, b2, wb, shift, same=a is b) * wa).sum(axis=-1)

    value = mean(x, y, x2, y2, wx, wy)
    return value - 0.5 * mean(x, x, x2, x2, wx, wx) - 0.5 * mean(y, y, y2, y2, wy, wy)


def _forward(x, y, wx, wy, row_sums):
    return energy(x, y, wx, wy, row_sums), (x, y, wx, wy)


def _backward(row_sums, kept, g):
    def of_set(one):
        cells, weights, g = one[:2], one[2:4], one[4]
        _, pull = jax.vjp(lambda *cells: blockwise.energy(*cells, *weights), *cells)
        return pull(g)

    return *jax.lax.map(of_set, (*kept, g)), None, None


energy.defvjp(_forward, _backward)

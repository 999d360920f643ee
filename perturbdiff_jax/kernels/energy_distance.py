"""The energy distance between two sets of cells (the MMD term, method 2), jitted, with its own derivative.

    ED(x, y) = E|x - y| - 1/2 E|x - x'| - 1/2 E|y - y'|      (V-statistic: all pairs, the diagonal included)

which is half the usual energy distance and the value of the released loss; |d| = sqrt(max(|d|^2, 1e-8)). One function,
three ways, the same value:

    gram        whole Gram matrices at once, in a batch of sets: training
    blockwise   blocks of cells one after the other: memory does not grow with S x R
    fused       a Pallas kernel of a GPU or TPU (elsewhere the same steps as ordinary operations: slow, for tests)

No way makes an S x S x G tensor, forward or backward, and all multiply in float32 at the highest matmul precision,
whatever the caller's dtype: squared distances come from a Gram expansion, which tf32 and bfloat16 would ruin.

Worst errors of the value against float64 on CPUs, in parts of a typical distance, over the cases of
tests/kernels/test_energy_accuracy.py (expression is log1p / 10 with 95 % zeros):

                                                             gram   blockwise   fused
    expression, also of 12,626 genes or values up to 1e3     6e-9      6e-9      6e-9
    sets that are equal but for 1e-4                         3e-6      2e-6      2e-6
    equal sets                                               0         4e-6      4e-6
    cells drawn several times, in both sets                  5e-6      5e-6      2e-6
    expression + 3                                           2e-5      6e-9      6e-9
    expression + 3, cells drawn several times                5e-4      5e-6      2e-6

"gram" multiplies cells as they are, the others around the mean of x. Derivatives are off by 1e-6 of their size for
expression, by up to 6e-4 where cells are drawn several times, 3e-3 at + 3 in "gram". Between sets that are equal but
for 1e-4 they are those of cells 1e-3 to 5e-3 apart, of which a Gram expansion in float32 keeps a digit or none.
"""

import functools
import math

import jax
import jax.numpy as jnp

from perturbdiff_jax.kernels import blockwise, fused, gram
from perturbdiff_jax.kernels.distances import normalised

WAYS = ("auto", "gram", "blockwise", "fused")
# Most distances of a set, (S + R)^2, for which "gram" is chosen: 64 MiB of them. Up to there a set is about one block,
# and "blockwise" does the same, one set after the other; beyond, it spares half of the self distances and keeps none.
# On GPUs and TPUs nothing was measured yet: the limit is the same, and "fused" is never chosen.
LARGEST_GRAM = 4096**2


def chosen(cells_x: int, cells_y: int) -> str:
    """The way that "auto" takes for sets of so many cells: "gram" or "blockwise"."""
    return "gram" if (cells_x + cells_y) ** 2 <= LARGEST_GRAM else "blockwise"


@functools.partial(jax.jit, inline=True, static_argnames=("way",))
def energy_distance(
    x: jax.Array,
    y: jax.Array,
    *,
    weights_x: jax.Array | None = None,
    weights_y: jax.Array | None = None,
    way: str = "auto",
) -> jax.Array:
    """Half energy distance of each set, [...] float32.

    Args:
      x: [..., S, G] cells, any float dtype.
      y: [..., R, G] cells; the usual differentiated argument.
      weights_x: [..., S] non-negative weights (a mask), normalised here; None = equal. Not differentiated.
      weights_y: [..., R], the same for y.
      way: see above; "auto" chooses by the number of cells.

    Returns:
      One value per set; about 0 for equal sets, gradients finite also where two cells coincide.

    Raises:
      ValueError: an unknown way, or cells that do not fit each other.
    """
    if way not in WAYS:
        raise ValueError(f"way is {way!r}; allowed: {', '.join(WAYS)}")
    if x.shape[:-2] != y.shape[:-2] or x.shape[-1] != y.shape[-1]:
        raise ValueError(f"cells of shapes {x.shape} and {y.shape}: sets and genes must be the same")
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    wx, wy = normalised(x, weights_x), normalised(y, weights_y)
    if way == "auto":
        way = chosen(x.shape[-2], y.shape[-2])
    if way == "gram":
        return gram.energy(x, y, wx, wy)
    sets, given = x.shape[:-2], (x, y, wx, wy)
    given = [a.reshape(math.prod(sets), *a.shape[len(sets) :]) for a in given]
    if way == "blockwise":
        found = jax.lax.map(lambda one: blockwise.energy(*one), tuple(given))
    else:
        found = fused.energy(*given, fused.kernel_of(jax.default_backend()))
    return found.reshape(sets)

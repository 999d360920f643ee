"""The energy distance block by block: for sets whose S x R distances do not fit, in memory that the block bounds.

100,000 cells against 100,000 are 40 GB of distances; here never more than BLOCK x BLOCK of them exist, forward and
backward (which makes them again). Of a set and itself only half of the blocks are looked at. Sums are compensated:
with ten billion terms the last digits of a plain float32 sum are gone.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from perturbdiff_jax.kernels.distances import (
    EXACT,
    FLOOR,
    distance_of,
    inverse_of,
    middle,
    norms,
    products,
    typical,
)

BLOCK = 2048  # cells; 16 MiB of distances, and products large enough for any device


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def energy(x: jax.Array, y: jax.Array, wx: jax.Array, wy: jax.Array, block: int = BLOCK) -> jax.Array:
    """Half energy distance [] of x [S, G] and y [R, G], float32, with weights [S], [R] that sum to 1.

    Differentiable in x and y; weights are constants.
    """
    return _forward(x, y, wx, wy, block)[0]


def _forward(x, y, wx, wy, block):
    centre = middle(x, wx)
    shift = typical(norms(x - centre), wx, norms(y - centre), wy)
    mean = functools.partial(mean_distance, centre=centre, shift=shift, block=block)
    value = mean(x, y, wx, wy) - 0.5 * mean(x, x, wx, wx) - 0.5 * mean(y, y, wy, wy)
    return value, (x, y, wx, wy)


def _backward(block, kept, g):
    x, y, wx, wy = kept
    centre = middle(x, wx)
    grad_x = _pull(y, x, wy, wx, centre, block) - _pull(x, x, wx, wx, centre, block)
    grad_y = _pull(x, y, wx, wy, centre, block) - _pull(y, y, wy, wy, centre, block)
    return g * grad_x, g * grad_y, None, None


energy.defvjp(_forward, _backward)


def mean_distance(
    x: jax.Array,
    y: jax.Array,
    wx: jax.Array,
    wy: jax.Array,
    *,
    centre: jax.Array,
    shift: jax.Array,
    block: int = BLOCK,
) -> jax.Array:
    """sum_ij wx_i wy_j (|x_i - y_j| - shift), [] float32, of x [S, G] and y [R, G].

    `centre` [1, G] is taken off the cells of a block before they are multiplied. Where x is y and wx is wy (the same
    arrays) half of the blocks are looked at, and a cell is at the floor from itself.
    """
    same = x is y and wx is wy
    rows, columns = _blocks(x, block), _blocks(y, block)
    pairs = [(i, j) for i in rows for j in columns if not same or j >= i]
    zero = jnp.zeros((), jnp.float32)

    def add(carry, pair):
        total, lost = carry
        i, j = pair
        a, a2, va = _block(x, wx, i, centre, block)
        b, b2, vb = _block(y, wy, j, centre, block)
        distance = _distances(a, b, a2, b2, same & (i == j)) - shift
        part = jnp.einsum("ij,i,j->", distance, va, vb, precision=EXACT)
        part = jnp.where(same & (i != j), 2.0 * part, part) - lost
        new = total + part
        return (new, (new - total) - part), None

    return jax.lax.scan(add, (zero, zero), np.array(pairs, np.int32))[0][0]


def _pull(x, y, wx, wy, centre, block) -> jax.Array:
    """d/dy_j of sum_ij wx_i wy_j |x_i - y_j|, [R, G]."""
    same = x is y

    def add(total, pair):
        i, j = pair
        a, a2, va = _block(x, wx, i, centre, block)
        b, b2, vb = _block(y, wy, j, centre, block)
        weight = inverse_of(_distances(b, a, b2, a2, same & (i == j))) * vb[:, None] * va[None, :]
        part = b * weight.sum(axis=1)[:, None] - jnp.einsum("ji,ig->jg", weight, a, precision=EXACT)
        start = _start(j, len(y), block)
        old = jax.lax.dynamic_slice_in_dim(total, start, len(b))
        return jax.lax.dynamic_update_slice_in_dim(total, old + part, start, 0), None

    pairs = [(i, j) for j in _blocks(y, block) for i in _blocks(x, block)]
    return jax.lax.scan(add, jnp.zeros_like(y), np.array(pairs, np.int32))[0]


def _blocks(x: jax.Array, block: int) -> range:
    return range(-(-len(x) // block))


def _start(number, cells: int, block: int):
    """First cell of a block; the last block lies over the one before it, so that all have one size and none is
    padded (which would be a copy of all cells).
    """
    return jnp.minimum(number * block, max(0, cells - block))


def _block(x, weights, number, centre, block):
    """(cells around the centre, squared lengths, weights) of a block; cells of the block before weigh nothing."""
    start, size = _start(number, len(x), block), min(block, len(x))
    cells = jax.lax.dynamic_slice_in_dim(x, start, size) - centre
    own = start + jnp.arange(size) >= number * block
    return cells, norms(cells), jnp.where(own, jax.lax.dynamic_slice_in_dim(weights, start, size), 0.0)


def _distances(a, b, a2, b2, diagonal):
    """Distances of two blocks; `diagonal` says that they are one and the same."""
    distance = distance_of(products(a, b), a2, b2)
    if a.shape != b.shape:
        return distance
    own = jnp.eye(len(a), dtype=bool) & diagonal
    return jnp.where(own, FLOOR**0.5, distance)

"""The energy distance block by block: for sets whose S x R distances do not fit, in memory that the block bounds.

100,000 cells against 100,000 are 40 GB of distances; here never more than BLOCK x BLOCK of them exist. A block's
distances serve value and derivative. Of a set and itself only half of the blocks are looked at. Sums are compensated:
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
    return _terms(x, y, wx, wy, block)[0]


def _terms(x, y, wx, wy, block, derivatives=False):
    """(value, and if asked its derivatives [S, G] with respect to x and [R, G] to y)."""
    centre = middle(x, wx)
    shift = typical(norms(x - centre), wx, norms(y - centre), wy)
    term = functools.partial(mean_distance, centre=centre, shift=shift, block=block, derivatives=derivatives)
    xy, *across = term(x, y, wx, wy)
    (xx, *within_x), (yy, *within_y) = term(x, x, wx, wx), term(y, y, wy, wy)
    return xy - 0.5 * xx - 0.5 * yy, *(a - b for a, b in zip(across, (*within_x, *within_y)))


def _forward(x, y, wx, wy, block):
    # A block's distances serve the derivatives too, so they are made here. A program leaves out what nobody uses.
    value, *pulls = _terms(x, y, wx, wy, block, derivatives=True)
    return value, pulls


def _backward(block, pulls, g):
    return *(g * pull for pull in pulls), None, None


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
    derivatives: bool = False,
) -> tuple[jax.Array, ...]:
    """sum_ij wx_i wy_j (|x_i - y_j| - shift), [] float32, of x [S, G] and y [R, G], and if asked its derivatives.

    `centre` [1, G] is taken off the cells of a block before they are multiplied. Where x is y and wx is wy (the same
    arrays) half of the blocks are looked at, a cell is at the floor from itself, and there is one derivative, with
    respect to one of the two arguments; else there are those with respect to x [S, G] and y [R, G].
    """
    same = x is y and wx is wy
    x2, y2 = norms(x - centre), norms(y - centre)
    rows, columns = (range(blocks_of(len(side), block)[0]) for side in (x, y))
    pairs = [(i, j) for i in rows for j in columns if not same or j >= i]
    zero = jnp.zeros((), jnp.float32)
    sides = ((x,) if same else (x, y)) if derivatives else ()

    def add(carry, pair):
        (total, lost), pulls = carry
        i, j = pair
        a, a2, va = _block(x, x2, wx, i, centre, block)
        b, b2, vb = _block(y, y2, wy, j, centre, block)
        distance = _distances(a, b, a2, b2, same & (i == j))
        part = jnp.einsum("ij,i,j->", distance - shift, va, vb, precision=EXACT)
        part = jnp.where(same & (i != j), 2.0 * part, part) - lost
        new = total + part
        if derivatives:
            weight = inverse_of(distance) * va[:, None] * vb[None, :]
            to_x, to_y = _pull(weight, a, b), _pull(weight.T, b, a)
            if same:  # the other half of the blocks
                to_y = jnp.where(i == j, 0.0, to_y)
            # Onto the side of the rows and onto that of the columns, which may be one.
            starts = _start(i, len(x), block), _start(j, len(y), block)
            pulls = [_added(pulls[0], to_x, starts[0]), *pulls[1:]]
            pulls[-1] = _added(pulls[-1], to_y, starts[1])
        return ((new, (new - total) - part), pulls), None

    start = ((zero, zero), [jnp.zeros_like(side) for side in sides])
    ((total, _), pulls), _ = jax.lax.scan(add, start, np.array(pairs, np.int32))
    return total, *pulls


def _pull(weight, y, x) -> jax.Array:
    """d/dy_j of sum_ij w_ij |x_i - y_j|, [R, G], from w_ij / |x_i - y_j| [R, S] of a block."""
    return y * weight.sum(axis=1)[:, None] - jnp.einsum("ji,ig->jg", weight, x, precision=EXACT)


def _added(total, part, start):
    old = jax.lax.dynamic_slice_in_dim(total, start, len(part))
    return jax.lax.dynamic_update_slice_in_dim(total, old + part, start, 0)


def blocks_of(cells: int, block: int) -> tuple[int, int]:
    """(number of blocks, cells of each): as equal as can be, at most `block` cells."""
    count = -(-cells // block)
    return count, -(-cells // count)


def _start(number, cells: int, block: int):
    """First cell of a block; the last block lies over the one before it, so that all have one size and none is
    padded (which would be a copy of all cells).
    """
    size = blocks_of(cells, block)[1]
    return jnp.minimum(number * size, cells - size)


def _block(x, x2, weights, number, centre, block):
    """(cells around the centre, squared lengths, weights) of a block; cells of the block before weigh nothing.

    Lengths come with the cells: made here, compilers for CPUs weave them into the product, which then takes twice as
    long.
    """
    start, size = _start(number, len(x), block), blocks_of(len(x), block)[1]
    cells, lengths, weights = (jax.lax.dynamic_slice_in_dim(a, start, size) for a in (x, x2, weights))
    own = start + jnp.arange(size) >= number * size
    return cells - centre, lengths, jnp.where(own, weights, 0.0)


def _distances(a, b, a2, b2, diagonal):
    """Distances of two blocks; `diagonal` says that they are one and the same."""
    distance = distance_of(products(a, b), a2, b2)
    if a.shape != b.shape:
        return distance
    own = jnp.eye(len(a), dtype=bool) & diagonal
    return jnp.where(own, FLOOR**0.5, distance)

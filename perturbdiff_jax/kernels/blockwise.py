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


def _terms(x, y, wx, wy, block, *, for_x: bool = False, for_y: bool = False):
    """(value, derivative [S, G] with respect to x, [R, G] to y); None for what nobody asked."""
    centre = middle(x, wx)
    shift = typical(norms(x - centre), wx, norms(y - centre), wy)
    term = functools.partial(mean_distance, centre=centre, shift=shift, block=block)
    xy, across_x, across_y = term(x, y, wx, wy, for_x=for_x, for_y=for_y)
    xx, _, within_x = term(x, x, wx, wx, for_y=for_x)
    yy, _, within_y = term(y, y, wy, wy, for_y=for_y)
    return xy - 0.5 * xx - 0.5 * yy, _less(across_x, within_x), _less(across_y, within_y)


def _less(across, within):
    return None if across is None else across - within


def _forward(x, y, wx, wy, block):
    # The distances of a block serve the derivative too, so it is made here, and only for what is differentiated.
    value, *pulls = _terms(
        *(given.value for given in (x, y, wx, wy)), block, for_x=x.perturbed, for_y=y.perturbed
    )
    return value, pulls


def _backward(block, pulls, g):
    return *(None if pull is None else g * pull for pull in pulls), None, None


energy.defvjp(_forward, _backward, symbolic_zeros=True)


def mean_distance(
    x: jax.Array,
    y: jax.Array,
    wx: jax.Array,
    wy: jax.Array,
    *,
    centre: jax.Array,
    shift: jax.Array,
    block: int = BLOCK,
    for_x: bool = False,
    for_y: bool = False,
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """sum_ij wx_i wy_j (|x_i - y_j| - shift), [] float32, of x [S, G] and y [R, G], and its derivatives if asked.

    `centre` [1, G] is taken off the cells of a block before they are multiplied. Where x is y and wx is wy (the same
    arrays) half of the blocks are looked at, a cell is at the floor from itself, and the derivative (of `for_y`) is
    that of one of the two arguments.
    """
    same = x is y and wx is wy
    x2, y2 = norms(x - centre), norms(y - centre)
    rows, columns = (range(blocks_of(len(side), block)[0]) for side in (x, y))
    pairs = [(i, j) for i in rows for j in columns if not same or j >= i]
    zero = jnp.zeros((), jnp.float32)
    pulls = (jnp.zeros_like(x) if for_x else None, jnp.zeros_like(y) if for_y else None)

    def add(carry, pair):
        (total, lost), (pull_x, pull_y) = carry
        i, j = pair
        a, a2, va = _block(x, x2, wx, i, centre, block)
        b, b2, vb = _block(y, y2, wy, j, centre, block)
        distance = _distances(a, b, a2, b2, same & (i == j))
        part = jnp.einsum("ij,i,j->", distance - shift, va, vb, precision=EXACT)
        part = jnp.where(same & (i != j), 2.0 * part, part) - lost
        new = total + part
        if for_x or for_y:
            weight = inverse_of(distance) * va[:, None] * vb[None, :]
        if for_y:
            pull_y = _added(pull_y, _pull(weight.T, b, a), _start(j, len(y), block))
            if same:
                mirrored = jnp.where(i == j, 0.0, _pull(weight, a, b))
                pull_y = _added(pull_y, mirrored, _start(i, len(y), block))
        if for_x:
            pull_x = _added(pull_x, _pull(weight, a, b), _start(i, len(x), block))
        return ((new, (new - total) - part), (pull_x, pull_y)), None

    ((total, _), pulls), _ = jax.lax.scan(add, ((zero, zero), pulls), np.array(pairs, np.int32))
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

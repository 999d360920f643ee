"""The energy distance from whole Gram matrices: for sets whose S x S numbers fit in memory, as in training.

Forward three products, backward two: the derivative with respect to y_j is a weighted sum of differences. Squared
lengths are the diagonals of the Gram matrices. Where a backend sums all entries in one order (CPUs do within a matrix,
and between matrices of one size), equal cells are at distance 0 (then the floor); lengths summed otherwise would leave
the rounding of the products.
"""

import jax
import jax.numpy as jnp

from perturbdiff_jax.kernels.distances import EXACT, distance_of, inverse_of, products, typical


@jax.custom_vjp
def energy(x: jax.Array, y: jax.Array, wx: jax.Array, wy: jax.Array) -> jax.Array:
    """Half energy distance [...] of x [..., S, G] and y [..., R, G], float32, with weights that sum to 1.

    Differentiable in x and y; weights are constants.
    """
    return _forward(x, y, wx, wy)[0]


def _forward(x, y, wx, wy):
    # [R, S] and not [S, R]: so the derivative is a plain product, with nothing to transpose.
    xx, yy, yx = products(x, x), products(y, y), products(y, x)
    x2, y2 = (jnp.diagonal(inner, axis1=-2, axis2=-1) for inner in (xx, yy))
    dxx, dyy, dyx = distance_of(xx, x2, x2), distance_of(yy, y2, y2), distance_of(yx, y2, x2)
    shift = typical(x2, wx, y2, wy)[..., None, None]
    value = _mean(dyx - shift, wy, wx) - 0.5 * _mean(dxx - shift, wx, wx) - 0.5 * _mean(dyy - shift, wy, wy)
    return value, (x, y, wx, wy, dxx, dyy, dyx)


def _mean(distance: jax.Array, wx: jax.Array, wy: jax.Array) -> jax.Array:
    return jnp.einsum("...ij,...i,...j->...", distance, wx, wy, precision=EXACT)


def _backward(kept, g):
    x, y, wx, wy, dxx, dyy, dyx = kept
    # Unused outputs cost nothing under jit: the loss differentiates y only.
    grad_x = _gradient(x, y, wx, wy, jnp.swapaxes(dyx, -1, -2), dxx, g)
    grad_y = _gradient(y, x, wy, wx, dyx, dyy, g)
    return grad_x, grad_y, None, None


def _gradient(y, x, wy, wx, dyx, dyy, g) -> jax.Array:
    """g times the derivative with respect to y, [..., R, G], from distances to x [..., R, S] and to itself.

    The self term is symmetric: one half times both of its arguments leaves it once. Everything that is one number a
    pair of cells is multiplied there, so that arrays of cells are gone over once.
    """
    scaled = (g[..., None] * wy)[..., :, None]
    across = inverse_of(dyx) * scaled * wx[..., None, :]
    within = inverse_of(dyy) * scaled * wy[..., None, :]
    own = across.sum(axis=-1) - within.sum(axis=-1)
    return y * own[..., None] - _pulled(across, x) + _pulled(within, y)


def _pulled(weight: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.einsum("...ji,...ig->...jg", weight, x, precision=EXACT)


energy.defvjp(_forward, _backward)

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
    g = g[..., None, None]
    # The self terms are symmetric: one half times both arguments leaves one pull. Unused outputs cost nothing
    # under jit: the loss differentiates y only.
    grad_y = _pull(dyx, y, x, wy, wx) - _pull(dyy, y, y, wy, wy)
    grad_x = _pull(jnp.swapaxes(dyx, -1, -2), x, y, wx, wy) - _pull(dxx, x, x, wx, wx)
    return g * grad_x, g * grad_y, None, None


def _pull(distance: jax.Array, y: jax.Array, x: jax.Array, wy: jax.Array, wx: jax.Array) -> jax.Array:
    """d/dy_j of sum_ij wx_i wy_j |x_i - y_j|, [..., R, G], from distances [..., R, S]."""
    weight = inverse_of(distance) * wy[..., :, None] * wx[..., None, :]
    pulled = jnp.einsum("...ji,...ig->...jg", weight, x, precision=EXACT)
    return y * weight.sum(axis=-1)[..., None] - pulled


energy.defvjp(_forward, _backward)

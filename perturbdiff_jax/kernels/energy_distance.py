"""The energy distance between two sets of cells (the MMD term, method 2), jitted, with its own derivative.

    ED(x, y) = E|x - y| - 1/2 E|x - x'| - 1/2 E|y - y'|      (V-statistic: all pairs, the diagonal included)

which is half the usual energy distance and the value of the released loss; |d| = sqrt(max(|d|^2, 1e-8)).
Squared distances use the Gram expansion, so no S x S x G tensor ever exists; the derivative with respect to y_j is
a weighted sum of differences, two matrix products. The expansion cancels badly in reduced precision: products run
in float32 at highest matmul precision whatever the caller's dtype. Error against float64, measured on expression
/ 10 (16 to 64 cells, 50 to 200 genes): below 2e-4, all of it from the diagonal.
"""

import functools

import jax
import jax.numpy as jnp

FLOOR = 1e-8  # of squared distances, as released; the gradient is zero where it acts


def _gram(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum("...ig,...jg->...ij", x, y, precision=jax.lax.Precision.HIGHEST)


def pairwise_distance(x: jax.Array, y: jax.Array) -> jax.Array:
    """Euclidean distances [..., S, R] between cells x [..., S, G] and y [..., R, G], floored at 1e-4."""
    x2 = jnp.square(x).sum(axis=-1)[..., :, None]
    y2 = jnp.square(y).sum(axis=-1)[..., None, :]
    return jnp.sqrt(jnp.maximum(x2 - 2.0 * _gram(x, y) + y2, FLOOR))


def _pull(distance: jax.Array, x: jax.Array, y: jax.Array, wx: jax.Array, wy: jax.Array) -> jax.Array:
    """d/dy_j of sum_ij wx_i wy_j |x_i - y_j|: [..., R, G]."""
    inverse = jnp.where(distance > FLOOR**0.5 * 1.0001, 1.0 / distance, 0.0)
    weight = inverse * wx[..., :, None] * wy[..., None, :]
    pulled = jnp.einsum("...ij,...ig->...jg", weight, x, precision=jax.lax.Precision.HIGHEST)
    return y * weight.sum(axis=-2)[..., None] - pulled


def _mean(distance: jax.Array, wx: jax.Array, wy: jax.Array) -> jax.Array:
    return jnp.einsum("...ij,...i,...j->...", distance, wx, wy, precision=jax.lax.Precision.HIGHEST)


@jax.custom_vjp
def _energy(x: jax.Array, y: jax.Array, wx: jax.Array, wy: jax.Array) -> jax.Array:
    return _energy_forward(x, y, wx, wy)[0]


def _energy_forward(x, y, wx, wy):
    dxy, dxx, dyy = pairwise_distance(x, y), pairwise_distance(x, x), pairwise_distance(y, y)
    value = _mean(dxy, wx, wy) - 0.5 * _mean(dxx, wx, wx) - 0.5 * _mean(dyy, wy, wy)
    return value, (x, y, wx, wy, dxy, dxx, dyy)


def _energy_backward(kept, g):
    x, y, wx, wy, dxy, dxx, dyy = kept
    g = g[..., None, None]
    # The self terms are symmetric: one half times both arguments leaves one pull. Unused outputs cost nothing
    # under jit: the loss differentiates y only.
    grad_y = _pull(dxy, x, y, wx, wy) - _pull(dyy, y, y, wy, wy)
    grad_x = _pull(jnp.swapaxes(dxy, -1, -2), y, x, wy, wx) - _pull(dxx, x, x, wx, wx)
    return g * grad_x, g * grad_y, None, None


_energy.defvjp(_energy_forward, _energy_backward)


def _weights(cells: jax.Array, weights: jax.Array | None) -> jax.Array:
    if weights is None:
        return jnp.full(cells.shape[:-1], 1.0 / cells.shape[-2], jnp.float32)
    weights = weights.astype(jnp.float32)
    return weights / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1e-12)


@functools.partial(jax.jit, inline=True)
def energy_distance(
    x: jax.Array, y: jax.Array, *, weights_x: jax.Array | None = None, weights_y: jax.Array | None = None
) -> jax.Array:
    """Half energy distance of each set, [...] float32.

    Args:
      x: [..., S, G] cells, any float dtype.
      y: [..., R, G] cells; the usual differentiated argument.
      weights_x: [..., S] non-negative weights (a mask), normalised here; None = equal. Not differentiated.
      weights_y: [..., R], the same for y.

    Returns:
      One value per set; about 0 for equal sets, gradients finite also where two cells coincide.
    """
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return _energy(x, y, _weights(x, weights_x), _weights(y, weights_y))

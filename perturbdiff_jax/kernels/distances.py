"""Distances between cells by the Gram expansion, and what every way of the energy distance shares.

    |x - y|^2 = <x, x> - 2 <x, y> + <y, y>,    |x - y| = sqrt(max(|x - y|^2, 1e-8))

The expansion cancels where cells lie close together, so all products run in float32 at the highest matmul precision
(no tf32, no bfloat16), whatever the caller's dtype.
"""

import jax
import jax.numpy as jnp

FLOOR = 1e-8  # of squared distances, as released; the gradient is zero where it acts
EXACT = jax.lax.Precision.HIGHEST


def products(x: jax.Array, y: jax.Array) -> jax.Array:
    """Inner products [..., S, R] of cells x [..., S, G] and y [..., R, G], float32."""
    return jnp.einsum("...ig,...jg->...ij", x, y, precision=EXACT)


def norms(x: jax.Array) -> jax.Array:
    """Squared lengths [..., S] of cells [..., S, G]."""
    return jnp.square(x).sum(axis=-1)


def distance_of(inner: jax.Array, x2: jax.Array, y2: jax.Array) -> jax.Array:
    """Distances [..., S, R] from inner products and squared lengths [..., S], [..., R], floored at 1e-4."""
    squared = x2[..., :, None] - 2.0 * inner + y2[..., None, :]
    return jnp.sqrt(jnp.maximum(squared, FLOOR))


def pairwise_distance(x: jax.Array, y: jax.Array) -> jax.Array:
    """Euclidean distances [..., S, R] between cells x [..., S, G] and y [..., R, G], floored at 1e-4."""
    return distance_of(products(x, y), norms(x), norms(y))


def inverse_of(distance: jax.Array) -> jax.Array:
    """1 / distance, 0 where the floor acts: the derivative of a length is a unit vector, or nothing."""
    return jnp.where(distance > FLOOR**0.5 * 1.0001, 1.0 / distance, 0.0)


def normalised(cells: jax.Array, weights: jax.Array | None) -> jax.Array:
    """Weights [..., S] of cells [..., S, G] that sum to 1; None = equal ones."""
    if weights is None:
        return jnp.full(cells.shape[:-1], 1.0 / cells.shape[-2], jnp.float32)
    weights = weights.astype(jnp.float32)
    return weights / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1e-12)


def middle(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Mean cell [..., 1, G] under weights [..., S] that sum to 1; cells that weigh nothing, whatever they are, move it
    nowhere. Cells are taken from there before they are multiplied: differences stay, lengths shrink, and with them
    what is lost when they cancel.
    """
    return jnp.einsum("...ig,...i->...g", x, weights, precision=EXACT)[..., None, :]


def typical(x2: jax.Array, wx: jax.Array, y2: jax.Array, wy: jax.Array) -> jax.Array:
    """About the distance of two cells, [...], from squared lengths around a common middle.

    Taken off every distance before they are averaged: in E|x-y| - 1/2 E|x-x'| - 1/2 E|y-y'| a constant cancels, and
    sums of small numbers keep the digits that the difference of large ones would lose.
    """
    return jnp.sqrt((x2 * wx).sum(axis=-1) + (y2 * wy).sum(axis=-1))


def padded(array: jax.Array, axis: int, multiple: int) -> jax.Array:
    """With zeros behind `axis`, up to a multiple; weights of 0 leave such cells out."""
    missing = -array.shape[axis] % multiple
    widths = [(0, missing if a == axis else 0) for a in range(array.ndim)]
    return jnp.pad(array, widths) if missing else array

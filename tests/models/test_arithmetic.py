"""Derivatives that are written down are those that would be derived."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturbdiff_jax.models.arithmetic import NORM_EPS, layer_norm, product, rms_norm


def plain_layer_norm(x):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / jnp.sqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + NORM_EPS)


def plain_rms_norm(x, weight):
    weight = jnp.expand_dims(weight, tuple(range(x.ndim - 1)))
    return x / jnp.sqrt(jnp.square(x).mean(axis=-1, keepdims=True) + NORM_EPS) * weight


def arrays(*shapes, scale=1.0, seed=3, dtype=np.float32):
    draw = np.random.default_rng(seed)
    return [jnp.asarray(scale * draw.normal(size=shape) + 0.5 * scale, dtype) for shape in shapes]


CASES = {
    "layer norm": (layer_norm, plain_layer_norm, [(2, 5, 16)]),
    "rms norm": (rms_norm, plain_rms_norm, [(2, 5, 3, 8), (8,)]),
    "product": (product, lambda x, kernel: x @ kernel, [(2, 5, 8), (8, 6)]),
    "product cut into heads": (
        product,
        lambda x, k: jnp.einsum("bsi,ihd->bshd", x, k),
        [(2, 5, 8), (8, 3, 2)],
    ),
}


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives(name, scale):
    ours, plain, shapes = CASES[name]
    given = arrays(*shapes, scale=scale)
    (weight,) = arrays(plain(*given).shape, seed=4)
    with jax.enable_x64(True):
        exact = [np.asarray(x, np.float64) for x in given]
        want = (
            plain(*exact),
            *jax.grad(lambda *x: (plain(*x) * weight).sum(), tuple(range(len(exact))))(*exact),
        )
    found = ours(*given), *jax.grad(lambda *x: (ours(*x) * weight).sum(), tuple(range(len(given))))(*given)
    for a, b in zip(found, want):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("name", ["layer norm", "rms norm"])
def test_narrow_arrays_are_summed_wide(name):
    """Mean and square of 4,096 narrow numbers, and those of the gradient, keep the digits of the inputs."""
    ours, plain, _ = CASES[name]
    given = arrays((1, 4096), *[(4096,)] * (name == "rms norm"), scale=4.0)
    narrow = [given[0].astype(jnp.bfloat16), *given[1:]]
    wide = [narrow[0].astype(jnp.float32), *given[1:]]
    (weight,) = arrays((1, 4096), seed=4)
    found = jax.grad(lambda x: (ours(x, *narrow[1:]).astype(jnp.float32) * weight).sum())(narrow[0])
    want = jax.grad(lambda x: (plain(x, *wide[1:]) * weight).sum())(wide[0])
    assert found.dtype == jnp.bfloat16
    error = np.abs(np.float32(found) - want)
    assert error.max() < 2**-7 * np.abs(want).max() and error.mean() < 2**-8 * np.abs(want).mean()

"""How far every way is from float64, of the value and of its derivatives, where the Gram expansion is hard pressed.

A bound is about three times the worst of eight draws on two versions of JAX, so that it tells a digit lost. Those that
are large say where a way is weak, as its docstring does.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_energy import distances, energy, expression, gradients, off

from perturbdiff_jax.kernels import energy_matrix, fused, fused_gpu, fused_tpu
from perturbdiff_jax.kernels.distances import normalised
from perturbdiff_jax.kernels.energy_distance import energy_distance

WAYS = ("gram", "blockwise", "fused")
S, FEWER = 200, 97


def cases():
    """(x, y) by what is difficult about them."""
    draw = np.random.default_rng(0)
    x = expression(draw, S)
    pool = expression(draw, 25)

    def resampled(cells):
        return pool[draw.integers(0, len(pool), cells)]

    noise = 1e-4 * draw.standard_normal(x.shape).astype(np.float32)
    return {
        "plain": (x, expression(draw, S)),
        "12,626 genes": (expression(draw, S, 12_626), expression(draw, S, 12_626)),
        "values to 1e3": tuple(np.minimum(expression(draw, S, mean=200.0), 1e3) for _ in range(2)),
        "unequal sizes": (x, expression(draw, FEWER)),
        "nearly equal": (x, x + noise),
        "nearly equal, same zeros": (x, np.where(x > 0, x + noise, 0.0)),
        "equal": (x, x),
        "resampled": (resampled(S), resampled(S)),
        "resampled, unequal sizes": (resampled(S), resampled(FEWER)),
        "far from 0": (x + 3, expression(draw, S) + 3),
        "resampled, far from 0": (resampled(S) + 3, resampled(FEWER) + 3),
    }


CASES = cases()

# |error| of the value in parts of the mean distance between x and y: gram, blockwise, fused.
VALUES = {
    "plain": (2e-8, 2e-8, 2e-8),
    "12,626 genes": (2e-8, 2e-8, 2e-8),
    "values to 1e3": (2e-8, 2e-8, 2e-8),
    "unequal sizes": (2e-8, 2e-8, 2e-8),
    "nearly equal": (3e-6, 1e-7, 1e-7),
    "nearly equal, same zeros": (2e-7, 2e-6, 1e-6),
    "equal": (1e-8, 3e-6, 2e-6),
    "resampled": (3e-8, 2e-6, 1e-6),
    "resampled, unequal sizes": (7e-6, 7e-6, 2e-6),
    "far from 0": (4e-5, 2e-8, 2e-8),
    "resampled, far from 0": (8e-4, 1e-5, 3e-6),
}
# |error| of a derivative in parts of it; that of equal sets is nothing, of nearly equal ones almost.
GRADIENTS = {
    "plain": (3e-6, 3e-6, 3e-6),
    "12,626 genes": (3e-6, 3e-6, 3e-6),
    "values to 1e3": (3e-6, 3e-6, 3e-6),
    "unequal sizes": (3e-6, 3e-6, 3e-6),
    "nearly equal": (0.3, 0.06, 0.06),
    "resampled": (4e-6, 2e-3, 2e-3),
    "resampled, unequal sizes": (5e-4, 2e-3, 2e-3),
    "far from 0": (2e-3, 3e-6, 3e-6),
}


@functools.cache
def differentiated(way):
    return jax.jit(jax.value_and_grad(lambda x, y: energy_distance(x, y, way=way), argnums=(0, 1)))


@functools.cache
def found(way, case):
    return jax.device_get(differentiated(way)(*CASES[case]))


@functools.cache
def wanted(case):
    x, y = CASES[case]
    return energy(x, y), gradients(x, y), distances(x, y).mean()


@pytest.mark.parametrize("case", VALUES)
@pytest.mark.parametrize("way", WAYS)
def test_value(way, case):
    value, _, distance = wanted(case)
    assert abs(found(way, case)[0] - value) <= VALUES[case][WAYS.index(way)] * distance


@pytest.mark.parametrize("case", GRADIENTS)
@pytest.mark.parametrize("way", WAYS)
def test_derivatives(way, case):
    for got, want in zip(found(way, case)[1], wanted(case)[1], strict=True):
        assert off(got, want) <= GRADIENTS[case][WAYS.index(way)]


@pytest.mark.parametrize("way", WAYS)
def test_equal_sets_are_not_pulled_apart(way):
    """Beyond 2e-5 of the pull that one cell has on one cell."""
    for pull in found(way, "equal")[1]:
        assert np.linalg.norm(pull, axis=1).max() * S <= 2e-5


def programs():
    """Every program that multiplies cells, lowered."""
    x, y = jnp.zeros((2, 6, 40)), jnp.zeros((2, 5, 40))
    wx, wy = (normalised(cells, None) for cells in (x, y))
    for way in WAYS:
        yield way, differentiated(way).lower(x[0], y[0])
    for name, kernel in (("GPU", fused_gpu), ("TPU", fused_tpu)):
        steps = functools.partial(kernel.row_sums, interpret=True)
        yield name, jax.jit(functools.partial(fused.energy, row_sums=steps)).lower(x, y, wx, wy)
    side = x[0], jnp.zeros(6), jnp.zeros(6, jnp.int32), wx[0]
    pairs, centre = np.zeros((1, 2), np.int32), jnp.zeros((1, 40))
    matrix = energy_matrix._summed.lower(side, side, centre, 0.0, pairs, (1, 1), (1, 1), (6, 6), True)
    yield "matrix", matrix


def test_no_product_is_of_less_than_float32():
    """A GPU would take tf32, and a TPU bfloat16, wherever the highest precision is not asked for."""
    for name, lowered in programs():
        products = [line for line in lowered.as_text().splitlines() if "dot_general" in line]
        assert products, name
        for line in products:
            assert "precision = [HIGHEST, HIGHEST]" in line, (name, line)
            assert "bf16" not in line and "f16" not in line, (name, line)


@pytest.mark.parametrize("way", WAYS)
def test_bfloat16_cells_are_those_numbers_in_float32(way):
    x, y = (jnp.asarray(cells[:9, :100], jnp.bfloat16) for cells in CASES["unequal sizes"])
    got, narrow = differentiated(way)(x, y)
    want, wide = differentiated(way)(x.astype(jnp.float32), y.astype(jnp.float32))
    assert got.dtype == jnp.float32 and float(got) == float(want) > 0
    for a, b in zip(narrow, wide, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_array_equal(a, b.astype(jnp.bfloat16))

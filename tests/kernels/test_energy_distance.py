"""The energy distance, every way, against loops in float64, its properties, and the recorded released values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturbdiff_jax.kernels.distances import pairwise_distance
from perturbdiff_jax.kernels.energy_distance import chosen, energy_distance

every_way = pytest.mark.parametrize("way", ["gram", "blockwise", "fused"])


def loops(x, y, wx=None, wy=None):
    """E|x-y| - 1/2 E|x-x'| - 1/2 E|y-y'| of one pair of sets, cell by cell."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    wx = np.full(len(x), 1 / len(x)) if wx is None else wx / wx.sum()
    wy = np.full(len(y), 1 / len(y)) if wy is None else wy / wy.sum()

    def mean(a, wa, b, wb):
        return sum(wa[i] * wb[j] * np.linalg.norm(a[i] - b[j]) for i in range(len(a)) for j in range(len(b)))

    return mean(x, wx, y, wy) - 0.5 * mean(x, wx, x, wx) - 0.5 * mean(y, wy, y, wy)


@pytest.fixture
def sets():
    rng = np.random.default_rng(0)
    x = rng.gamma(0.5, 0.2, (3, 9, 20)) * (rng.random((3, 9, 20)) < 0.4)
    y = rng.gamma(0.5, 0.3, (3, 7, 20))
    return x.astype(np.float32), y.astype(np.float32)


@every_way
def test_equals_loops(sets, way):
    x, y = sets
    want = [loops(a, b) for a, b in zip(x, y)]
    np.testing.assert_allclose(energy_distance(x, y, way=way), want, atol=5e-5)


@every_way
def test_weights_equal_loops_and_masking_equals_deleting(sets, way):
    x, y = sets
    mask = np.array([1, 1, 1, 0, 1, 0, 1], np.float32)
    got = energy_distance(x, y, weights_y=np.stack([mask] * 3), way=way)
    np.testing.assert_allclose(got, [loops(a, b[mask > 0]) for a, b in zip(x, y)], atol=5e-5)
    weights = np.linspace(0.5, 2, 9)
    got = energy_distance(x, y, weights_x=np.stack([weights] * 3), way=way)
    np.testing.assert_allclose(got, [loops(a, b, weights) for a, b in zip(x, y)], atol=5e-5)


@every_way
def test_zero_for_equal_sets_symmetric_and_blind_to_order(sets, way):
    x, y = sets
    found = functools.partial(energy_distance, way=way)
    # Whole matrices know that equal cells are equal; elsewhere one pair in nine may come out 1e-3 apart.
    np.testing.assert_allclose(found(x, x), 0.0, atol=1e-8 if way == "gram" else 2e-5)
    np.testing.assert_allclose(found(x, y), found(y, x), atol=1e-6)
    np.testing.assert_allclose(found(x[:, ::-1], y), found(x, y), atol=1e-6)
    assert (np.asarray(found(x, y)) > 0).all()


@pytest.mark.parametrize("leading", [(), (3, 1)])
@every_way
def test_sets_lie_along_any_leading_axes(sets, leading, way):
    x, y = (a if leading else a[0] for a in sets)
    x, y = (a.reshape(*leading, *a.shape[-2:]) for a in (x, y))
    weights = np.broadcast_to(np.linspace(0.5, 2, 7, dtype=np.float32), y.shape[:-1])
    got = energy_distance(x, y, weights_y=weights, way=way)
    assert got.shape == leading and got.dtype == jnp.float32
    want = [loops(a, b, None, weights.reshape(-1, 7)[0]) for a, b in zip(*sets)]
    np.testing.assert_allclose(got.reshape(-1), want[: got.size], atol=5e-5)


@every_way
def test_gradients_equal_differences(sets, way):
    x, y = (a.astype(np.float64) for a in sets)
    weights = np.linspace(0.5, 2, 7)
    gradients = jax.jit(
        jax.grad(
            lambda *a: energy_distance(*a, weights_y=jnp.stack([weights] * 3), way=way).sum(), argnums=(0, 1)
        )
    )(jnp.float32(x), jnp.float32(y))
    rng = np.random.default_rng(1)
    for argument in (0, 0, 0, 1, 1, 1):
        direction = rng.normal(size=(x, y)[argument].shape)
        moved = [(x, y), (x, y)]
        for i, sign in enumerate((1, -1)):
            pair = [x, y]
            pair[argument] = pair[argument] + sign * 1e-5 * direction
            moved[i] = sum(loops(a, b, None, weights) for a, b in zip(*pair))
        want = (moved[0] - moved[1]) / 2e-5
        np.testing.assert_allclose((np.asarray(gradients[argument]) * direction).sum(), want, rtol=2e-3)


@every_way
def test_a_loss_weighs_the_derivative_of_every_set(sets, way):
    share = jnp.array([2.0, -0.5, 0.0])

    def loss(x, y, share):
        return (energy_distance(x, y, way=way) * share).sum()

    plain = jax.grad(loss, argnums=(0, 1))(*sets, jnp.ones(3))
    for got, alone in zip(jax.grad(loss, argnums=(0, 1))(*sets, share), plain, strict=True):
        np.testing.assert_allclose(got, alone * share[:, None, None], rtol=1e-5, atol=1e-8)


@every_way
def test_gradient_is_finite_where_cells_coincide(way):
    """And nothing, for sets are equal: what pulls each cell away pulls it back."""
    x = jnp.zeros((1, 4, 5)).at[0, 0].set(1.0)
    gradient = jax.grad(lambda y: energy_distance(x, y, way=way).sum())(x)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


@every_way
def test_weights_are_constants(sets, way):
    x, y = sets

    def of_weights(weights):
        return energy_distance(x, y, weights_x=weights, way=way).sum()

    # Unequal ones: what all weights have in common the normalisation takes off.
    assert not np.any(jax.grad(of_weights)(jnp.tile(jnp.linspace(0.5, 2.0, 9), (3, 1))))


def test_no_tensor_of_all_pairs_and_genes_exists():
    cells, genes = 64, 300
    x = jnp.ones((2, cells, genes))
    text = jax.jit(jax.grad(lambda y: energy_distance(x, y).sum())).lower(x).as_text()
    assert f"{cells}x{cells}x" in text  # distances are there
    assert f"{cells}x{cells}x{genes}" not in text


def shapes(cells_x, cells_y):
    return [jax.ShapeDtypeStruct((1, cells, 8), jnp.float32) for cells in (cells_x, cells_y)]


@pytest.mark.parametrize(
    "cells_x, cells_y, way",
    [
        (32, 32, "gram"),
        (256, 256, "gram"),
        (2048, 2048, "gram"),
        (2048, 2049, "blockwise"),
        (1, 4096, "blockwise"),
        (100_000, 100_000, "blockwise"),
    ],
)
def test_which_way_is_chosen(cells_x, cells_y, way):
    """Sets of training lie in whole matrices, large ones do not; no way is another, and none is fused by itself."""
    assert chosen(cells_x, cells_y) == way
    # Nothing is computed: the programs are compared.
    graphs = {
        name: str(jax.make_jaxpr(functools.partial(energy_distance, way=name))(*shapes(cells_x, cells_y)))
        for name in ("auto", "gram", "blockwise", "fused")
    }
    taken = graphs.pop("auto")
    assert "pallas_call" in graphs["fused"] and "pallas_call" not in taken
    assert [name for name, graph in graphs.items() if graph == taken] == [way]


@pytest.mark.parametrize("way", ["Gram", "", None, "sinkhorn"])
def test_an_unknown_way_is_refused(sets, way):
    with pytest.raises(ValueError, match=f"way is {way!r}; allowed: auto, gram, blockwise, fused"):
        energy_distance(*sets, way=way)


@pytest.mark.parametrize("shape", [(2, 7, 20), (3, 7, 19), (7, 20), (1, 3, 7, 20)])
def test_cells_that_do_not_fit_are_refused(sets, shape):
    with pytest.raises(ValueError) as raised:
        energy_distance(sets[0], np.zeros(shape, np.float32))
    assert f"shapes (3, 9, 20) and {shape}" in str(raised.value)


def test_bfloat16_input_is_computed_in_float32(sets):
    x, y = (jnp.asarray(a, jnp.bfloat16) for a in sets)
    got = energy_distance(x, y)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, energy_distance(x.astype(jnp.float32), y.astype(jnp.float32)), atol=1e-6)


def test_distances_have_a_floor():
    assert float(pairwise_distance(jnp.zeros((1, 3)), jnp.zeros((1, 3)))[0, 0]) == pytest.approx(1e-4)


@pytest.mark.parametrize("case", range(4))
def test_recorded_released_values(shared, case):
    recorded = np.load(shared / "golden/common/energy.npz")
    x, y = recorded[f"e{case}_x"], recorded[f"e{case}_y"]
    np.testing.assert_allclose(energy_distance(x, y), recorded[f"e{case}_geomloss"], atol=2e-4)
    gradient = jax.grad(lambda y: energy_distance(x, y).mean())(y)
    np.testing.assert_allclose(gradient, recorded[f"e{case}_grad_y_of_mean"], atol=5e-6)

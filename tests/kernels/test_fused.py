"""The fused kernels, step by step on a CPU, against float64; and that they compile for devices that are not here."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_energy import FLOOR, distances, energy, expression, gradients, off

from perturbdiff_jax.kernels import fused, fused_gpu, fused_tpu
from perturbdiff_jax.kernels.distances import norms

KERNELS = {"gpu": fused_gpu, "tpu": fused_tpu}
B = 2
# (cells of x, cells of y, genes), of which blocks are left over, several and single ones; the last with more columns
# than one block in each strip of a GPU.
SHAPES = {"gpu": [(70, 150, 45), (5, 3, 7), (64, 64, 64), (3, 1100, 33)]}
SHAPES["tpu"] = [(300, 260, 600), (5, 3, 7), (256, 256, 512), (3, 700, 33)]


def stepwise(platform):
    return functools.partial(KERNELS[platform].row_sums, interpret=True)


def given(cells_x, cells_y, genes):
    """(x, y, wx, wy) of B sets that differ; weights that sum to 1, every fourth of 0."""
    draw = np.random.default_rng(cells_x)
    x = np.stack([expression(draw, cells_x, genes, mean) for mean in (0.5, 1.0)])
    y = np.stack([expression(draw, cells_y, genes, mean) for mean in (2.0, 0.7)])
    weights = [draw.uniform(0.2, 2.0, (B, n)) * (np.arange(n) % 4 != 1) for n in (cells_x, cells_y)]
    wx, wy = (jnp.array(w / w.sum(axis=1, keepdims=True), jnp.float32) for w in weights)
    return jnp.array(x), jnp.array(y), wx, wy


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("platform, shape", [(p, shape) for p in KERNELS for shape in SHAPES[p]])
def test_sums_of_every_cell(platform, shape, same):
    x, y, wx, wy = given(*shape)
    if same:
        y, wy = x, wx
    shift = jnp.array([0.0, 1.5])
    got = jax.jit(functools.partial(stepwise(platform), same=same))(x, y, norms(x), norms(y), wy, shift)
    assert got.shape == x.shape[:2] and got.dtype == jnp.float32
    for n in range(B):
        want = (distances(x[n], y[n]) - float(shift[n])) @ np.asarray(wy[n], np.float64)
        np.testing.assert_allclose(got[n], want, atol=1e-5)


@pytest.mark.parametrize("platform, cells", [("gpu", 150), ("tpu", 300)])
def test_a_cell_is_at_the_floor_from_itself(platform, cells):
    """Far from the origin its distance by products would be a hundred times that. All weight lies on one cell."""
    x = given(cells, 1, 45)[0] + 30.0
    function = jax.jit(functools.partial(stepwise(platform), same=True))
    for chosen in (0, cells // 2, cells - 1):
        weights = jnp.zeros((B, cells)).at[:, chosen].set(1.0)
        got = function(x, x, norms(x), norms(x), weights, jnp.zeros(B))
        np.testing.assert_allclose(got[:, chosen], FLOOR, rtol=1e-6)


@pytest.mark.parametrize("platform", KERNELS)
def test_energy_and_derivatives(platform):
    # With genes enough that no two cells are without any.
    x, y, wx, wy = given(70, 23, 300)
    pull = jnp.array([1.0, -3.0])

    @jax.jit
    def taken(x, y):
        value, back = jax.vjp(lambda x, y: fused.energy(x, y, wx, wy, stepwise(platform)), x, y)
        return value, back(pull)

    value, pulls = taken(x, y)
    for n in range(B):
        one = x[n], y[n], wx[n], wy[n]
        np.testing.assert_allclose(value[n], energy(*one), atol=1e-6)
        for got, want in zip(pulls, gradients(*one), strict=True):
            assert off(got[n], float(pull[n]) * want) < 3e-6


def test_a_platform_has_its_kernel_and_others_the_steps_of_one():
    assert fused.kernel_of("gpu") is fused_gpu.row_sums
    assert fused.kernel_of("tpu") is fused_tpu.row_sums
    other = fused.kernel_of("cpu")
    assert other.func is fused_gpu.row_sums and other.keywords == {"interpret": True}


def absent_gpu():
    """Later versions of JAX ask which GPU a kernel is for; a mesh of devices that are not here tells them."""
    try:
        device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="cuda")
    except (AttributeError, TypeError):
        return contextlib.nullcontext()
    kinds = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((1,), ("d",), axis_types=kinds, abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.parametrize("platform, called", [("tpu", "@tpu_custom_call"), ("cuda", "@__gpu$xla.gpu.triton")])
def test_it_compiles_for_a_device_that_is_not_here(platform, called):
    """Value and derivative; of the three kinds of pairs, x with y and each with itself, each has its kernel."""
    kernel = (fused_tpu if platform == "tpu" else fused_gpu).row_sums

    def both(x, y, wx, wy):
        return jax.value_and_grad(lambda y: fused.energy(x, y, wx, wy, kernel).sum())(y)

    unchecked = [jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")]
    with absent_gpu() if platform == "cuda" else contextlib.nullcontext():
        exported = jax.export.export(jax.jit(both), platforms=[platform], disabled_checks=unchecked)(
            *given(300, 90, 1100)
        )
    calls = [line for line in exported.mlir_module().splitlines() if "custom_call" in line and called in line]
    assert len(calls) == 3

"""Blocks stacked and written out: the same values, in checkpoints always the same way."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturbdiff_jax import sharding
from perturbdiff_jax.checkpoint import Checkpoints
from perturbdiff_jax.models import trunk
from perturbdiff_jax.models.mmdit import Denoiser, ModelOptions
from perturbdiff_jax.optim import OptimOptions, optimizer
from perturbdiff_jax.state import as_placed, as_stored, create_state, init_params, stored_shapes

OPTIONS = {"width": 8, "depth": 4, "heads": 2, "covariate_width": 4}


@functools.cache
def drawn(absent="zero"):
    model = Denoiser(ModelOptions(**OPTIONS), 5, 3, 2, 2)
    tx = optimizer(OptimOptions(absent=absent), 10)
    return create_state(init_params(model, jax.random.key(0)), tx)


def state(seed=0, absent="zero"):
    made = drawn(absent)
    leaves, form = jax.tree.flatten(made)
    draws = np.random.default_rng(seed)
    return jax.tree.unflatten(form, [x + draws.normal(size=x.shape).astype(x.dtype) for x in leaves])


def adam(state):
    def holds(node):
        return hasattr(node, "nu")

    return next(filter(holds, jax.tree.leaves(state.opt_state, is_leaf=holds)))


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_layers_come_apart_and_together_again():
    stacked = state()
    apart = trunk.written_out(stacked)
    assert set(apart.params["blocks"]) == {"0", "1", "2"} and trunk.is_written_out(apart)
    assert not trunk.is_written_out(stacked)
    for tree, whole in ((apart.params, stacked.params), (adam(apart).nu, adam(stacked).nu)):
        for number in range(3):
            assert_equal(tree["blocks"][str(number)], jax.tree.map(lambda x, i=number: x[i], whole["blocks"]))
    assert_equal(trunk.stacked(apart), stacked)
    assert_equal(trunk.layers(apart.ema["blocks"]), trunk.layers(stacked.ema["blocks"]))


def test_counts_without_axes_belong_to_every_layer():
    """The optimizer that skips absent parameters counts the steps of each: a number for a whole stack."""
    stacked = state(absent="skip")
    apart = trunk.written_out(stacked)
    taken = adam(stacked).taken["blocks"]["mlp_x"]["out"]["linear"]["bias"]
    for number in range(3):
        found = adam(apart).taken["blocks"][str(number)]["mlp_x"]["out"]["linear"]["bias"]
        assert found.shape == () and found == taken
    assert_equal(trunk.stacked(apart), stacked)
    told = stored_shapes(apart)
    jax.tree.map(lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)), told, stacked)


def test_ten_layers_keep_their_order():
    blocks = {"w": jnp.arange(12.0)[:, None]}
    apart = trunk.written_out({"blocks": blocks})
    assert_equal(trunk.stacked(apart)["blocks"], blocks)


def test_shapes_of_a_stack_are_told_with_their_sharding():
    mesh = sharding.make_mesh(sharding.MeshOptions(data=1, fsdp=8))
    stacked = jax.device_put(state(), sharding.state_shardings(state(), mesh))
    apart = trunk.written_out(stacked)
    apart = jax.device_put(apart, sharding.state_shardings(apart, mesh))
    told = stored_shapes(apart)
    jax.tree.map(lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)), told, stacked)
    together = as_stored(apart)
    assert_equal(together, stacked)
    jax.tree.map(lambda x, y: np.testing.assert_equal(x.sharding, y.sharding), together, told)
    again = as_placed(together, apart)
    assert_equal(again, apart)
    jax.tree.map(lambda x, y: np.testing.assert_equal(x.sharding, y.sharding), again, apart)
    assert stored_shapes(stacked) is stacked and as_stored(stacked) is stacked


@pytest.mark.parametrize("saved", ["stacked", "written out"])
@pytest.mark.parametrize("asked", ["stacked", "written out"])
def test_a_checkpoint_is_read_either_way(tmp_path, saved, asked):
    one, other = state(1), state(2)
    if saved == "written out":
        one = trunk.written_out(one)
    if asked == "written out":
        other = trunk.written_out(other)
    with Checkpoints(tmp_path, metric="energy", mode="min", keep=1) as checkpoints:
        checkpoints.save(one)
        checkpoints.wait()
        found, _ = checkpoints.newest(other)
    assert_equal(found, trunk.written_out(state(1)) if asked == "written out" else state(1))


def test_one_network_reads_both(monkeypatch):
    params = jax.tree.map(lambda x: x + 0.1, drawn().params)
    draw = np.random.default_rng(0)
    cells = [jnp.float32(draw.gamma(1.0, 0.3, (2, 4, 5))) for _ in range(2)]
    code = jnp.zeros(2, jnp.int32)

    def out(params, **options):
        model = Denoiser(ModelOptions(**OPTIONS, **options), 5, 3, 2, 2)
        given = (cells[0], code + 7, cells[1], code, code, code)
        return jax.jit(model.apply)({"params": params}, *given), str(
            jax.make_jaxpr(model.apply)({"params": params}, *given)
        )

    looped, graph = out(params, scan="yes")
    assert "length=3" in graph
    for given in (params, trunk.written_out(params)):
        found, graph = out(given, scan="no")
        assert "length=3" not in graph
        np.testing.assert_allclose(found, looped, rtol=1e-6)
    assert not ModelOptions(scan="auto").loops  # tests run on CPUs
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert ModelOptions(scan="auto").loops and not ModelOptions(scan="no").loops

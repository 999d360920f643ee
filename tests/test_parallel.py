"""One training, however it is laid out: meshes of eight devices, scan, rematerialisation, accumulation, bfloat16."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturbdiff_jax import sharding
from perturbdiff_jax.array_types import Batch
from perturbdiff_jax.diffusion.objective import ObjectiveOptions
from perturbdiff_jax.diffusion.schedule import Schedule
from perturbdiff_jax.models.mmdit import Denoiser, ModelOptions
from perturbdiff_jax.optim import EmaOptions, OptimOptions, optimizer
from perturbdiff_jax.sharding import MeshOptions
from perturbdiff_jax.state import as_stored
from perturbdiff_jax.step import StepParts, compile_step, initial_state

ALL = MeshOptions()
B, S, G, STEPS = 16, 4, 10, 3
MODEL = {"width": 16, "depth": 3, "heads": 8, "covariate_width": 8, "scan": "yes"}
MESHES = {
    "data 8": {},
    "fsdp 8": {"data": 1, "fsdp": 8},
    "tensor 8": {"data": 1, "tensor": 8},
    "all": {"fsdp": 2, "tensor": 2},
}


def parts(accumulate=1, sources=0, per="batch", absent="zero", **model):
    # Adam divides a gradient by its own size, so that with the usual eps rounding decides the sign of tiny ones.
    optim = OptimOptions(learning_rate=3e-3, warmup_steps=0, eps=1e-3, absent=absent)
    return StepParts(
        model=Denoiser(ModelOptions(**MODEL | model), G, 4, 2, 2, sources=sources),
        tx=optimizer(optim, 100),
        schedule=Schedule(),
        objective=ObjectiveOptions(per=per),
        ema=EmaOptions(),
        seed=3,
        accumulate=accumulate,
    )


def batch(step, sources=0):
    draw = np.random.default_rng(step)
    cells = [draw.gamma(1.0, 0.2, (B, S, G)).astype(np.float32) for _ in range(2)]
    codes = [draw.integers(0, n, B).astype(np.int32) for n in (4, 2)]
    codes.append(draw.integers(0, 2, (B, S) if sources else B).astype(np.int32))
    mask = (draw.random((B, S)) < 0.8).astype(np.float32)
    source = draw.integers(0, sources, B).astype(np.int32) if sources else None
    return Batch(*cells, *codes, mask=np.maximum(mask, np.arange(S) == 0), source=source)


def trained(options=ALL, devices=8, **changed):
    """(parameters, average, moments, losses of every step) after three steps."""
    one = parts(**changed)
    mesh = sharding.make_mesh(options, jax.devices()[:devices])
    state, step, losses = initial_state(one, mesh), compile_step(one, mesh), []
    for number in range(STEPS):
        cells = jax.device_put(batch(number, changed.get("sources", 0)), sharding.batch_sharding(mesh))
        state, metrics = step(state, cells)
        losses.append(metrics)
    return state, jax.device_get(losses)


alone = functools.cache(functools.partial(trained, devices=1))


def assert_same(one, other, atol=1e-5):
    for a, b in zip(one[1], other[1], strict=True):
        for name in a:  # the energy distance is a difference of sums, which shows the last bits of its terms
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, err_msg=name)
    one, other = jax.device_get(as_stored(one[0])), jax.device_get(as_stored(other[0]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), one, other)


@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_do_what_one_does(name):
    many = trained(MeshOptions(**MESHES[name]))
    assert_same(alone(), many)
    mesh = sharding.make_mesh(MeshOptions(**MESHES[name]))
    kernel = many[0].params["blocks"]["mlp_x"]["hidden"]["linear"]["kernel"]
    share = mesh.shape["fsdp"] * mesh.shape["tensor"]
    for leaf in (kernel, many[0].ema["blocks"]["mlp_x"]["hidden"]["linear"]["kernel"]):
        assert leaf.addressable_shards[0].data.size * share == leaf.size


SEVERAL = {"sources": 3, "per": "set"}  # with a batch for every cell, and coins for every set


def test_several_sources_and_a_batch_for_every_cell_as_well():
    assert_same(alone(**SEVERAL), trained(MeshOptions(**MESHES["all"]), **SEVERAL))


@pytest.mark.parametrize("changed", [{"scan": "no"}, {"remat": "full"}, {"remat": "dots", "scan": "no"}])
def test_how_the_stack_is_compiled_changes_no_number(changed):
    assert_same(alone(), trained(devices=1, **changed))


def test_absent_parameters_are_skipped_in_either_layout():
    assert_same(trained(devices=1, absent="skip"), trained(devices=1, absent="skip", scan="no"))


def test_blocks_written_out_are_cut_like_the_loop_over_them():
    many = trained(MeshOptions(**MESHES["all"]), scan="no")
    assert_same(alone(), many)
    kernel = many[0].ema["blocks"]["1"]["mlp_x"]["hidden"]["linear"]["kernel"]
    assert kernel.ndim == 2 and kernel.addressable_shards[0].data.size * 4 == kernel.size
    stacked = as_stored(many[0]).ema["blocks"]["mlp_x"]["hidden"]["linear"]["kernel"]
    assert stacked.ndim == 3 and stacked.addressable_shards[0].data.size * 4 == stacked.size


def test_a_batch_in_parts_is_the_batch_at_once():
    assert_same(alone(), trained(MeshOptions(**MESHES["all"]), accumulate=2))
    assert_same(alone(**SEVERAL), trained(devices=1, accumulate=4, **SEVERAL))


def graph(**changed):
    one = parts(**changed)
    shapes = jax.eval_shape(lambda: initial_state(one, sharding.make_mesh(devices=jax.devices()[:1])))
    from perturbdiff_jax.step import train_step

    return str(jax.make_jaxpr(lambda state, cells: train_step(one, state, cells))(shapes, batch(0)))


def test_the_graphs_that_were_compared_do_differ():
    """Equal numbers of equal programs would prove nothing."""
    plain = graph()
    assert "remat" not in plain and plain.count("length=2") >= 1
    assert "remat" in graph(remat="full") and "remat" in graph(remat="dots")
    assert graph(remat="full") != graph(remat="dots")
    assert "length=4" in graph(accumulate=4) and "length=4" not in plain
    assert "length=2" not in graph(scan="no")


def test_bfloat16_computes_narrow_and_keeps_wide():
    """Parameters, moments, gradients and losses stay float32; the losses are those of float32 to two digits."""
    state, losses = trained(devices=1, dtype="bfloat16")
    for tree in (state.params, state.ema, state.opt_state):
        kinds = {leaf.dtype for leaf in jax.tree.leaves(tree)}
        assert kinds <= {jnp.dtype("float32"), jnp.dtype("int32")}
    for narrow, wide in zip(losses, alone()[1]):
        assert all(value.dtype == np.float32 for value in narrow.values())
        np.testing.assert_allclose(narrow["loss/total"], wide["loss/total"], rtol=0.05)
        assert narrow["loss/total"] != wide["loss/total"]
    text = graph(dtype="bfloat16")
    assert "bf16" in text
    # What is summed over cells or features is summed in float32: means, variances, softmax, distances, gradients of
    # biases and of everything that is broadcast over cells.
    sums = [line for line in text.splitlines() if re.search(r"bf16\[[^\]]*\] = (reduce_sum|cumsum)", line)]
    assert not sums, sums[:5]

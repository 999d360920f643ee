"""The training step: it learns, gives its memory back, and is the same on one device and on eight, dense or packed."""

import dataclasses
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturbdiff_jax import rng, sharding
from perturbdiff_jax.array_types import Batch
from perturbdiff_jax.data.loading.batcher import Batcher
from perturbdiff_jax.diffusion.objective import ObjectiveOptions
from perturbdiff_jax.diffusion.schedule import Schedule
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.kernels.densify import densify
from perturbdiff_jax.models.mmdit import Denoiser, ModelOptions
from perturbdiff_jax.optim import EmaOptions, OptimOptions, optimizer
from perturbdiff_jax.state import count_parameters, create_state, init_params
from perturbdiff_jax.step import StepParts, compile_step

sys.path.append(str(pathlib.Path(__file__).parent / "data"))
from cells_in_memory import random_draw, raw_cells, store_of

B, S, G = 8, 4, 10


@functools.cache
def parts():
    model = Denoiser(ModelOptions(width=16, depth=2, heads=2, covariate_width=4, scan="yes"), G, 4, 2, 2)
    # Adam divides a gradient by its own size, so that with the usual eps rounding decides the sign of tiny ones.
    optim = OptimOptions(learning_rate=3e-3, warmup_steps=0, eps=1e-3)
    return StepParts(
        model=model,
        tx=optimizer(optim, 100),
        schedule=Schedule(),
        objective=ObjectiveOptions(),
        ema=EmaOptions(),
        seed=3,
    )


@functools.cache
def start():
    return jax.device_get(create_state(init_params(parts().model, jax.random.key(0)), parts().tx))


def batch(seed=0):
    draw = np.random.default_rng(seed)
    cells = [draw.gamma(1.0, 0.2, (B, S, G)).astype(np.float32) for _ in range(2)]
    codes = [draw.integers(0, n, B).astype(np.int32) for n in (4, 2, 2)]
    return Batch(*cells, *codes, mask=np.ones((B, S), np.float32))


@functools.cache
def compiled(devices):
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    return mesh, compile_step(parts(), mesh)


@functools.cache
def trained(devices, steps=3):
    """(state, metrics of every step, the first input state after its step) on so many devices."""
    mesh, step = compiled(devices)
    state = first = jax.device_put(start(), sharding.replicated(mesh))
    seen = []
    for _ in range(steps):
        state, metrics = step(state, jax.device_put(batch(), sharding.batch_sharding(mesh)))
        seen.append(metrics)
    return jax.device_get(state), jax.device_get(seen), first


def test_eight_devices_do_what_one_does():
    assert len(jax.devices()) == 8
    one, many = trained(1), trained(8)
    assert int(one[0].step) == int(many[0].step) == 3
    for a, b in zip(one[1], many[1]):
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one[0].ema, many[0].ema)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one[0].params, many[0].params)


def drawn(form, seed, runs=1, sets=B, size=S, repeats=True):
    """A batch of the same cells, dense or packed for so many devices."""
    cells = raw_cells(cells=200, genes=G)
    batcher = Batcher(store_of(cells), form, 10.0, blocks=runs)
    return batcher.batch(random_draw([batcher.block(cells)], sets, size, seed, repeats))


@pytest.mark.parametrize("devices", [1, 8])
def test_packed_batches_train_like_dense_ones(devices):
    mesh, step = compiled(devices)
    ends = []
    for form in ("dense", "packed"):
        state = jax.device_put(start(), sharding.replicated(mesh))
        # Without repeats: the distance of equal cells is the root of a rounding error.
        cells = jax.device_put(drawn(form, 0, devices, repeats=False), sharding.batch_sharding(mesh))
        for _ in range(3):
            state, metrics = step(state, cells)
        ends.append((jax.device_get(state), jax.device_get(metrics)))
    (dense, one), (packed, other) = ends
    assert int(packed.step) == 3 and one["loss/total"] > 0
    for name in one:  # the energy distance is a difference of sums, which shows the last bits of its terms
        np.testing.assert_allclose(one[name], other[name], rtol=5e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), dense.params, packed.params)


def test_a_run_over_packed_batches_compiles_few_steps():
    """Thirty batches of cells with 0 to 10 stored values, half of each set repeated: three lengths at most."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    traced = []

    def counted(batch):
        traced.append(batch.data.shape)
        return densify(batch, genes=G, divisor=10.0).perturbed.sum()

    step = jax.jit(counted, in_shardings=sharding.batch_sharding(mesh))
    for seed in range(30):
        step(drawn("packed", seed, sets=8, size=16))
    assert 1 <= len(traced) <= 3, traced


def test_absent_parameters_are_skipped():
    """Two steps on eight devices with two input layers; the second step's sets all come from one source."""
    model = Denoiser(
        ModelOptions(width=16, depth=1, heads=2, covariate_width=4),
        G,
        4,
        2,
        2,
        sources=2,
        cell_type_table=(2, 3),
    )
    optim = OptimOptions(learning_rate=3e-3, warmup_steps=0, eps=1e-3, absent="skip")
    one = dataclasses.replace(
        parts(), model=model, tx=optimizer(optim, 100), objective=ObjectiveOptions(drop_condition=0.0)
    )
    mesh = sharding.make_mesh()
    step, place = compile_step(one, mesh), sharding.batch_sharding(mesh)
    state = jax.jit(lambda: create_state(init_params(model, jax.random.key(0)), one.tx))()
    state = jax.device_put(state, sharding.replicated(mesh))
    states = [jax.device_get(state)]
    for k, source in enumerate((np.arange(B) % 2, np.ones(B))):
        cells = dataclasses.replace(batch(k), source=source.astype(np.int32))
        state, _ = step(state, jax.device_put(cells, place))
        states.append(jax.device_get(state))
    start, first, second = states
    for layer in ("embed_perturbed", "embed_control"):
        before, after = first.params[layer]["kernel"], second.params[layer]["kernel"]
        np.testing.assert_array_equal(before[0], after[0])
        assert np.any(before[1] != after[1]) and np.any(start.params[layer]["kernel"][0] != before[0])
    # The objective drops no covariates, so the null vector is never in the loss; the table is frozen.
    np.testing.assert_array_equal(start.params["null_condition"], second.params["null_condition"])
    frozen = [state.params["covariates"]["frozen_cell_type"] for state in (start, second)]
    np.testing.assert_array_equal(*frozen)
    np.testing.assert_array_equal(second.ema["covariates"]["frozen_cell_type"], frozen[0])
    assert np.any(
        start.params["condition"]["linear"]["kernel"] != second.params["condition"]["linear"]["kernel"]
    )


def test_the_state_is_donated_and_the_step_counted():
    _, metrics, first = trained(1)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
    assert set(metrics[0]) >= {"loss/total", "loss/mse", "loss/energy", "grad_norm"}
    assert all(np.isfinite(value) and np.shape(value) == () for value in metrics[0].values())


def test_every_parameter_learns():
    state, _, _ = trained(1)
    still = [
        jax.tree_util.keystr(path)
        for (path, a), b in zip(
            jax.tree_util.tree_flatten_with_path(state.params)[0], jax.tree.leaves(start().params)
        )
        if np.array_equal(a, b)
    ]
    # The last block's control output is used by nobody (decay alone moves its kernels).
    assert all("last_block" in name and "mlp_u" in name and "bias" in name for name in still), still


def test_the_loss_falls_on_a_fixed_batch():
    _, metrics, _ = trained(1, steps=40)
    loss = np.array([m["loss/total"] for m in metrics])
    assert loss[-8:].mean() < 0.6 * loss[:8].mean()


def test_a_step_is_a_function_of_state_batch_and_seed():
    mesh, step = compiled(1)
    cells = jax.device_put(batch(), sharding.batch_sharding(mesh))
    again = step(jax.device_put(start(), sharding.replicated(mesh)), cells)
    _, metrics, _ = trained(1)
    assert float(again[1]["loss/total"]) == float(metrics[0]["loss/total"])
    later = dataclasses.replace(start(), step=np.int32(7))
    later = step(jax.device_put(later, sharding.replicated(mesh)), cells)
    assert float(later[1]["loss/total"]) != float(metrics[0]["loss/total"])  # other draws at another step
    assert int(later[0].step) == 8


def test_shapes_of_parameters_do_not_depend_on_the_batch():
    shapes = jax.eval_shape(lambda: init_params(parts().model, jax.random.key(0)))
    assert count_parameters(shapes) == count_parameters(start().params)
    jax.tree.map(np.testing.assert_array_equal, start().params, start().ema)


def test_sets_must_be_dealt_evenly():
    sharding.check_divisible(16, sharding.make_mesh())
    with pytest.raises(
        RequestError, match=r"config.loader.sets_per_batch=12: must be a multiple of the 8 devices"
    ):
        sharding.check_divisible(12, sharding.make_mesh())


def test_keys_are_addresses():
    def data(*where):
        return jax.random.key_data(rng.key_for(*where)).tolist()

    assert data(0, "loss", 5) == data(0, "loss", jnp.int32(5))
    places = [
        (seed, purpose, step) for seed in (0, 1, 2**32 - 1) for purpose in rng.PURPOSES for step in (0, 1)
    ]
    assert len({tuple(data(*place)) for place in places}) == len(places)
    with pytest.raises(KeyError, match="losses"):
        rng.key_for(0, "losses")

"""Optimizer: schedule, average, decay, what is frozen and what is skipped. tests/golden compares with recordings."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from perturbdiff_jax.checkpoint import Checkpoints
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.models.mmdit import Denoiser, ModelOptions
from perturbdiff_jax.optim import (
    EmaOptions,
    OptimOptions,
    clip_by_global_norm,
    decayed,
    learning_rate,
    optimizer,
    present_parameters,
    trained,
    update_ema,
)
from perturbdiff_jax.state import create_state, init_params


def test_learning_rate_rises_stays_and_falls_to_its_floor():
    options = OptimOptions(learning_rate=1.0, warmup_steps=10, plateau=0.2, floor=0.1)
    rate = np.array(jax.vmap(learning_rate(options, 100))(jnp.arange(140)))
    np.testing.assert_allclose(rate[:11], np.arange(11) / 10, atol=1e-6)
    np.testing.assert_array_equal(rate[10:31], 1.0)
    assert (np.diff(rate[30:]) <= 0).all() and rate[65] == pytest.approx(0.5, abs=1e-5)
    np.testing.assert_allclose(rate[95:], 0.1, atol=1e-6)


def follow(options, values, start):
    update = jax.jit(lambda ema, value, step: update_ema(options, ema, value, step))
    ema, seen = {"w": jnp.float32(start)}, []
    for step, value in enumerate(values, 1):
        ema = update(ema, {"w": jnp.float32(value)}, jnp.int32(step))
        seen.append(float(ema["w"]))
    return np.array(seen)


def test_the_released_rule_keeps_the_untrained_weights_and_the_default_forgets_them():
    """Weights jump from 0 to 1 after the first step: what is missing to 1 is the share of the start."""
    values = np.append(0.0, np.ones(1999))
    released = follow(EmaOptions(rule="released", decay=0.99, every=10), values, 0.0)[-1]
    assert 1 - released == pytest.approx(0.99**199, rel=1e-3)  # 13 %
    default = follow(EmaOptions(), values, 0.0)
    assert 1 - default[100] < 1e-4 and 1 - default[-1] < 1e-6
    late = follow(EmaOptions(decay=0.99), np.append(np.zeros(1999), 1.0), 0.0)[-1]
    assert late == pytest.approx(0.01, rel=1e-3)  # the decay itself is reached


def test_warmup_with_a_rhythm_waits_in_between():
    found = follow(EmaOptions(decay=0.9, every=3), np.arange(1.0, 8.0), 0.0)
    assert found[0] == found[1] == 0 and found[2] == found[3] == found[4] and found[5] == found[6]
    assert found[2] == pytest.approx(3 * (1 - 2 / 11))


def test_decay_acts_on_all_but_biases():
    model = Denoiser(ModelOptions(width=8, depth=2, heads=2, covariate_width=4), 6, 3, 2, 2)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    flat = jax.tree_util.tree_flatten_with_path(decayed(shapes))[0]
    assert {path[-1].key for path, value in flat if not value} == {"bias"}
    assert {"kernel", "gene_vector", "null_condition"} <= {path[-1].key for path, value in flat if value}


def test_updates_are_clipped_adamw_with_decoupled_decay():
    params = {"kernel": jnp.array([2.0, -1.0]), "bias": jnp.array([1.0])}
    gradients = {"kernel": jnp.array([30.0, 40.0]), "bias": jnp.array([0.0])}
    options = OptimOptions(learning_rate=0.1, warmup_steps=0, weight_decay=0.5, plateau=1.0, eps=0.5)
    tx = optimizer(options, 10)
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(gradients, state, params)
    m, v, g = 0.0, 0.0, np.array([0.6, 0.8])  # clipped to norm 1
    for _ in range(2):
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g**2
    adam = (m / (1 - 0.9**2)) / (np.sqrt(v / (1 - 0.98**2)) + 0.5)
    np.testing.assert_allclose(updates["kernel"], -0.1 * (adam + 0.5 * np.array([2.0, -1.0])), rtol=1e-5)
    np.testing.assert_allclose(updates["bias"], 0.0, atol=1e-7)
    assert float(optax.global_norm(gradients)) == 50


def test_clipping_divides_by_a_little_more_than_the_norm():
    clip = clip_by_global_norm(2.0)
    for size, want in ((8.0, 8.0 * 2.0 / (8.0 + 1e-6)), (1e-3, 1e-3), (2.0, 2.0 * 2.0 / (2.0 + 1e-6))):
        found, _ = clip.update({"a": jnp.array([size]), "b": jnp.zeros(2)}, clip.init(None))
        assert float(found["a"][0]) == pytest.approx(want, rel=1e-7)
    assert float(clip.update({"a": jnp.zeros(3)}, clip.init(None))[0]["a"].sum()) == 0  # no 0 / 0


# Two sources, a frozen table and doses: every kind of parameter that may be absent.
MODEL = Denoiser(
    ModelOptions(width=8, depth=2, heads=2, covariate_width=4), 6, 3, 2, 2,
    sources=2, cell_type_table=(2, 5), dose_codes=(0, 1, 0),
)  # fmt: skip
FROZEN = ("covariates", "frozen_cell_type")


@functools.cache
def params():
    drawn = init_params(MODEL, jax.random.key(0))
    # Modulation starts at zero; decay and moments must have something to move.
    return jax.tree.map(lambda leaf: leaf + 0.1, drawn)


def flat(tree):
    return {
        tuple(key.key for key in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def gradients(step):
    """Random gradients, small enough that clipping stays out of it."""
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda p: jnp.float32(1e-4 * rng.normal(size=p.shape)), params())


OPTIONS = OptimOptions(learning_rate=1e-2, warmup_steps=0, plateau=1.0, absent="skip")


@functools.cache
def compiled(options):
    tx = optimizer(options, 100)

    def update(gradients, state, now, drop, source):
        present = present_parameters(now, drop, source)
        updates, state = tx.update(gradients, state, now, present=present)
        return optax.apply_updates(now, updates), state

    return jax.jit(tx.init), jax.jit(update)


def run(options, steps):
    """Parameters and state after [(gradients, drop, source), ...]."""
    init, update = compiled(options)
    now, state = params(), init(params())
    for given, drop, source in steps:
        now, state = update(given, state, now, jnp.asarray(drop), jnp.asarray(source))
    return flat(now), state


ALL = [True, False], [0, 1]  # covariates dropped in some sets only, every source


def test_skipping_nothing_is_plain_adamw():
    steps = [(gradients(k), *ALL) for k in range(3)]
    skip, _ = run(OPTIONS, steps)
    zero, _ = run(dataclasses.replace(OPTIONS, absent="zero"), steps)
    start = flat(params())
    for path, value in skip.items():
        if path[:2] != ("last_block", "mlp_u"):
            np.testing.assert_allclose(value, zero[path], rtol=1e-5, atol=1e-7, err_msg=str(path))
            assert path == FROZEN or np.abs(value - start[path]).max() > 1e-3, path
        else:  # never in the loss: plain AdamW moves it all the same
            np.testing.assert_array_equal(value, start[path])
            assert np.any(zero[path] != start[path])


@pytest.mark.parametrize(
    ("drop", "source", "absent"),
    [
        ([True, True], [0, 1], {"covariates", "condition"}),
        ([False, False], [1, 0], {"null_condition"}),
    ],
)
def test_a_skipped_step_is_as_if_it_had_not_been(drop, source, absent):
    """Three steps, absent in the second = two steps: moments, decay and bias correction stand still."""
    three, _ = run(OPTIONS, [(gradients(0), *ALL), (gradients(1), drop, source), (gradients(2), *ALL)])
    two, _ = run(OPTIONS, [(gradients(0), *ALL), (gradients(2), *ALL)])
    for path, value in three.items():
        if path[0] in absent or path[:2] == ("last_block", "mlp_u"):
            np.testing.assert_array_equal(value, two[path], err_msg=str(path))
        else:
            assert path == FROZEN or np.abs(value - two[path]).max() > 1e-4, path


def test_an_absent_source_stands_still_by_itself():
    three, state = run(OPTIONS, [(gradients(0), *ALL), (gradients(1), ALL[0], [1, 1]), (gradients(2), *ALL)])
    two, _ = run(OPTIONS, [(gradients(0), *ALL), (gradients(2), *ALL)])
    for layer in ("embed_perturbed", "embed_control"):
        for part in ("kernel", "bias"):
            value, other = three[layer, part], two[layer, part]
            np.testing.assert_array_equal(value[0], other[0])
            assert np.abs(value[1] - other[1]).max() > 1e-4
    taken = flat(state[1].taken)
    np.testing.assert_array_equal(taken["embed_control", "kernel"].ravel(), [2, 3])
    assert taken["time", "out", "kernel"] == 3 and taken["last_block", "mlp_u", "out", "linear", "bias"] == 0
    for moments in (state[1].mu, state[1].nu):
        assert jax.tree.map(jnp.shape, moments) == jax.tree.map(jnp.shape, params())


def test_one_shared_input_layer_is_always_present():
    model = dataclasses.replace(MODEL, sources=0)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    present = flat(present_parameters(shapes, jnp.zeros(2, bool)))
    absent = {path[:2] for path, here in present.items() if not here}
    assert absent == {("null_condition",), FROZEN, ("last_block", "mlp_u")}
    # Sources, but the batch does not say which: 0.
    two = flat(present_parameters(params(), jnp.zeros(2, bool)))
    np.testing.assert_array_equal(two["embed_control", "bias"], [[True], [False]])


@pytest.mark.parametrize("absent", ["zero", "skip"])
def test_frozen_tables_never_move(absent):
    assert [path for path, moves in flat(trained(params())).items() if not moves] == [FROZEN]
    options = dataclasses.replace(OPTIONS, absent=absent, weight_decay=0.5)
    moved, _ = run(options, [(gradients(k), *ALL) for k in range(2)])
    np.testing.assert_array_equal(moved[FROZEN], flat(params())[FROZEN])
    for rule in ("warmup", "released"):
        ema = flat(update_ema(EmaOptions(rule=rule, decay=0.7), params(), params(), jnp.int32(5)))
        np.testing.assert_array_equal(ema[FROZEN], flat(params())[FROZEN])


def test_the_state_of_skipping_survives_a_checkpoint(tmp_path):
    tx = optimizer(OPTIONS, 100)
    state = create_state(params(), tx)
    present = present_parameters(params(), jnp.array([True]), jnp.array([1]))
    _, opt_state = jax.jit(tx.update)(gradients(0), state.opt_state, params(), present=present)
    state = dataclasses.replace(state, step=jnp.int32(1), opt_state=opt_state)
    checkpoints = Checkpoints(tmp_path / "bundle", metric="energy", mode="min", keep=1)
    checkpoints.save(state, {"energy": 1.0})
    checkpoints.close()
    again = Checkpoints(tmp_path / "bundle", metric="energy", mode="min", keep=1)
    found = again.restore(1, create_state(params(), tx))
    again.close()
    assert jax.tree.structure(found) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, found.opt_state, state.opt_state)


def test_unknown_way_with_absent_parameters():
    with pytest.raises(RequestError, match=r"optim\.absent='drop': allowed are zero, skip"):
        OptimOptions(absent="drop")

"""Optimizer: the released schedule and average, and an average that forgets its start."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from perturbdiff_jax.models.mmdit import Denoiser, ModelOptions
from perturbdiff_jax.optim import EmaOptions, OptimOptions, decayed, learning_rate, optimizer, update_ema
from perturbdiff_jax.state import init_params


@pytest.mark.parametrize(
    ("name", "warmup", "steps", "floor", "plateau"),
    [
        ("factor_w200_t2000_min0p1_plat0p1", 200, 2000, 0.1, 0.1),
        ("factor_w5_t50_min0_plat0", 5, 50, 0.0, 0.0),
        ("factor_w0_t20_min0p1_plat1", 0, 20, 0.1, 1.0),
    ],
)
def test_recorded_learning_rates(shared, name, warmup, steps, floor, plateau):
    recorded = np.load(shared / "golden/common/lr_schedule.npz")[name]
    options = OptimOptions(learning_rate=2e-4, warmup_steps=warmup, floor=floor, plateau=plateau)
    rates = jax.vmap(learning_rate(options, steps))(jnp.arange(len(recorded)))
    np.testing.assert_allclose(rates, 2e-4 * recorded, rtol=2e-5, atol=1e-10)


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


def test_recorded_average_of_the_released_rule(shared):
    recorded = np.load(shared / "golden/common/ema_rule.npz")
    values = recorded["value"]
    want = recorded["ema"]
    found = [
        decay
        for decay in (0.9, 0.99, 0.999, 0.9999)
        if np.allclose(
            follow(EmaOptions(rule="released", decay=decay, every=10), values, 7.0), want, rtol=1e-5
        )
    ]
    assert found  # the decay is not in the file; only the released rule fits any
    for rule, every in (("warmup", 10), ("released", 9)):
        assert not np.allclose(
            follow(EmaOptions(rule=rule, decay=found[0], every=every), values, 7.0), want, rtol=1e-5
        )
    moved = np.diff(np.append(values[0], want)) != 0
    assert set(np.flatnonzero(moved)) <= set(np.flatnonzero(recorded["should_update_step_idx"]))


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

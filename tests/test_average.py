"""The average of the weights: its two rules, its rhythm, and what a step without an update costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturbdiff_jax.optim import EmaOptions, update_ema


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


@pytest.mark.parametrize("rule", ["warmup", "released"])
def test_between_two_updates_the_average_is_neither_read_nor_copied(rule):
    """With donated weights nothing is as large as they are but the update itself, and that is in a branch."""
    options, shape = EmaOptions(rule=rule, every=10), {"w": jax.ShapeDtypeStruct((64, 1000), jnp.float32)}

    def step(params, ema, number):
        params = jax.tree.map(lambda p: p * 0.5, params)
        return params, update_ema(options, ema, params, number)

    number = jax.ShapeDtypeStruct((), jnp.int32)
    program = jax.jit(step, donate_argnums=(0, 1)).lower(shape, shape, number).compile()
    assert program.memory_analysis().temp_size_in_bytes < 64_000
    (branches,) = [
        equation.params["branches"]
        for equation in jax.make_jaxpr(step)(shape, shape, number).eqns
        if equation.primitive.name == "cond"
    ]
    assert min(len(branch.jaxpr.eqns) for branch in branches) == 0

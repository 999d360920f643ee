"""The objective: its two terms, the mask, the coins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturbdiff_jax.diffusion.objective import Draws, ObjectiveOptions, draw, set_losses, training_loss
from perturbdiff_jax.diffusion.schedule import Schedule
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.kernels.energy_distance import energy_distance

SCHEDULE = Schedule()
B, S, G = 3, 6, 4


@pytest.fixture
def cells():
    rng = np.random.default_rng(0)
    return jnp.float32(rng.random((B, S, G))), jnp.float32(rng.random((B, S, G)))


def draws(**given):
    base = {
        "t": jnp.array([5, 100, 900]),
        "eps": jax.random.normal(jax.random.key(0), (B, S, G)),
        "drop": jnp.zeros(B, bool),
        "drop_control": jnp.zeros(B, bool),
        "self_condition": jnp.zeros(B, bool),
    }
    return Draws(**base | given)


def constant(xt, *_):
    return jnp.full_like(xt, 0.5)


def losses(denoise, cells, mask=None, options=None, **given):
    mask = jnp.ones((B, S)) if mask is None else mask
    options = options or ObjectiveOptions()
    return set_losses(denoise, *cells, mask, draws(**given), schedule=SCHEDULE, options=options)


def test_terms_and_weights(cells):
    mse, energy = losses(constant, cells)
    half = jnp.full((B, S, G), 0.5)
    np.testing.assert_allclose(mse, np.square(cells[0] - 0.5).mean((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(energy, energy_distance(cells[0], half), rtol=1e-6)
    options = ObjectiveOptions(mse_weight=2.0, mmd_weight=3.0)
    total, parts = training_loss(
        constant, *cells, jnp.ones((B, S)), draws(), schedule=SCHEDULE, options=options
    )
    assert float(total) == pytest.approx(float(2 * mse.mean() + 3 * energy.mean()), rel=1e-6)
    assert set(parts) == {"loss/total", "loss/mse", "loss/energy"}


def test_masked_cells_do_not_count_unless_asked(cells):
    mask = jnp.ones((B, S)).at[:, -1].set(0.0)
    spoiled = (cells[0].at[:, -1].set(9.0), cells[1])
    for a, b in zip(losses(constant, cells, mask), losses(constant, spoiled, mask)):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    whole = losses(constant, spoiled, mask, ObjectiveOptions(use_mask=False))
    assert float(whole[0][0]) > 2 * float(losses(constant, spoiled, mask)[0][0])


def test_no_gradient_through_the_first_pass(cells):
    def denoise(weight):
        return lambda xt, t, control, drop, previous, _: weight * xt + (0.0 if previous is None else previous)

    def loss(weight, **given):
        return losses(denoise(weight), cells, **given)[0].sum()

    on = jnp.ones(B, bool)
    step = (loss(1.01, self_condition=on) - loss(0.99, self_condition=on)) / 0.02
    plain = jax.grad(loss)(1.0)
    fed = jax.grad(lambda w: loss(w, self_condition=on))(1.0)
    assert not np.isclose(fed, plain, rtol=1e-2)  # the fed-back estimate moves the residual
    assert not np.isclose(fed, step, rtol=1e-2)  # but is not differentiated


def test_self_conditioning_reaches_only_the_sets_that_asked(cells):
    def denoise(xt, t, control, drop, previous, fed_back):
        return (jnp.zeros_like(xt) if previous is None else previous) + 1.0

    mse, _ = losses(denoise, cells, self_condition=jnp.array([True, False, False]))
    want = [np.square(cells[0][0] - 2.0).mean(), np.square(cells[0][1] - 1.0).mean()]
    np.testing.assert_allclose(mse[:2], want, rtol=1e-5)


def test_dropped_control_is_zero(cells):
    mse, _ = losses(lambda xt, t, control, *_: control, cells, drop_control=jnp.array([True, False, False]))
    np.testing.assert_allclose(mse[0], np.square(cells[0][0]).mean(), rtol=1e-6)
    np.testing.assert_allclose(mse[1], np.square(cells[0][1] - cells[1][1]).mean(), rtol=1e-6)


@pytest.mark.parametrize("per", ["set", "batch"])
def test_coins(per):
    options = ObjectiveOptions(per=per, drop_condition=0.25, self_condition=1.0, drop_control=0.0)
    tossed = [draw(jax.random.key(i), (8, 2, 3), SCHEDULE, options) for i in range(200)]
    drop = np.array([d.drop for d in tossed])
    assert drop.mean() == pytest.approx(0.25, abs=0.1)
    mixed = ((drop.sum(1) > 0) & (drop.sum(1) < 8)).mean()
    assert mixed == 0 if per == "batch" else mixed > 0.5
    assert all(np.asarray(d.self_condition).all() and not np.asarray(d.drop_control).any() for d in tossed)
    t = np.concatenate([d.t for d in tossed])
    assert t.min() >= 0 and t.max() <= 999 and t.mean() == pytest.approx(500, abs=40)


def test_wrong_options():
    with pytest.raises(RequestError, match=r"drop_condition=1\.5"):
        ObjectiveOptions(drop_condition=1.5)
    with pytest.raises(RequestError, match="nor both 0"):
        ObjectiveOptions(mse_weight=0.0, mmd_weight=0.0)
    with pytest.raises(RequestError, match="set, batch"):
        ObjectiveOptions(per="cell")

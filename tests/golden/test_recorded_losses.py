"""The forward process, its identities, and the training loss with every random choice fixed.

The recorded `pred_x_control` has no counterpart here (see test_recorded_network.py) and no part in the loss.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from recorded import ENERGY, FORWARD, SCHEDULE, agree

from perturbdiff_jax.diffusion import process

VARIANTS = ("cond_sc0", "cond_sc1", "uncond_sc1", "dropcontrol_cond_sc0")


def test_forward_process(case):
    recorded = {name: np.asarray(a) for name, a in case.load("q_sample").items()}
    t, x0, xt, noise = (jnp.asarray(recorded[k]) for k in ("t", "x_start", "post_x_t", "noise32"))
    sampled = process.q_sample(SCHEDULE, x0, t, noise)
    agree("noised cells", case.name, sampled, recorded["x_t_from_noise32"], atol=1e-6)
    sampled = process.q_sample(SCHEDULE, x0, t, jnp.asarray(recorded["noise64"], jnp.float32))
    agree("noised cells, float64", case.name, sampled, recorded["x_t_from_noise64"], atol=1e-6)
    for name, moments, atol in (
        ("post", process.posterior(SCHEDULE, x0, xt, t), 1e-6),
        ("q", process.marginal(SCHEDULE, x0, t), 1e-6),
    ):
        what = {"post": "posterior", "q": "marginal"}[name]
        for part, ours in zip(("mean", "variance", "log_variance"), moments):
            theirs = recorded[f"{name}_{part}"]
            label = f"{what} {part.replace('_', ' ')}"
            agree(label, case.name, jnp.broadcast_to(ours, theirs.shape), theirs, atol=atol)
    eps = process.eps_from_x0(SCHEDULE, xt, t, x0)
    # At t = 0 the noise is the difference of cells divided by 0.01: that many times their rounding.
    agree("eps of x0", case.name, eps, recorded["eps_from_xstart"], atol=1e-4)
    back = process.x0_from_eps(SCHEDULE, xt, t, noise)
    agree("x0 of eps", case.name, back, recorded["xstart_from_eps"], atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_loss(case, variant):
    recorded, network = case.load(f"train_{variant}"), case.network
    coins = {name: recorded[name] for name in ("self_cond", "drop_control")}
    draws = network.draws(recorded["t"], recorded["noise"], drop=recorded["drop_cond"], **coins)
    mse, energy, (last, estimate) = network.losses(case.inputs["x_start"], case.inputs["control"], draws)
    xt, t, control, drop, previous, fed_back = last
    assert recorded["n_model_calls"] == 1 + bool(recorded["self_cond"]) == 1 + bool(fed_back)
    np.testing.assert_array_equal(t, recorded["t"])
    np.testing.assert_array_equal(drop, bool(recorded["drop_cond"]))
    agree("loss: noised cells", case.name, xt, recorded["x_t"], atol=1e-6)  # float64 there
    doubled = jnp.concatenate([control, jnp.zeros_like(control)], axis=-1)
    agree("loss: control input", case.name, doubled, recorded["control_in"], atol=0)
    agree("loss: fed-back estimate", case.name, previous, recorded["x0_selfcond"], atol=FORWARD)
    agree("loss: estimate", case.name, estimate, recorded["pred_x"], atol=FORWARD)
    agree("loss: squared error of each set", case.name, mse, recorded["mse1"], atol=FORWARD)
    agree("loss: energy of each set", case.name, energy, recorded["mmd1_per_set"], atol=ENERGY)
    agree("loss: squared error", case.name, mse.mean(), recorded["mse1_mean"], atol=FORWARD)
    agree("loss: energy", case.name, energy.mean(), recorded["mmd1_mean"], atol=ENERGY)
    agree("loss: total", case.name, mse.mean() + energy.mean(), recorded["total"], atol=ENERGY)
    if variant == "cond_sc1":
        exact = json.loads((case.folder / "tolerance.json").read_text())["loss_f64"]
        agree("loss: total, float64", case.name, mse.mean() + energy.mean(), exact, atol=ENERGY)


def test_what_a_wrong_coin_would_do(case):
    """The four variants differ by much more than the tolerances, so that agreeing says something."""
    totals = [float(case.load(f"train_{variant}")["total"]) for variant in VARIANTS[:3]]
    assert min(abs(a - b) for i, a in enumerate(totals) for b in totals[:i]) > 20 * ENERGY

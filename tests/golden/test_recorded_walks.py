"""The reverse process: statistics of a step, single steps, whole walks.

The recorded `pred_xstart_control` has no counterpart here (see test_recorded_network.py). In case3 the network was
trained without control cells, and the released sampler shows it zeros.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from recorded import FORWARD, SCHEDULE, WALK, agree

from perturbdiff_jax.diffusion.samplers import SamplerOptions, ddim_step, ddpm_step

# Guidance is done on the noise. Back on x0 this multiplies rounding by up to 150 (at t = 999), both there and here.
GUIDED = 2e-4


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_statistics_of_a_step(case, guidance):
    recorded, network = case.load(f"p_mean_variance_g{guidance}"), case.network
    x, t, previous = (jnp.asarray(recorded[name]) for name in ("x", "t", "prev_pred"))
    *moments, x0 = network.moments(guidance)(x, t, network.control(case.inputs["control"]), previous)
    atol = GUIDED if guidance else FORWARD
    agree(f"x0 estimate of a step, guidance {guidance:g}", case.name, x0, recorded["pred_xstart"], atol=atol)
    for name, ours, atol in zip(("mean", "variance", "log_variance"), moments, (FORWARD, 1e-7, 1e-6)):
        label = f"{name.replace('_', ' ')} of a step, guidance {guidance:g}"
        theirs = recorded[name]
        agree(label, case.name, jnp.broadcast_to(ours, theirs.shape), theirs, atol=atol)


def test_single_steps(case):
    recorded, network = case.load("single_steps"), case.network
    x, t, previous, noise = (jnp.asarray(recorded[name]) for name in ("x", "t", "prev_pred", "step_noise"))
    control = network.control(case.inputs["control"])
    guided, plain = (network.moments(guidance)(x, t, control, previous)[-1] for guidance in (1.0, 0.0))
    ddpm = ddpm_step(x, guided, t, noise, schedule=SCHEDULE, noise_weight=0.5)
    agree("DDPM step", case.name, ddpm, recorded["p_sample_g1_nw05"], atol=FORWARD)
    for name, what, x0, eta in (
        ("ddim_g1_eta07", "DDIM step, eta 0.7, guidance 1", guided, 0.7),
        ("ddim_g0_eta0", "DDIM step, eta 0, guidance 0", plain, 0.0),
    ):
        ours = ddim_step(x, x0, t, t - 1, noise, schedule=SCHEDULE, eta=eta)
        agree(what, case.name, ours, recorded[name], atol=FORWARD)
    for name, x0, atol in (
        ("p_sample_g1", guided, GUIDED),
        ("ddim_g1_eta07", guided, GUIDED),
        ("ddim_g0_eta0", plain, FORWARD),
    ):
        agree("x0 estimate of a single step", case.name, x0, recorded[f"{name}_pred_xstart"], atol=atol)


@pytest.mark.parametrize(
    ("name", "guidance"), [("ddim_loop_g0_T10", 0.0), ("ddim_loop_g1_T10", 1.0), ("ddpm_loop_g1_T4", 1.0)]
)
def test_walks(case, name, guidance):
    """Step by step through the parts of the sampler, and in one go through the sampler itself."""
    recorded, network = case.load(name), case.network
    kind, steps = name.split("_")[0], len(recorded["steps_t"])
    start, control = jnp.asarray(recorded["init_noise"]), network.control(case.inputs["control"])
    noise = jnp.asarray(recorded["step_noise"]) if "step_noise" in recorded else None
    label = f"{kind.upper()} walk, guidance {guidance:g}"
    x, x0 = start, jnp.zeros_like(start)
    for i, now in enumerate(recorded["steps_t"]):
        t = jnp.full(network.sets, int(now))
        x0 = network.moments(guidance)(x, t, control, x0)[-1]
        if kind == "ddim":
            x = ddim_step(x, x0, t, t - 1, jnp.zeros_like(x), schedule=SCHEDULE, eta=0.0)
        else:
            x = ddpm_step(x, x0, t, noise[i], schedule=SCHEDULE, noise_weight=0.5)
        agree(f"{label}: x0 of every step", case.name, x0, recorded["pred_xstart"][i], atol=WALK)
        agree(f"{label}: sample of every step", case.name, x, recorded["samples"][i], atol=WALK)
    options = SamplerOptions(name=kind, start=steps, steps=steps, guidance=guidance)
    ours = network.walk(options, case.inputs["control"], start, noise)
    agree(label, case.name, ours, recorded["final"], atol=WALK)
    np.testing.assert_array_equal(recorded["steps_t"], np.arange(steps)[::-1])
    assert 0.2 < (ours > 0).mean() < 0.9  # both sides of the cut-off are met

"""Samplers: with the exact denoiser of a Gaussian they must recover its moments; walks, guidance, cut-off."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturbdiff_jax.diffusion import samplers
from perturbdiff_jax.diffusion.samplers import SamplerOptions, sample, timesteps
from perturbdiff_jax.diffusion.schedule import Schedule
from perturbdiff_jax.errors import RequestError

MEAN, SPREAD = 2.0, 0.3  # far above zero, so that the cut-off never acts
SCHEDULE = Schedule()


def gaussian(xt, t, control, drop, previous):
    """E[x0 | xt] of N(MEAN, SPREAD^2): the exact denoiser."""
    a = jnp.asarray(SCHEDULE.alpha_bar, jnp.float32)[t][:, None, None]
    gain = jnp.sqrt(a) * SPREAD**2 / (a * SPREAD**2 + 1 - a)
    x0 = MEAN + gain * (xt - jnp.sqrt(a) * MEAN)
    return x0 if drop is None else jnp.concatenate([x0] * (len(drop) // len(xt)))


def walk(options, denoise=gaussian, control=None, **arguments):
    control = jnp.zeros((2, 400, 5)) if control is None else control
    keys = jax.random.split(jax.random.key(3), control.shape[0])
    return np.asarray(sample(denoise, control, schedule=SCHEDULE, options=options, keys=keys, **arguments))


@pytest.mark.parametrize(
    "options",
    [
        SamplerOptions(name="ddim", steps=200),
        SamplerOptions(name="ddim", steps=200, eta=1.0),
        SamplerOptions(name="ddpm", steps=1000),
        SamplerOptions(name="ddpm", steps=1000, variance="small"),
        SamplerOptions(name="ddim", steps=200, spacing="log_snr"),
        SamplerOptions(name="fast", steps=12, spacing="log_snr"),
        SamplerOptions(name="fast", steps=200),
    ],
    ids=lambda o: f"{o.name}-{o.steps}-{o.eta}-{o.variance}-{o.spacing}",
)
def test_recovers_a_gaussian(options):
    cells = walk(options)
    assert cells.mean() == pytest.approx(MEAN, abs=0.03)
    assert cells.std() == pytest.approx(SPREAD, rel=0.08)


@pytest.mark.parametrize("spacing", samplers.SPACINGS)
def test_fast_beats_ddim_at_equal_cost(spacing):
    exact = walk(SamplerOptions(name="ddim", steps=1000))
    errors = {
        name: np.abs(walk(SamplerOptions(name=name, steps=10, spacing=spacing)) - exact).mean()
        for name in ("ddim", "fast")
    }
    assert errors["fast"] < {"log_snr": 0.2, "time": 0.7}[spacing] * errors["ddim"]


def test_steps_even_in_log_signal_to_noise_are_finer_where_cells_are_all_but_clean():
    even, fine = (
        timesteps(SCHEDULE, SamplerOptions(steps=10, spacing=spacing)) for spacing in samplers.SPACINGS
    )
    np.testing.assert_array_equal(even, np.arange(999, -1, -111))
    log_snr = np.log(SCHEDULE.alpha_bar / (1 - SCHEDULE.alpha_bar))[fine]
    assert fine[0] == 999 and fine[-1] == 0
    np.testing.assert_allclose(np.diff(log_snr)[:6], (log_snr[-1] - log_snr[0]) / 9, rtol=0.15)


@pytest.mark.parametrize("spacing", samplers.SPACINGS)
@pytest.mark.parametrize("name", ["ddim", "fast"])
@pytest.mark.parametrize(("start", "steps"), [(100, 100), (1000, 7), (10, 10), (1000, 1), (20, 19)])
def test_walks_go_down_to_zero_without_repeats(name, start, steps, spacing):
    visited = timesteps(SCHEDULE, SamplerOptions(name=name, start=start, steps=steps, spacing=spacing))
    assert len(visited) == steps and visited[0] == start - 1
    assert (np.diff(visited) < 0).all()
    assert steps == 1 or visited[-1] == 0


def test_guidance_is_linear_extrapolation_and_none_costs_one_pass():
    calls = []

    def denoise(xt, t, control, drop, previous):
        calls.append((xt.shape[0], drop.shape[0]))
        return jnp.where(drop[:, None, None], 0.3, 0.5) * jnp.ones_like(xt[:1])

    for weight, branches, want in ((0.0, 1, 0.5), (1.0, 2, 0.7)):
        calls.clear()
        cells = walk(SamplerOptions(start=10, steps=1, guidance=weight), denoise)
        np.testing.assert_allclose(cells, want, atol=1e-4)
        assert calls[0] == (2, 2 * branches)


def test_small_and_negative_values_become_zero():
    cells = walk(SamplerOptions(start=5, steps=5), lambda xt, *_: jnp.full_like(xt, 0.9e-4))
    assert (cells == 0).all()


def test_self_conditioning_feeds_the_previous_estimate():
    def count(xt, t, control, drop, previous):
        return previous + 1.0

    np.testing.assert_allclose(walk(SamplerOptions(start=6, steps=6), count), 6.0)


@pytest.mark.parametrize("variance", ["large", "small"])
def test_a_ddpm_step_draws_what_the_statistics_say(variance):
    options = SamplerOptions(name="ddpm", start=5, steps=5, variance=variance, guidance=0.5)
    xt, t = jnp.full((3, 4, 2), 1.7), jnp.array([0, 1, 500])
    mean, spread, log_spread, x0 = samplers.p_mean_variance(
        gaussian, SCHEDULE, options, xt, t, jnp.zeros_like(xt), jnp.zeros_like(xt)
    )
    np.testing.assert_allclose(x0, gaussian(xt, t, None, None, None), rtol=1e-4)  # both branches are equal
    noise = jnp.full_like(xt, -1.3)
    step = samplers.ddpm_step(xt, x0, t, noise, schedule=SCHEDULE, noise_weight=0.5, variance=variance)
    np.testing.assert_array_equal(step[0], mean[0])
    np.testing.assert_allclose(step[1:], (mean - 1.3 * jnp.sqrt(spread))[1:], rtol=1e-5)
    np.testing.assert_allclose(jnp.exp(log_spread)[1:], spread[1:], rtol=1e-5)
    wanted = {"large": SCHEDULE.beta, "small": SCHEDULE.posterior_variance}[variance][[1, 500]]
    np.testing.assert_allclose(spread[1:, 0, 0], wanted, rtol=1e-5)


def test_a_set_does_not_depend_on_its_neighbours():
    control = jnp.zeros((3, 8, 4))
    keys = jax.random.split(jax.random.key(0), 3)
    options = SamplerOptions(name="ddim", start=50, steps=5, eta=1.0)
    arguments = {"schedule": SCHEDULE, "options": options}
    together = sample(gaussian, control, keys=keys, **arguments)
    alone = sample(gaussian, control[:1], keys=keys[2:], **arguments)
    np.testing.assert_allclose(together[2:], alone, atol=1e-6)


def test_start_from_control_cells():
    control = jnp.full((1, 500, 2), 4.0)
    got = walk(SamplerOptions(start=100, steps=1, init="control"), lambda xt, *_: xt, control)
    level = SCHEDULE.alpha_bar[99]
    assert got.mean() == pytest.approx(4.0 * np.sqrt(level), abs=0.05)
    assert got.std() == pytest.approx(np.sqrt(1 - level), rel=0.1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "euler"}, "ddim, ddpm, fast"),
        ({"steps": 0}, "between 1 and start=1000"),
        ({"start": 10, "steps": 11}, "between 1 and start=10"),
        ({"name": "ddpm", "start": 100, "steps": 10}, "must equal start=100"),
        ({"init": "zeros"}, "noise, control"),
        ({"eta": -1.0}, "not be negative"),
        ({"variance": "learned"}, "large, small"),
        ({"spacing": "even"}, "time, log_snr"),
    ],
)
def test_wrong_options(given, said):
    with pytest.raises(RequestError, match=said):
        SamplerOptions(**given)


def test_start_beyond_the_schedule():
    with pytest.raises(RequestError, match="has 100 timesteps"):
        samplers.timesteps(Schedule(steps=100), SamplerOptions(start=200, steps=10))

"""Schedules against their definitions; identities of the forward process. tests/golden has the recorded tables."""

import jax.numpy as jnp
import numpy as np
import pytest

from perturbdiff_jax.diffusion import process
from perturbdiff_jax.diffusion.schedule import SCHEDULES, Schedule
from perturbdiff_jax.errors import RequestError


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [10, 250, 1000])
def test_bounds(name, steps):
    schedule = Schedule(name=name, steps=steps)
    assert schedule.beta.shape == (steps,) and schedule.beta.dtype == np.float64
    assert (schedule.beta > 0).all() and (schedule.beta <= 0.999).all()
    assert (np.diff(schedule.alpha_bar) < 0).all()
    assert schedule.alpha_bar_previous[0] == 1.0
    assert schedule.large_variance[0] == schedule.posterior_variance[1]


def test_linear_ends_scale_with_the_number_of_steps():
    assert Schedule(steps=1000).beta[[0, -1]] == pytest.approx([1e-4, 0.02])
    assert Schedule(steps=500).beta[[0, -1]] == pytest.approx([2e-4, 0.04])


def test_unknown_schedule_lists_the_known():
    with pytest.raises(RequestError, match=r"linear, cosine, power_cosine"):
        Schedule(name="sqrt")


def test_noising_and_its_inverse():
    rng = np.random.default_rng(0)
    schedule, t = Schedule(), jnp.array([0, 99, 999])
    x0, eps = (jnp.float32(rng.normal(size=(3, 4, 5))) for _ in range(2))
    xt = process.q_sample(schedule, x0, t, eps)
    a = schedule.alpha_bar[[0, 99, 999]][:, None, None]
    np.testing.assert_allclose(xt, np.sqrt(a) * x0 + np.sqrt(1 - a) * eps, atol=1e-6)
    np.testing.assert_allclose(process.eps_from_x0(schedule, xt, t, x0), eps, atol=1e-4)
    np.testing.assert_allclose(process.x0_from_eps(schedule, xt, t, eps)[:2], x0[:2], atol=1e-5)


def test_posterior_mean_by_bayes():
    """q(x_{t-1} | x_t, x_0) from the product of two Gaussians, in float64."""
    schedule, t = Schedule(), 300
    beta, before = schedule.beta[t], schedule.alpha_bar[t - 1]
    x0, xt = 0.7, -0.2
    precision = (1 - beta) / beta + 1 / (1 - before)
    mean = (np.sqrt(1 - beta) * xt / beta + np.sqrt(before) * x0 / (1 - before)) / precision
    got = process.posterior_mean(schedule, jnp.full((1, 1, 1), x0), jnp.full((1, 1, 1), xt), jnp.array([t]))
    np.testing.assert_allclose(float(got[0, 0, 0]), mean, rtol=1e-5)
    np.testing.assert_allclose(schedule.posterior_variance[t], 1 / precision, rtol=1e-9)
    np.testing.assert_allclose(schedule.posterior_log_variance[t], -np.log(precision), rtol=1e-9)


def test_moments_of_the_forward_process_and_of_the_posterior():
    schedule, t = Schedule(), jnp.array([0, 1, 300])
    x0, xt = jnp.full((3, 2, 4), 0.7), jnp.full((3, 2, 4), -0.2)
    mean, variance, log_variance = process.marginal(schedule, x0, t)
    assert mean.shape == x0.shape and variance.shape == log_variance.shape == (3, 1, 1)
    noise = 1 - schedule.alpha_bar[[0, 1, 300]]
    np.testing.assert_allclose(variance[:, 0, 0], noise, rtol=1e-6)
    np.testing.assert_allclose(np.exp(log_variance[:, 0, 0]), noise, rtol=1e-5)
    np.testing.assert_allclose(mean, process.q_sample(schedule, x0, t, jnp.zeros_like(x0)), rtol=1e-6)
    mean, variance, log_variance = (np.asarray(a) for a in process.posterior(schedule, x0, xt, t))
    np.testing.assert_array_equal(mean, process.posterior_mean(schedule, x0, xt, t))
    assert variance[0] == 0 and (np.exp(log_variance[1:]) == pytest.approx(variance[1:], rel=1e-5))
    assert log_variance[0] == log_variance[1]  # not the logarithm of 0

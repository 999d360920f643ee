"""The forward process and the identities between x_t, x_0 and eps (method 1). Pure functions on arrays.

Timesteps `t` are one per set ([B]); cells are [B, S, G]. Tables are float64 in the schedule and cast here, once.
"""

import jax
import jax.numpy as jnp
import numpy as np

from perturbdiff_jax.diffusion.schedule import Schedule


def at(table: np.ndarray, t: jax.Array) -> jax.Array:
    """Reads a [T] float64 table at t [B] as float32 [B, 1, 1]."""
    return jnp.asarray(table.astype(np.float32))[t][:, None, None]


def q_sample(schedule: Schedule, x0: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
    """`x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps`, [B, S, G]."""
    signal = at(np.sqrt(schedule.alpha_bar), t)
    noise = at(np.sqrt(1.0 - schedule.alpha_bar), t)
    return signal * x0 + noise * eps


def marginal(schedule: Schedule, x0: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean [B, S, G], variance and log variance [B, 1, 1] of q(x_t | x_0)."""
    noise = 1.0 - schedule.alpha_bar
    return at(np.sqrt(schedule.alpha_bar), t) * x0, at(noise, t), at(np.log(noise), t)


def eps_from_x0(schedule: Schedule, xt: jax.Array, t: jax.Array, x0: jax.Array) -> jax.Array:
    """`eps = (x_t - sqrt(alpha_bar_t) x_0) / sqrt(1 - alpha_bar_t)`, written as the released code divides."""
    recip = at(np.sqrt(1.0 / schedule.alpha_bar), t)
    recip_m1 = at(np.sqrt(1.0 / schedule.alpha_bar - 1.0), t)
    return (recip * xt - x0) / recip_m1


def x0_from_eps(schedule: Schedule, xt: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
    """`x_0 = x_t / sqrt(alpha_bar_t) - sqrt(1 / alpha_bar_t - 1) eps`."""
    recip = at(np.sqrt(1.0 / schedule.alpha_bar), t)
    recip_m1 = at(np.sqrt(1.0 / schedule.alpha_bar - 1.0), t)
    return recip * xt - recip_m1 * eps


def posterior_mean(schedule: Schedule, x0: jax.Array, xt: jax.Array, t: jax.Array) -> jax.Array:
    """Mean of q(x_{t-1} | x_t, x_0), [B, S, G]."""
    return at(schedule.posterior_mean_x0, t) * x0 + at(schedule.posterior_mean_xt, t) * xt


def posterior(
    schedule: Schedule, x0: jax.Array, xt: jax.Array, t: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean [B, S, G], variance and log variance [B, 1, 1] of q(x_{t-1} | x_t, x_0).

    The variance is 0 at t = 0; its logarithm there is that at t = 1, as released.
    """
    variance, log_variance = at(schedule.posterior_variance, t), at(schedule.posterior_log_variance, t)
    return posterior_mean(schedule, x0, xt, t), variance, log_variance

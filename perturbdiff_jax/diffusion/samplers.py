"""Samplers (method 7): DDIM, DDPM and a fast second-order solver, each one `lax.scan` over timesteps.

A walk visits timesteps from `start - 1` down to 0. At each it asks the network for x0 (conditional, and
unconditional when guided), guides on the noise estimate, cuts values under 1e-4 to 0 and steps on; the last x0
estimate is the sample. Knows no network, only `denoise(xt, t, control, drop, self_condition) -> x0_hat`, [B, S, G], or
[k * B, S, G] for `drop` [k * B]: k branches over the same cells.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from perturbdiff_jax.diffusion.process import at, eps_from_x0, posterior, q_sample, x0_from_eps
from perturbdiff_jax.diffusion.schedule import Schedule
from perturbdiff_jax.errors import RequestError

SAMPLERS = ("ddim", "ddpm", "fast")
INITS = ("noise", "control")
VARIANCES = ("large", "small")
SPACINGS = ("time", "log_snr")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """How to walk. The released default is `SamplerOptions(start=100, steps=100, guidance=1.0)`."""

    name: str = "ddim"
    start: int = 1000  # the walk begins at t = start - 1
    steps: int = 50  # network evaluations (twice that when guided); at most `start`
    eta: float = 0.0  # DDIM: 0 deterministic, 1 as noisy as DDPM
    guidance: float = 0.0  # w: eps = (1 + w) eps_conditional - w eps_unconditional
    noise_weight: float = 0.5  # DDPM: exp(noise_weight * log variance); 0.5 is the usual sigma
    # DDPM: "large" is beta_t, "small" that of the posterior (the released sigma_small).
    variance: str = "large"
    cutoff: float = 1e-4  # expression / 10 below this is 0
    spacing: str = "time"  # visited timesteps are even in time, or in log signal-to-noise ("log_snr")
    init: str = "noise"  # begin from N(0, 1), or from control cells noised to the first timestep

    def __post_init__(self):
        """Refuses unknown names and impossible walks."""
        if self.name not in SAMPLERS:
            raise RequestError(f"sampler={self.name!r}: allowed are {', '.join(SAMPLERS)}.")
        if self.init not in INITS:
            raise RequestError(f"sampler init={self.init!r}: allowed are {', '.join(INITS)}.")
        if self.variance not in VARIANCES:
            raise RequestError(f"sampler variance={self.variance!r}: allowed are {', '.join(VARIANCES)}.")
        if self.spacing not in SPACINGS:
            raise RequestError(f"sampler spacing={self.spacing!r}: allowed are {', '.join(SPACINGS)}.")
        if not 1 <= self.steps <= self.start:
            raise RequestError(f"sampler steps={self.steps}: must be between 1 and start={self.start}.")
        if self.name == "ddpm" and self.steps != self.start:
            raise RequestError(
                f"sampler ddpm takes every step: steps={self.steps} must equal start={self.start}."
            )
        if not 0 <= self.eta < np.inf:
            raise RequestError(f"sampler eta={self.eta}: must not be negative.")
        if not np.isfinite(self.guidance):
            raise RequestError(f"sampler guidance={self.guidance}: must be a finite number.")


def timesteps(schedule: Schedule, options: SamplerOptions) -> np.ndarray:
    """Visited timesteps, descending, the last one 0.

    Even in log signal-to-noise, the usual grid of fast solvers, spends most of a short walk where cells are all but
    clean; this network wants its evaluations earlier (benchmarks/README.md, "sampling").
    """
    if options.start > schedule.steps:
        raise RequestError(f"sampler start={options.start}: the schedule has {schedule.steps} timesteps.")
    if options.steps == 1:
        return np.array([options.start - 1])
    if options.spacing == "time":
        return np.round(np.linspace(options.start - 1, 0, options.steps)).astype(np.int64)
    log_snr = 0.5 * np.log(schedule.alpha_bar / (1.0 - schedule.alpha_bar))
    wanted = np.linspace(log_snr[options.start - 1], log_snr[0], options.steps)
    nearest = np.abs(log_snr[None, : options.start] - wanted[:, None]).argmin(axis=1)
    # Rounding may visit one timestep twice where the grid is coarse; every step must go down.
    limit = np.arange(options.steps - 1, -1, -1)
    for i in range(1, options.steps):
        nearest[i] = min(nearest[i], nearest[i - 1] - 1)
    return np.maximum(nearest, limit)


def guided_x0(
    denoise: Callable[..., jax.Array],
    schedule: Schedule,
    options: SamplerOptions,
    xt: jax.Array,
    t: jax.Array,
    control: jax.Array,
    previous: jax.Array,
) -> jax.Array:
    """x0 estimate at t [B] after guidance and cut-off, [B, S, G]; one call serves both branches."""
    sets = xt.shape[0]
    if options.guidance == 0.0:
        x0 = denoise(xt, t, control, jnp.zeros(sets, bool), previous)
    else:
        drop = jnp.arange(2 * sets) >= sets
        conditional, unconditional = jnp.split(denoise(xt, t, control, drop, previous), 2)
        eps = (1.0 + options.guidance) * eps_from_x0(schedule, xt, t, conditional) - (
            options.guidance * eps_from_x0(schedule, xt, t, unconditional)
        )
        x0 = x0_from_eps(schedule, xt, t, eps)
    return jnp.where(x0 < options.cutoff, 0.0, x0)


def ddim_step(xt, x0, t, t_next, noise, *, schedule: Schedule, eta: float):
    """One DDIM(eta) step to `t_next` [B] (-1 = clean). Coefficients are formed in float32, as released."""
    level = jnp.asarray(np.append(schedule.alpha_bar, 1.0).astype(np.float32))
    now, then = level[t][:, None, None], level[t_next][:, None, None]  # index -1 reads the appended 1
    eps = eps_from_x0(schedule, xt, t, x0)
    sigma = eta * jnp.sqrt((1.0 - then) / (1.0 - now)) * jnp.sqrt(1.0 - now / then)
    mean = x0 * jnp.sqrt(then) + jnp.sqrt(jnp.maximum(1.0 - then - sigma**2, 0.0)) * eps
    return mean + sigma * noise


def reverse_moments(
    schedule: Schedule, xt: jax.Array, x0: jax.Array, t: jax.Array, *, variance: str = "large"
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean [B, S, G], variance and log variance [B, 1, 1] of p(x_{t-1} | x_t) when x0 is the estimate."""
    mean, small, log_small = posterior(schedule, x0, xt, t)
    if variance == "small":
        return mean, small, log_small
    return mean, at(schedule.large_variance, t), at(np.log(schedule.large_variance), t)


def p_mean_variance(
    denoise: Callable[..., jax.Array],
    schedule: Schedule,
    options: SamplerOptions,
    xt: jax.Array,
    t: jax.Array,
    control: jax.Array,
    previous: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """What a DDPM step knows before it draws: (mean, variance, log variance, x0 estimate).

    Shapes [B, S, G], [B, 1, 1], [B, 1, 1], [B, S, G]; arguments as those of `guided_x0`.
    """
    x0 = guided_x0(denoise, schedule, options, xt, t, control, previous)
    return *reverse_moments(schedule, xt, x0, t, variance=options.variance), x0


def ddpm_step(xt, x0, t, noise, *, schedule: Schedule, noise_weight: float, variance: str = "large"):
    """One ancestral step; no noise is added at t = 0."""
    mean, _, log_variance = reverse_moments(schedule, xt, x0, t, variance=variance)
    return mean + (t > 0)[:, None, None] * jnp.exp(noise_weight * log_variance) * noise


def fast_step(xt, x0, x0_before, t_before, t, t_next, first, *, schedule: Schedule):
    """Second-order multistep step in x0 form (DPM-Solver++(2M)); first order on the first and the last step."""
    table = np.append(schedule.alpha_bar, 1.0 - 1e-7)
    alpha = jnp.asarray(np.sqrt(table).astype(np.float32))
    sigma = jnp.asarray(np.sqrt(1.0 - table).astype(np.float32))
    log_snr = jnp.asarray((0.5 * np.log(table / (1.0 - table))).astype(np.float32))
    h = (log_snr[t_next] - log_snr[t])[:, None, None]
    h_before = (log_snr[t] - log_snr[t_before])[:, None, None]
    lean = jnp.where(first | (t_next < 0)[:, None, None], 0.0, 0.5 * h / jnp.maximum(h_before, 1e-6))
    blend = x0 + lean * (x0 - x0_before)
    ratio = (sigma[t_next] / sigma[t])[:, None, None]
    return ratio * xt - alpha[t_next][:, None, None] * jnp.expm1(-h) * blend


def sample(
    denoise: Callable[..., jax.Array],
    control: jax.Array,
    *,
    schedule: Schedule,
    options: SamplerOptions,
    init_noise: jax.Array | None = None,
    step_noise: jax.Array | None = None,
    keys: jax.Array | None = None,
) -> jax.Array:
    """Walks B sets from noise to cells, [B, S, G] float32, log1p / divisor, sparse (cut-off) and not negative.

    Args:
      denoise: the network behind its covariates.
      control: [B, S, G] matched control cells.
      schedule, options: static.
      init_noise: [B, S, G] standard normal; drawn from `keys` when None.
      step_noise: [steps, B, S, G]; drawn from `keys` when None.
      keys: [B] one key per set, so that a set's cells do not depend on which other sets share its batch.
    """
    visited = timesteps(schedule, options)
    sets = control.shape[0]

    def normal(index):
        fold = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), control.shape[1:]))
        return fold(keys)

    x = normal(0) if init_noise is None else init_noise
    if options.init == "control":
        x = q_sample(schedule, control, jnp.full(sets, visited[0]), x)
    draws_noise = options.name == "ddpm" or (options.name == "ddim" and options.eta > 0)

    def step(carry, inputs):
        xt, previous, before = carry
        index, t_now, t_then, t_prior = inputs
        t, t_next, t_before = (jnp.full(sets, value) for value in (t_now, t_then, t_prior))
        x0 = guided_x0(denoise, schedule, options, xt, t, control, previous)
        noise = jnp.zeros_like(xt)
        if draws_noise and step_noise is None:
            noise = normal(index + 1)
        elif draws_noise:
            noise = step_noise[index]
        if options.name == "ddim":
            xt = ddim_step(xt, x0, t, t_next, noise, schedule=schedule, eta=options.eta)
        elif options.name == "ddpm":
            weight, variance = options.noise_weight, options.variance
            xt = ddpm_step(xt, x0, t, noise, schedule=schedule, noise_weight=weight, variance=variance)
        else:
            xt = fast_step(xt, x0, before, t_before, t, t_next, index == 0, schedule=schedule)
        return (xt, x0, x0), None

    rows = (
        jnp.arange(len(visited)),
        jnp.asarray(visited),
        jnp.asarray(np.append(visited[1:], -1)),
        jnp.asarray(np.append(visited[:1], visited[:-1])),
    )
    zeros = jnp.zeros_like(x)
    (_, x0, _), _ = jax.lax.scan(step, (x, zeros, zeros), rows)
    return x0

"""Noise schedules of the variance-preserving process (method 1), as float64 tables cast once when used.

Owns beta(t) and everything that follows from it. Knows no network and no random numbers.
"""

import dataclasses
import functools

import numpy as np

from perturbdiff_jax.errors import RequestError

MAX_BETA = 0.999


def _linear(steps: int, power: float) -> np.ndarray:
    del power
    scale = 1000.0 / steps
    return np.linspace(scale * 1e-4, scale * 0.02, steps, dtype=np.float64)


def _from_alpha_bar(steps: int, alpha_bar) -> np.ndarray:
    edges = np.arange(steps + 1, dtype=np.float64) / steps
    levels = alpha_bar(edges)
    return 1.0 - levels[1:] / levels[:-1]


def _cosine(steps: int, power: float) -> np.ndarray:
    del power
    return _from_alpha_bar(steps, lambda s: np.cos((s + 0.008) / 1.008 * np.pi / 2) ** 2)


def _power_cosine(steps: int, power: float) -> np.ndarray:
    return _from_alpha_bar(steps, lambda s: np.cos((s + 0.008) / 1.008 * np.pi / 2) ** (2 * power))


SCHEDULES = {"linear": _linear, "cosine": _cosine, "power_cosine": _power_cosine}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """A named schedule: T steps; `power` is used by power_cosine only. Tables are [T] float64."""

    name: str = "linear"
    steps: int = 1000
    power: float = 0.3

    def __post_init__(self):
        """Refuses unknown names and empty schedules."""
        if self.name not in SCHEDULES:
            raise RequestError(f"schedule.name={self.name!r}: allowed are {', '.join(SCHEDULES)}.")
        if self.steps < 1:
            raise RequestError(f"schedule.steps={self.steps}: must be at least 1.")

    @functools.cached_property
    def beta(self) -> np.ndarray:
        """beta_t, never beyond 0.999."""
        return np.minimum(SCHEDULES[self.name](self.steps, self.power), MAX_BETA)

    @functools.cached_property
    def alpha_bar(self) -> np.ndarray:
        """Product of (1 - beta) up to and including t."""
        return np.cumprod(1.0 - self.beta)

    @functools.cached_property
    def alpha_bar_previous(self) -> np.ndarray:
        """alpha_bar at t - 1; 1 at t = 0."""
        return np.append(1.0, self.alpha_bar[:-1])

    @functools.cached_property
    def posterior_variance(self) -> np.ndarray:
        """Variance of q(x_{t-1} | x_t, x_0)."""
        return self.beta * (1.0 - self.alpha_bar_previous) / (1.0 - self.alpha_bar)

    @functools.cached_property
    def posterior_mean_x0(self) -> np.ndarray:
        """Weight of x_0 in the mean of q(x_{t-1} | x_t, x_0)."""
        return self.beta * np.sqrt(self.alpha_bar_previous) / (1.0 - self.alpha_bar)

    @functools.cached_property
    def posterior_mean_xt(self) -> np.ndarray:
        """Weight of x_t in the mean of q(x_{t-1} | x_t, x_0)."""
        return (1.0 - self.alpha_bar_previous) * np.sqrt(1.0 - self.beta) / (1.0 - self.alpha_bar)

    @functools.cached_property
    def posterior_log_variance(self) -> np.ndarray:
        """Log of the posterior variance; the entry at 0, where it vanishes, is that at 1."""
        return np.log(np.append(self.posterior_variance[min(1, self.steps - 1)], self.posterior_variance[1:]))

    @functools.cached_property
    def large_variance(self) -> np.ndarray:
        """The fixed-large variance of the released DDPM walk: beta, with the first entry that of the posterior at 1."""
        return np.append(self.posterior_variance[min(1, self.steps - 1)], self.beta[1:])

"""Optimizer, learning-rate schedule and the average of the weights (method 6).

AdamW(0.9, 0.98) with global-norm clipping; decay acts on everything but biases, as released. The schedule warms up
linearly, holds a plateau, follows a cosine and never falls under a share of the peak.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax

from perturbdiff_jax.errors import RequestError

EMA_RULES = ("warmup", "released")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimOptions:
    """Released values: peak 2e-4 (PBMC, Tahoe, pretraining) or 2e-3 (Replogle)."""

    learning_rate: float = 2e-4
    warmup_steps: int = 200
    plateau: float = 0.1  # share of all steps
    floor: float = 0.1  # share of the peak
    weight_decay: float = 0.01
    clip: float = 1.0
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8

    def __post_init__(self):
        """Refuses values that cannot train."""
        if self.learning_rate <= 0 or self.clip <= 0:
            raise RequestError("optim: learning_rate and clip must be above 0.")
        if not (0 <= self.plateau <= 1 and 0 <= self.floor <= 1):
            raise RequestError("optim: plateau and floor must be between 0 and 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmaOptions:
    """Average of the weights.

    `warmup` updates every step with decay min(decay, (1 + n) / (10 + n)), so that the untrained weights are
    forgotten at once. `released` copies at step 1 and averages every `every` steps with a fixed decay, which
    still holds 13 % of the untrained weights after 2,000 steps; it is there for comparisons.
    """

    decay: float = 0.999
    rule: str = "warmup"
    every: int = 1

    def __post_init__(self):
        """Refuses unknown rules and decays outside [0, 1)."""
        if self.rule not in EMA_RULES:
            raise RequestError(f"ema.rule={self.rule!r}: allowed are {', '.join(EMA_RULES)}.")
        if not 0 <= self.decay < 1 or self.every < 1:
            raise RequestError("ema: decay must be in [0, 1) and every at least 1.")


def learning_rate(options: OptimOptions, steps: int) -> optax.Schedule:
    """Factor schedule: the rate used by the optimizer step with zero-based index `count`."""
    warmup, plateau = options.warmup_steps, int(options.plateau * steps)
    rest = max(1, steps - warmup - plateau)

    def rate(count):
        count = jnp.asarray(count, jnp.float32)
        rising = count / max(1, warmup)
        progress = jnp.clip((count - warmup - plateau) / rest, 0.0, 1.0)
        falling = jnp.maximum(options.floor, 0.5 * (1.0 + jnp.cos(math.pi * progress)))
        factor = jnp.where(count < warmup, rising, jnp.where(count < warmup + plateau, 1.0, falling))
        return options.learning_rate * factor

    return rate


def decayed(params) -> object:
    """True for the leaves that weight decay acts on: all but biases (tables and norm weights decay, as released)."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "bias", params)


def optimizer(options: OptimOptions, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, AdamW with decoupled decay, the schedule of `learning_rate`."""
    return optax.chain(
        optax.clip_by_global_norm(options.clip),
        optax.adamw(
            learning_rate(options, steps),
            b1=options.b1,
            b2=options.b2,
            eps=options.eps,
            weight_decay=options.weight_decay,
            mask=decayed,
        ),
    )


def update_ema(options: EmaOptions, ema, params, step: jax.Array):
    """The average after optimizer step `step` (1-based)."""
    step = jnp.asarray(step, jnp.float32)
    if options.rule == "released":
        # Copied at step 1, averaged at steps 1 + every, 1 + 2 every, ...
        due = jnp.mod(step - 1, options.every) == 0
        decay = jnp.where(step <= 1, 0.0, jnp.where(due, options.decay, 1.0))
    else:
        updates = jnp.floor(step / options.every)
        due = jnp.mod(step, options.every) == 0
        decay = jnp.where(due, jnp.minimum(options.decay, (1.0 + updates) / (10.0 + updates)), 1.0)
    return jax.tree.map(lambda a, p: decay * a + (1.0 - decay) * p, ema, params)

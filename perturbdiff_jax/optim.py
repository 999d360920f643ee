"""Optimizer, learning-rate schedule and the average of the weights (method 6).

AdamW(0.9, 0.98) with global-norm clipping; decay acts on everything but biases, as released. The schedule warms up
linearly, holds a plateau, follows a cosine and never falls under a share of the peak. Frozen tables are parameters
that nothing here touches.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.models.covariates import FROZEN

EMA_RULES = ("warmup", "released")
ABSENT = ("zero", "skip")
# Input layers; those of several sources are stacked along a leading axis.
EMBEDDERS = ("embed_perturbed", "embed_control")


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
    # A parameter that nothing in the batch depends on: "zero" = its gradient is 0 (it still decays and its moments
    # fade), "skip" = this step does not exist for it, as in the released code.
    absent: str = "zero"

    def __post_init__(self):
        """Refuses values that cannot train."""
        if self.learning_rate <= 0 or self.clip <= 0:
            raise RequestError("optim: learning_rate and clip must be above 0.")
        if not (0 <= self.plateau <= 1 and 0 <= self.floor <= 1):
            raise RequestError("optim: plateau and floor must be between 0 and 1.")
        if self.absent not in ABSENT:
            raise RequestError(f"optim.absent={self.absent!r}: allowed are {', '.join(ABSENT)}.")


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


def _by_path(function, tree, *rest):
    """Maps `function(names of the path, leaf, ...)` over trees of one structure."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function([k.key for k in path], *leaves), tree, *rest
    )


def decayed(params) -> object:
    """True for the leaves that weight decay acts on: all but biases (tables and norm weights decay, as released)."""
    return _by_path(lambda path, _: path[-1] != "bias", params)


def trained(params) -> object:
    """False for the frozen tables, True for the rest."""
    return _by_path(lambda path, _: not path[-1].startswith(FROZEN), params)


def parts_of(path: list[str], leaf: jax.Array) -> int | None:
    """How many layers, each present or absent by itself, a stacked input layer holds; None for any other leaf."""
    stacked = path[0] in EMBEDDERS and leaf.ndim == {"kernel": 3, "bias": 2}[path[-1]]
    return leaf.shape[0] if stacked else None


def present_parameters(params, drop: jax.Array, source: jax.Array | None = None):
    """Which parameters the loss of a batch depends on, as the released code's autograd sees it.

    Covariates and their projection: unless every set dropped them; the null vector: if any did. The input layer of a
    source: if any set comes from it. Never: the last block's control MLP and the frozen tables.

    Args:
      params: the tree, or its shapes.
      drop: [B] bool, covariates dropped.
      source: [B] int codes; None = source 0.

    Returns:
      A tree of bool arrays that broadcast to the leaves.
    """
    sources = jnp.zeros(1, jnp.int32) if source is None else source

    def present(path, leaf):
        parts = parts_of(path, leaf)
        if parts is not None:
            seen = (sources[:, None] == jnp.arange(parts)[None]).any(axis=0)
            return seen.reshape(parts, *[1] * (leaf.ndim - 1))
        if path[-1].startswith(FROZEN) or path[:2] == ["last_block", "mlp_u"]:
            return jnp.zeros((), bool)
        if path[0] in ("covariates", "condition"):
            return ~drop.all()
        return drop.any() if path[0] == "null_condition" else jnp.ones((), bool)

    return _by_path(present, params)


def clip_by_global_norm(largest: float) -> optax.GradientTransformation:
    """Scales gradients to a global norm of at most `largest`, dividing by norm + 1e-6 as PyTorch does."""

    def update(gradients, state, params=None):
        del params
        scale = jnp.minimum(1.0, largest / (optax.global_norm(gradients) + 1e-6))
        return jax.tree.map(lambda g: g * scale, gradients), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


class SkippingState(NamedTuple):
    """State of `skipping_adamw`; `mu` and `nu` have the shapes of the parameters, `taken` one count for each part."""

    count: jax.Array  # [] int32, steps of the schedule
    taken: Any  # int32, [] or [parts, 1, ...]: steps in which the part was present
    mu: Any
    nu: Any


def skipping_adamw(
    rate: optax.Schedule, *, b1: float, b2: float, eps: float, weight_decay: float, mask
) -> optax.GradientTransformationExtraArgs:
    """AdamW for which an absent parameter stands still: no decay, no moment, no step in its bias correction.

    `update` takes `present`, a tree of bools that broadcast to the leaves (see `present_parameters`).
    """

    def taken(path, leaf):
        parts = parts_of(path, leaf)
        return jnp.zeros(() if parts is None else (parts, *[1] * (leaf.ndim - 1)), jnp.int32)

    def init(params):
        zeros = [jax.tree.map(jnp.zeros_like, params) for _ in range(2)]
        return SkippingState(jnp.zeros((), jnp.int32), _by_path(taken, params), *zeros)

    def update(gradients, state, params, *, present, **_):
        count = jax.tree.map(lambda n, here: n + here, state.taken, present)
        mu = jax.tree.map(
            lambda m, g, here: jnp.where(here, b1 * m + (1 - b1) * g, m), state.mu, gradients, present
        )
        nu = jax.tree.map(
            lambda v, g, here: jnp.where(here, b2 * v + (1 - b2) * g * g, v), state.nu, gradients, present
        )
        step = rate(state.count)

        def change(m, v, n, p, decays, here):
            n = jnp.maximum(n, 1).astype(jnp.float32)  # not 0 / 0 for what was never present
            adam = (m / (1 - b1**n)) / (jnp.sqrt(v / (1 - b2**n)) + eps)
            return jnp.where(here, -step * (adam + weight_decay * p if decays else adam), 0.0)

        updates = jax.tree.map(change, mu, nu, count, params, mask(params), present)
        return updates, SkippingState(state.count + 1, count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def optimizer(options: OptimOptions, steps: int) -> optax.GradientTransformationExtraArgs:
    """Clip by global norm, AdamW with decoupled decay, the schedule of `learning_rate`; frozen tables stay.

    Its `update` takes the keyword `present` (see `present_parameters`), which only `absent="skip"` reads.
    """
    build = skipping_adamw if options.absent == "skip" else optax.adamw
    adamw = build(
        learning_rate(options, steps),
        b1=options.b1,
        b2=options.b2,
        eps=options.eps,
        weight_decay=options.weight_decay,
        mask=decayed,
    )
    inner = optax.with_extra_args_support(optax.chain(clip_by_global_norm(options.clip), adamw))

    def update(gradients, state, params, **extra):
        updates, state = inner.update(gradients, state, params, **extra)
        updates = jax.tree.map(lambda u, moves: u if moves else jnp.zeros_like(u), updates, trained(params))
        return updates, state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def update_ema(options: EmaOptions, ema, params, step: jax.Array):
    """The average after optimizer step `step` (1-based); frozen tables stay as they are, bit for bit."""
    step = jnp.asarray(step, jnp.float32)
    if options.rule == "released":
        # Copied at step 1, averaged at steps 1 + every, 1 + 2 every, ...
        due = jnp.mod(step - 1, options.every) == 0
        decay = jnp.where(step <= 1, 0.0, jnp.where(due, options.decay, 1.0))
    else:
        updates = jnp.floor(step / options.every)
        due = jnp.mod(step, options.every) == 0
        decay = jnp.where(due, jnp.minimum(options.decay, (1.0 + updates) / (10.0 + updates)), 1.0)
    return jax.tree.map(
        lambda a, p, moves: decay * a + (1.0 - decay) * p if moves else a, ema, params, trained(params)
    )

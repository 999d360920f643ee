"""The training objective (method 3): squared error plus energy distance of the x0 estimate, per set.

    loss = mse_weight * mean((x0 - x0_hat)^2) + mmd_weight * energy(x0, x0_hat)

Knows no network, only `denoise(xt, t, control, drop, self_condition, fed_back) -> x0_hat`, with the last a bool scalar
that is False when `self_condition` is all zeros. `set_losses` returns one value per set; only `training_loss` reduces,
in float32.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from perturbdiff_jax.diffusion.process import q_sample
from perturbdiff_jax.diffusion.schedule import Schedule
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.kernels.energy_distance import energy_distance

Denoise = Callable[..., jax.Array]
PER = ("set", "batch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveOptions:
    """Weights and probabilities; the defaults are the released ones, except that the mask decides (method 8)."""

    mse_weight: float = 1.0
    mmd_weight: float = 1.0  # 1 = the released half energy distance; the paper's factor is 2
    self_condition: float = 0.5  # probability of a first pass whose estimate is fed back
    drop_condition: float = 0.5  # probability that the covariates are replaced by the null vector
    drop_control: float = 0.0  # probability that control cells are zeroed; 1 in marginal pretraining
    per: str = "batch"  # one coin for the whole batch (released) or one per set
    use_mask: bool = True  # False = padded cells count fully, as in the released code

    def __post_init__(self):
        """Refuses values outside their range."""
        for name in ("self_condition", "drop_condition", "drop_control"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise RequestError(f"objective.{name}={getattr(self, name)}: must be between 0 and 1.")
        if self.per not in PER:
            raise RequestError(f"objective.per={self.per!r}: allowed are {', '.join(PER)}.")
        if min(self.mse_weight, self.mmd_weight) < 0 or self.mse_weight + self.mmd_weight == 0:
            raise RequestError("objective: mse_weight and mmd_weight must not be negative nor both 0.")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draws:
    """Everything random in one evaluation of the loss."""

    t: jax.Array  # [B] int32
    eps: jax.Array  # [B, S, G] float32
    drop: jax.Array  # [B] bool, covariates dropped
    drop_control: jax.Array  # [B] bool
    self_condition: jax.Array  # [B] bool


def draw(key: jax.Array, shape: tuple[int, int, int], schedule: Schedule, options: ObjectiveOptions) -> Draws:
    """Draws timesteps (uniform, one per set), noise (one per cell) and the three coins."""
    sets = shape[0]
    keys = jax.random.split(key, 5)

    def coin(k, probability):
        tosses = sets if options.per == "set" else 1
        return jnp.broadcast_to(jax.random.bernoulli(k, probability, (tosses,)), (sets,))

    return Draws(
        t=jax.random.randint(keys[0], (sets,), 0, schedule.steps),
        eps=jax.random.normal(keys[1], shape, jnp.float32),
        drop=coin(keys[2], options.drop_condition),
        drop_control=coin(keys[3], options.drop_control),
        self_condition=coin(keys[4], options.self_condition),
    )


def set_losses(
    denoise: Denoise,
    x0: jax.Array,
    control: jax.Array,
    mask: jax.Array,
    draws: Draws,
    *,
    schedule: Schedule,
    options: ObjectiveOptions,
) -> tuple[jax.Array, jax.Array]:
    """Squared error and energy distance of every set, ([B], [B]) float32.

    Args:
      denoise: the network behind its covariates.
      x0, control: [B, S, G] float32, log1p / divisor.
      mask: [B, S], 1 for cells that count.
      draws: the randomness; fixed draws give a fixed loss.
      schedule, options: static.
    """
    xt = q_sample(schedule, x0, draws.t, draws.eps)
    control = jnp.where(draws.drop_control[:, None, None], 0.0, control)
    previous, fed_back = None, True
    if options.self_condition > 0:
        fed_back = draws.self_condition.any()

        def first_pass():
            estimate = denoise(xt, draws.t, control, draws.drop, None, True)  # zeros, not multiplied
            return jnp.where(draws.self_condition[:, None, None], jax.lax.stop_gradient(estimate), 0.0)

        # One coin for the batch skips the pass altogether when no set asked for it.
        previous = jax.lax.cond(fed_back, first_pass, lambda: jnp.zeros_like(xt))
    estimate = denoise(xt, draws.t, control, draws.drop, previous, fed_back).astype(jnp.float32)

    weight = mask.astype(jnp.float32) if options.use_mask else jnp.ones_like(mask, jnp.float32)
    squared = jnp.square(estimate - x0).mean(axis=-1)
    mse = (squared * weight).sum(axis=-1) / jnp.maximum(weight.sum(axis=-1), 1.0)
    if options.mmd_weight > 0:
        energy = energy_distance(jax.lax.stop_gradient(x0), estimate, weights_x=weight, weights_y=weight)
    else:
        energy = jnp.zeros_like(mse)
    return mse, energy


def training_loss(
    denoise: Denoise,
    x0: jax.Array,
    control: jax.Array,
    mask: jax.Array,
    draws: Draws,
    *,
    schedule: Schedule,
    options: ObjectiveOptions,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The scalar to minimise and its parts, means over sets: `loss/total`, `loss/mse`, `loss/energy`."""
    mse, energy = set_losses(denoise, x0, control, mask, draws, schedule=schedule, options=options)
    parts = {"loss/mse": mse.mean(), "loss/energy": energy.mean()}
    total = options.mse_weight * parts["loss/mse"] + options.mmd_weight * parts["loss/energy"]
    return total, {"loss/total": total, **parts}

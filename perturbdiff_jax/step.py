"""One training step: (state, batch) -> (state, metrics), a pure function compiled with donated state.

A dense batch has one shape and is compiled once, a packed one for each of its few lengths (data/batcher.py).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from perturbdiff_jax import rng, sharding
from perturbdiff_jax.array_types import Batch, PackedBatch
from perturbdiff_jax.diffusion import objective
from perturbdiff_jax.diffusion.schedule import Schedule
from perturbdiff_jax.kernels.densify import densify
from perturbdiff_jax.models.mmdit import Denoiser
from perturbdiff_jax.optim import EmaOptions, present_parameters, update_ema
from perturbdiff_jax.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepParts:
    """What a step is built from; everything here is static."""

    model: Denoiser
    tx: optax.GradientTransformation
    schedule: Schedule
    objective: objective.ObjectiveOptions
    ema: EmaOptions
    seed: int
    divisor: float = 10.0  # what a packed batch's log1p expression is divided by


def bind(model: Denoiser, params: dict, perturbation, cell_type, batch, source=None) -> objective.Denoise:
    """The network behind its covariates, as diffusion/ wants it: `denoise(xt, t, control, drop, previous)`.

    Codes are [B] or [B, S], `source` [B] or None; a call with k * B sets (guidance stacks branches) repeats them k
    times.
    """

    def denoise(xt, t, control, drop, self_condition):
        times = xt.shape[0] // perturbation.shape[0]
        codes = [jnp.concatenate([code] * times) for code in (perturbation, cell_type, batch)]
        sources = None if source is None else jnp.concatenate([source] * times)
        return model.apply({"params": params}, xt, t, control, *codes, drop, self_condition, sources)

    return denoise


def loss_gradient(parts: StepParts, params: dict, batch: Batch, draws: objective.Draws) -> tuple[dict, dict]:
    """Gradient of the objective on one batch with everything random given, and its metrics."""

    def loss(params):
        return objective.training_loss(
            bind(parts.model, params, batch.perturbation, batch.cell_type, batch.batch, batch.source),
            batch.perturbed,
            batch.control,
            batch.mask,
            draws,
            schedule=parts.schedule,
            options=parts.objective,
        )

    return jax.grad(loss, has_aux=True)(params)


def updated(parts: StepParts, state: TrainState, gradients: dict, present: dict) -> TrainState:
    """The state after one optimizer step; `present` says which parameters the loss depended on."""
    updates, opt_state = parts.tx.update(gradients, state.opt_state, state.params, present=present)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    ema = update_ema(parts.ema, state.ema, params, step)
    return TrainState(step=step, params=params, ema=ema, opt_state=opt_state)


def train_step(
    parts: StepParts, state: TrainState, batch: Batch | PackedBatch
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Forward, backward, clip, AdamW, average. Metrics are float32 scalars."""
    if isinstance(batch, PackedBatch):
        batch = densify(batch, genes=parts.model.genes, divisor=parts.divisor)
    key = rng.key_for(parts.seed, "loss", state.step)
    draws = objective.draw(key, batch.perturbed.shape, parts.schedule, parts.objective)
    gradients, metrics = loss_gradient(parts, state.params, batch, draws)
    present = present_parameters(state.params, draws.drop, batch.source)
    metrics = {**metrics, "grad_norm": optax.global_norm(gradients)}
    return updated(parts, state, gradients, present), metrics


def compile_step(parts: StepParts, mesh: Mesh) -> Callable:
    """The jitted step on a mesh: batch sharded over sets (and runs of sets), state replicated and donated."""
    whole = sharding.replicated(mesh)
    return jax.jit(
        lambda state, batch: train_step(parts, state, batch),
        in_shardings=(whole, sharding.batch_sharding(mesh)),
        out_shardings=(whole, whole),
        donate_argnums=0,
    )

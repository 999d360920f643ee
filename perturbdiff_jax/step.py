"""One training step: (state, batch) -> (state, metrics), a pure function compiled with donated state.

A dense batch has one shape and is compiled once, a packed one for each of its few lengths (data/loading/batcher.py).
Noise and timesteps are drawn for the whole batch by keys that depend on the seed and the step alone: neither the number
of devices nor the parts in which a batch is worked off change them.
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
from perturbdiff_jax.models import trunk
from perturbdiff_jax.models.mmdit import Denoiser
from perturbdiff_jax.optim import EmaOptions, present_parameters, update_ema
from perturbdiff_jax.state import TrainState, create_state, init_params


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
    accumulate: int = 1  # parts of a batch, one after the other


def bind(
    model: Denoiser, params: dict, perturbation, cell_type, batch, source=None, *, feeds_back: bool = True
) -> objective.Denoise:
    """The network behind its covariates, as diffusion/ wants it: `denoise(xt, t, control, drop, previous, fed_back)`.

    Codes are [B] or [B, S], `source` [B] or None. Without `feeds_back` the previous estimate is not looked at: a
    network that was trained without self-conditioning never learned to read it.
    """
    if not model.options.loops:
        params = trunk.written_out(params)  # here, so that a walk of many passes cuts a stack once

    def denoise(xt, t, control, drop, self_condition, fed_back=True):
        codes = (perturbation, cell_type, batch)
        self_condition = self_condition if feeds_back else None
        return model.apply({"params": params}, xt, t, control, *codes, drop, self_condition, source, fed_back)

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


def accumulated(
    parts: StepParts, params: dict, batch: Batch, draws: objective.Draws, runs: int
) -> tuple[dict, dict]:
    """`loss_gradient` of the whole batch with the memory of a part of it.

    Every part takes its share of each of the `runs` stretches that the devices hold, so that no set moves; the loss is
    a mean over sets, whose order does not matter.
    """

    def cut(x: jax.Array) -> jax.Array:
        shape = (runs, parts.accumulate, -1, *x.shape[1:])
        whole = jnp.swapaxes(x.reshape(shape), 0, 1).reshape(parts.accumulate, -1, *x.shape[1:])
        return sharding.constrain(whole, "whole", "sets", *["whole"] * (whole.ndim - 2))

    def add(total, piece):
        found = loss_gradient(parts, params, *piece)
        return jax.tree.map(lambda a, b: a + b / parts.accumulate, total, found), None

    pieces = jax.tree.map(cut, (batch, draws))
    first = jax.tree.map(lambda x: x[0], pieces)
    shapes = jax.eval_shape(lambda piece: loss_gradient(parts, params, *piece), first)
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zero, pieces)[0]


def train_step(
    parts: StepParts, state: TrainState, batch: Batch | PackedBatch, *, runs: int = 1
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Forward, backward, clip, AdamW, average. Metrics are float32 scalars.

    `runs` is the number of stretches of sets that devices hold.
    """
    if isinstance(batch, PackedBatch):
        batch = densify(batch, genes=parts.model.genes, divisor=parts.divisor)
    key = rng.key_for(parts.seed, "loss", state.step)
    draws = objective.draw(key, batch.perturbed.shape, parts.schedule, parts.objective)
    if parts.accumulate > 1:
        gradients, metrics = accumulated(parts, state.params, batch, draws, runs)
    else:
        gradients, metrics = loss_gradient(parts, state.params, batch, draws)
    present = present_parameters(state.params, draws.drop, batch.source)
    metrics = {**metrics, "grad_norm": optax.global_norm(gradients)}
    return updated(parts, state, gradients, present), metrics


def initial_state(parts: StepParts, mesh: Mesh) -> TrainState:
    """The state before the first step, drawn where it will live: no device ever holds more than its share."""
    cut = sharding.state_shardings(_shapes(parts), mesh)
    return jax.jit(lambda: _state(parts), out_shardings=cut)()


def compile_step(parts: StepParts, mesh: Mesh) -> Callable:
    """The jitted step on a mesh: batch cut by sets (and runs of sets), state by the table of rules, and donated."""
    cut = sharding.state_shardings(_shapes(parts), mesh)

    def step(state, batch):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return train_step(parts, state, batch, runs=sharding.runs_of(mesh))

    return jax.jit(
        step,
        in_shardings=(cut, sharding.batch_sharding(mesh)),
        out_shardings=(cut, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def _state(parts: StepParts) -> TrainState:
    state = create_state(init_params(parts.model, rng.key_for(parts.seed, "init")), parts.tx)
    return state if parts.model.options.loops else trunk.written_out(state)


def _shapes(parts: StepParts) -> TrainState:
    return jax.eval_shape(lambda: _state(parts))

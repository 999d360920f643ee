"""The training state: step, parameters, their average, optimizer moments. A pytree of arrays, nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from perturbdiff_jax.models import trunk
from perturbdiff_jax.models.mmdit import Denoiser


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step reads and writes; randomness is addressed by `step`, so none is kept."""

    step: jax.Array  # [] int32, optimizer steps done
    params: dict
    ema: dict
    opt_state: optax.OptState


def init_params(model: Denoiser, key: jax.Array) -> dict:
    """Draws the parameters (float32); shapes do not depend on the number of sets or cells."""
    cells = jnp.zeros((1, 2, model.genes), jnp.float32)
    code = jnp.zeros((1,), jnp.int32)
    return jax.jit(model.init)(key, cells, code, cells, code, code, code)["params"]


def create_state(params: dict, tx: optax.GradientTransformation) -> TrainState:
    """State before the first step; the average starts as a copy of the parameters."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=tx.init(params),
    )


def count_parameters(params: dict) -> int:
    """Number of scalars in a parameter tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def as_stored(state: TrainState) -> TrainState:
    """The state with the blocks stacked, as checkpoints have it; placed as before."""
    if not trunk.is_written_out(state):
        return state
    placed = jax.tree.map(lambda leaf: leaf.sharding, trunk.stacked_shapes(state))
    return jax.jit(trunk.stacked, out_shardings=placed)(state)


def stored_shapes(like: TrainState) -> TrainState:
    """Shapes and shardings of `as_stored(like)`."""
    return trunk.stacked_shapes(like) if trunk.is_written_out(like) else like


def as_placed(stored: TrainState, like: TrainState) -> TrainState:
    """What `as_stored` has made, laid out and placed as `like`."""
    if not trunk.is_written_out(like):
        return stored
    placed = jax.tree.map(lambda leaf: leaf.sharding, like)
    return jax.jit(trunk.written_out, out_shardings=placed)(stored)

"""Small training states and the folders that they are saved in, for the tests of checkpoints."""

import jax.numpy as jnp
import numpy as np

from perturbdiff_jax.checkpoint import Checkpoints
from perturbdiff_jax.state import TrainState


def state(step):
    """Large enough for files that have a middle."""
    leaf = {"w": jnp.asarray(np.random.default_rng(step).normal(size=(64, 32)), jnp.float32)}
    moments = {"m": jnp.full((2,), float(step)), "n": jnp.int32(step)}
    return TrainState(step=jnp.int32(step), params=leaf, ema=leaf, opt_state=moments)


def opened(folder, *, keep=2, mode="min", **options):
    return Checkpoints(folder, metric="energy", mode=mode, keep=keep, **options)


def saved(folder, scores, **options):
    """Saves the steps of `scores` (None = no validation) and says which are left."""
    with opened(folder, **options) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(state(step), None if score is None else {"validation/energy": score})
    return left(folder)


def left(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())

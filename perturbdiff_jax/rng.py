"""Randomness by address: a key is `fold_in(fold_in(base, step), purpose)`, so nothing random is ever stored.

A resumed run asks for the same addresses and therefore repeats the unbroken one.
"""

import zlib

import jax

PURPOSES = ("init", "loss", "sample")


def key_for(seed: int, purpose: str, step: int | jax.Array = 0) -> jax.Array:
    """The key of one purpose at one step.

    Args:
      seed: the run's seed.
      purpose: one of PURPOSES; its name is hashed, so that adding a purpose never moves another's stream.
      step: global step or any other counter.

    Raises:
      KeyError: an unlisted purpose, which is a fault of ours.
    """
    if purpose not in PURPOSES:
        raise KeyError(f"unlisted purpose {purpose!r}")
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), zlib.crc32(purpose.encode()))

"""perturbdiff_jax: diffusion over distributions of single cells, in JAX and Flax.

`load(path)` opens a checkpoint bundle for prediction; everything else has a room of its own.
"""

__version__ = "0.1.0"
__all__ = ["load"]


def load(path, *, which: str = "best"):
    """Opens a checkpoint bundle (see predict.load); jax is imported only then."""
    from perturbdiff_jax.predict import load as open_bundle

    return open_bundle(path, which=which)

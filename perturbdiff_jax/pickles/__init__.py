"""Python pickles read as data: nothing that a file names is called, imported or built."""

from perturbdiff_jax.pickles.read import read_pickle
from perturbdiff_jax.pickles.values import Call, Named, Record

__all__ = ["Call", "Named", "Record", "read_pickle"]

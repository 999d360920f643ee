"""The glossary of shapes, and the batch that travels from the loader to the train step.

Letters, everywhere in this package:

    B  cell sets in a batch      G  genes            H  attention heads
    S  cells in a set            D  model width      L  transformer layers
    T  diffusion steps

Expression inside the model is log1p-normalised and divided by the bundle's divisor (10); at every door to a
user (files, AnnData) it is log1p-normalised. Codes are int32 positions in a vocabulary.
"""

import dataclasses
from typing import TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """B cell sets that each share (perturbation, cell type, batch), with their matched control cells."""

    perturbed: Array  # [B, S, G] float32, log1p / divisor
    control: Array  # [B, S, G] float32, log1p / divisor; row i is paired with row i of `perturbed`
    perturbation: Array  # [B] int32 code
    cell_type: Array  # [B] int32 code
    batch: Array  # [B] int32 code
    mask: Array  # [B, S] float32, 1 for a real cell and 0 for one drawn again to fill the set
    source: Array | None = None  # [B] int32 code, where every source of data has its own input layer

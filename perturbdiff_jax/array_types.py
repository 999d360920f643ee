"""The glossary of shapes, and the batch that travels from the loader to the train step.

Letters, everywhere in this package:

    B  cell sets in a batch      G  genes            H  attention heads
    S  cells in a set            D  model width      L  transformer layers
    T  diffusion steps

In a packed batch also D runs of sets (one per device), U cells and N stored values in a run.

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
    batch: Array  # [B] int32 code; [B, S], one per perturbed cell, where groups mix batches
    mask: Array  # [B, S] float32, 1 for a real cell and 0 for one drawn again to fill the set
    source: Array | None = None  # [B] int32 code, where every source of data has its own input layer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedBatch:
    """The same batch on its way to an accelerator: stored values only, every cell once; kernels/densify.py unpacks.

    The sets are cut into D runs of B / D sets, one for each device of the mesh's data axis, so that a device gets all
    that its own sets need. A run holds the stored values of its U cells one after the other, columns sorted in each
    cell, at most N of them; `row_nnz` and the maps say what is used. Three forms:

        words   data [D, N] uint32 = gene | count << 16; indices None
        values  data [D, N] uint16, uint32 (counts) or float32 (log1p values), indices [D, N] uint16 or uint32
        dense   data [D, U, G] uint8 counts; indices and row_nnz None
    """

    data: Array
    indices: Array | None
    row_nnz: Array | None  # [D, U] int32, stored values of each cell; 0 for unused rows
    scale: Array | None  # [D, U] float32, target sum / total of each cell; None for log1p values
    perturbed: Array  # [B, S] int32, row (below U) of each perturbed cell in the run of its set
    control: Array  # [B, S] int32, the same for its control cell
    perturbation: Array  # these five as in Batch
    cell_type: Array
    batch: Array
    mask: Array
    source: Array | None = None

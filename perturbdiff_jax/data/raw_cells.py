"""Cells as a store holds them: counts (or log1p values) as CSR or dense rows, not yet normalised.

This is the form that travels from the disk to the loader; `lognorm` is the way to what people and models see.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from perturbdiff_jax.data.values import normalise


@dataclasses.dataclass(frozen=True)
class RawCells:
    """n cells of G genes. CSR: `data`, `indices`, `indptr`. Dense: `data` [n, G], the other two None.

    Columns are sorted inside each row. `scale` is target_sum / total of each cell for counts, None for log1p values.
    """

    data: np.ndarray  # uint16, uint32 or float32 [nnz]; or uint8 [n, G]
    indices: np.ndarray | None  # uint16 or uint32 [nnz]
    indptr: np.ndarray | None  # int64 [n + 1], from 0
    scale: np.ndarray | None  # float32 [n]
    genes: int

    def __len__(self) -> int:
        return self.data.shape[0] if self.indptr is None else len(self.indptr) - 1

    @property
    def is_dense(self) -> bool:
        return self.indptr is None

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        parts = (self.data, self.indices, self.indptr, self.scale)
        return sum(part.nbytes for part in parts if part is not None)

    def lognorm(self) -> sp.csr_matrix:
        """log1p(count * scale), or the values themselves: float32 CSR [n, G], columns sorted."""
        if self.is_dense:
            matrix = sp.csr_matrix(self.data)
        else:
            # scipy wants int32 or int64 for both kinds of index.
            kind = np.int32 if len(self.data) < 2**31 else np.int64
            parts = (self.data, self.indices.astype(kind), self.indptr.astype(kind))
            matrix = sp.csr_matrix(parts, shape=(len(self), self.genes))
        return matrix if self.scale is None else normalise(matrix, self.scale)


def concatenated(parts: Sequence[RawCells]) -> RawCells:
    """Cells of several reads after each other; all of one kind (dense or CSR, counts or values), same genes."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    scale = None if first.scale is None else np.concatenate([part.scale for part in parts])
    data = np.concatenate([part.data for part in parts])
    if first.is_dense:
        return RawCells(data, None, None, scale, first.genes)
    ends = np.cumsum([0, *(int(part.indptr[-1]) for part in parts)])
    pointers = [part.indptr[1:] + end for part, end in zip(parts, ends)]
    indices = np.concatenate([part.indices for part in parts])
    return RawCells(data, indices, np.concatenate([[0], *pointers]).astype(np.int64), scale, first.genes)

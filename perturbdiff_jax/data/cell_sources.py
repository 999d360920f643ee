"""Other things that read like an open h5ad file: an AnnData in memory, and some rows of either.

They have H5ad's face, so that values.py checks them by the same rules and in the same words.
"""

from collections.abc import Iterator

import anndata
import numpy as np
import scipy.sparse as sp

from perturbdiff_jax.data.h5ad import H5ad
from perturbdiff_jax.data.preparation.matrix import BLOCK_ELEMENTS, canonical, widened
from perturbdiff_jax.errors import RequestError


class InMemory(H5ad):
    """An AnnData (in memory or backed) with the attributes and methods of H5ad; it is not changed (a slice copies).

    Raises RequestError for duplicated names, a missing X or one that holds no numbers.
    """

    def __init__(self, adata: anndata.AnnData, label: str = "AnnData"):
        self.label, self.where = label, "X"
        self.genes = self._checked_names(adata.var_names, "var", "gene").astype(object)
        self.cells = self._checked_names(adata.obs_names, "obs", "cell")
        self._obs, self._var = adata.obs, adata.var
        self.columns = [str(name) for name in adata.obs.columns]
        self._matrix = adata.X
        if self._matrix is None:
            raise RequestError(f"{label}: X holds no matrix (CSR, CSC or dense is needed).")
        if self._matrix.dtype.kind not in "fiub":
            raise RequestError(f"{label}: X holds {self._matrix.dtype}, not numbers.")

    def __exit__(self, *_) -> None:
        pass  # nothing was opened

    def _var_columns(self) -> list[str]:
        return [str(name) for name in self._var.columns]

    def _var_column(self, name: str):
        return self._var[name]

    def blocks(self, elements: int = BLOCK_ELEMENTS) -> Iterator[tuple[int, sp.csr_matrix]]:
        """As H5ad.blocks; the rows are copies."""
        rows = max(1, elements // len(self.genes))
        matrix = self._matrix.tocsr() if sp.issparse(self._matrix) else self._matrix
        for start in range(0, len(self.cells), rows):
            part = matrix[start : start + rows]
            if sp.issparse(part):
                block = sp.csr_matrix(part)
                block.data = widened(block.data)
            else:
                block = sp.csr_matrix(widened(np.asarray(part)))
            yield start, canonical(block)


class SomeRows:
    """The cells `rows` (ascending) of an open file; the others are never looked at nor kept."""

    def __init__(self, file: H5ad, rows: np.ndarray):
        self.label, self.where, self.genes, self.cells = file.label, file.where, file.genes, file.cells[rows]
        self._file, self._rows = file, rows

    def numbers(self, name: str, *, flag: str = "") -> np.ndarray:
        """As H5ad.numbers."""
        return self._file.numbers(name, flag=flag)[self._rows]

    def blocks(self, elements: int = BLOCK_ELEMENTS) -> Iterator[tuple[int, sp.csr_matrix]]:
        """As H5ad.blocks; row numbers count the chosen rows."""
        for start, block in self._file.blocks(elements):
            low, high = np.searchsorted(self._rows, [start, start + block.shape[0]])
            if high > low:
                yield int(low), block[self._rows[low:high] - start]

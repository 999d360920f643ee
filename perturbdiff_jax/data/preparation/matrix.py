"""The matrix of an AnnData h5ad file, read by ranges of rows: CSR, CSC or dense, `X` or a layer.

Needs h5py, numpy and scipy only, so that a worker process of `prepare` starts quickly. What the numbers may be
is checked elsewhere (preparation/checks.py, values.py).
"""

import contextlib
from collections.abc import Iterator

import h5py
import numpy as np
import scipy.sparse as sp

from perturbdiff_jax.errors import RequestError, shorten, unknown

# Matrix elements read at once: bounds the memory of a block (dense or sparse).
BLOCK_ELEMENTS = 4 * 1024 * 1024


class Matrix:
    """One matrix of an open h5ad file.

    Attributes: `layout` ("csr", "csc" or "dense"), `shape` (cells, genes), `where` ("X" or "layer 'L'"), `stored`
    (numbers in the file). Raises RequestError when the file has no such matrix or a damaged one.
    """

    def __init__(self, file: h5py.File, *, layer: str | None, label: str):
        self.label = label
        layers = list(file["layers"]) if "layers" in file else []
        if layer is not None and layer not in layers:
            raise unknown("layer", layer, layers or ["(the file has no layers)"], label)
        self.where = f"layer {layer!r}" if layer is not None else "X"
        node = file[f"layers/{layer}"] if layer is not None else file.get("X")
        encoding = (
            "" if node is None else node.attrs.get("encoding-type", node.attrs.get("h5sparse_format", ""))
        )
        encoding = encoding.decode() if isinstance(encoding, bytes) else str(encoding)
        if isinstance(node, h5py.Dataset) and node.ndim == 2:
            self.layout, self.shape = "dense", node.shape
            self.stored = node.shape[0] * node.shape[1]
        elif isinstance(node, h5py.Group) and encoding[:3] in ("csr", "csc"):
            self.layout = encoding[:3]
            shape = node.attrs.get("shape", node.attrs.get("h5sparse_shape", ()))
            self.shape = tuple(int(number) for number in shape)
            self.stored = int(node["data"].shape[0])
        else:
            held = f"layers: {shorten(layers)}" if layers else "no layers"
            raise RequestError(
                f"{label}: {self.where} holds no matrix (CSR, CSC or dense is needed; there are {held})."
            )
        numbers = (node if self.layout == "dense" else node["data"]).dtype
        if numbers.kind not in "fiub":
            raise RequestError(f"{label}: {self.where} holds {numbers}, not numbers.")
        self._node, self._pointers = node, None

    def pieces(self, elements: int, start: int = 0, stop: int | None = None) -> list[tuple[int, int]]:
        """Rows start..stop-1 cut into ranges that hold about `elements` numbers, one row at least.

        A CSC matrix cannot be read by rows: it is one piece.
        """
        stop = self.shape[0] if stop is None else stop
        if self.layout == "csc":
            return [(start, stop)]
        if self.layout == "dense":
            rows = max(1, elements // self.shape[1])
            return [(row, min(row + rows, stop)) for row in range(start, stop, rows)]
        found, pointers = [], self._row_pointers(start, stop)
        while start < stop:
            offset = stop - len(pointers) + 1
            reach = np.searchsorted(pointers, pointers[start - offset] + elements, side="right") - 1 + offset
            end = min(max(int(reach), start + 1), stop)
            found.append((start, end))
            start = end
        return found

    def read(self, start: int, stop: int) -> sp.csr_matrix:
        """Rows start..stop-1 as canonical CSR (sorted, no duplicates, no stored zeros), in the file's own dtype.

        float16 and bool are widened. Raises RequestError for a matrix that does not fit together or cannot be read.
        """
        with self._readable():
            if self.layout == "dense":
                return sp.csr_matrix(widened(self._node[start:stop]))
            if self.layout == "csc":
                parts = (self._node[name][()] for name in ("data", "indices", "indptr"))
                data, indices, indptr = parts
                whole = sp.csc_matrix((widened(data), indices, indptr), shape=self.shape).tocsr()
                return canonical(whole[start:stop] if (start, stop) != (0, self.shape[0]) else whole)
            pointers = self._row_pointers(start, stop)
            low, high = int(pointers[0]), int(pointers[-1])
            indices = self._node["indices"][low:high]
            data = widened(self._node["data"][low:high])
        genes = self.shape[1]
        if len(indices) and (indices.min() < 0 or indices.max() >= genes):
            raise RequestError(
                f"{self.label}: {self.where} points at genes that do not exist: the file is damaged."
            )
        # Columns as int32 halve the memory of files that hold int64.
        parts = (data, indices.astype(np.int32, copy=False), pointers - low)
        return canonical(sp.csr_matrix(parts, shape=(stop - start, genes)))

    def _row_pointers(self, start: int, stop: int) -> np.ndarray:
        """indptr[start .. stop] as int64, checked; the last ones asked for are kept."""
        if self._pointers is None or start < self._pointers[0] or stop > self._pointers[1]:
            with self._readable():
                stored = self._node["indptr"].shape[0]
                pointers = self._node["indptr"][start : stop + 1].astype(np.int64)
            if (
                stored != self.shape[0] + 1
                or (np.diff(pointers) < 0).any()
                or pointers[0] < 0
                or pointers[-1] > self.stored
                or (start == 0 and pointers[0] != 0)
                or (stop == self.shape[0] and pointers[-1] != self.stored)
            ):
                raise RequestError(
                    f"{self.label}: {self.where}/indptr does not fit its data: the file is damaged."
                )
            self._pointers = (start, stop, pointers)
        first, _, pointers = self._pointers
        return pointers[start - first : stop - first + 1]

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # what h5py raises for a cut-off or corrupt file
            raise RequestError(
                f"{self.label}: {self.where} cannot be read, the file is damaged ({error})."
            ) from error


def canonical(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """The matrix itself with sorted columns, no duplicates and no stored zeros."""
    matrix.sum_duplicates()
    if matrix.nnz and not matrix.data.all():
        matrix.eliminate_zeros()
    return matrix


def widened(values: np.ndarray) -> np.ndarray:
    """float16 and bool made wider: scipy's sparse matrices cannot hold or sum them."""
    return values.astype(np.float32) if values.dtype.itemsize < 4 and values.dtype.kind in "fb" else values


def take_rows(
    indptr: np.ndarray, rows: np.ndarray, data: np.ndarray, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of a CSR matrix in another order: (indptr, data, indices), the last two of the same types as before."""
    # scipy copies whole rows, several times faster than numpy picks elements; it wants one type for all indices.
    kind = np.int32 if len(data) < 2**31 else np.int64
    parts = (data, indices.astype(kind, copy=False), indptr.astype(kind, copy=False))
    # The number of columns does not matter here, and looking for the largest costs a pass.
    taken = sp.csr_matrix(parts, shape=(len(indptr) - 1, np.iinfo(np.int32).max))[rows]
    return taken.indptr, taken.data, taken.indices.astype(indices.dtype, copy=False)

"""Opening an AnnData h5ad file: names, obs columns and the matrix in blocks of rows.

Read as data and never executed. Owns how the file is laid out (CSR, CSC or dense; `X` or a layer; old and new
dataframe encodings). What the numbers may be is checked in values.py; this module knows nothing of
perturbations or splits.
"""

import pathlib
from collections.abc import Iterator

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbdiff_jax.errors import RequestError, shorten, unknown

BLOCK_ELEMENTS = (
    4 * 1024 * 1024
)  # matrix elements read at once: bounds the memory of a block (dense or sparse)


class H5ad:
    """An open h5ad file. Use as a context manager: `with H5ad(path, layer="counts") as file: ...`.

    Attributes: `path`, `label` (name for messages), `genes` and `cells` (object arrays of str, checked to be
    unique), `columns` (names in obs), `layout` ("csr", "csc" or "dense").
    Raises RequestError for a missing file, a file that is not an h5ad, a missing layer, or duplicated names.
    """

    def __init__(self, path: str | pathlib.Path, *, layer: str | None = None):
        self.path = pathlib.Path(path)
        self.label = str(path)
        if not self.path.is_file():
            what = "is a folder, not an h5ad file" if self.path.is_dir() else "no such file"
            raise RequestError(f"{self.label}: {what}.")
        try:
            self.file = h5py.File(self.path, "r")
        except OSError as error:
            raise RequestError(
                f"{self.label}: not an h5ad file (cannot be opened as HDF5: {error}).\n"
                "Allowed: AnnData files written with adata.write_h5ad."
            ) from error
        try:
            self._read_layout(layer)
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> "H5ad":
        return self

    def __exit__(self, *_) -> None:
        self.file.close()

    def _read_layout(self, layer: str | None) -> None:
        if "obs" not in self.file or "var" not in self.file:
            raise RequestError(
                f"{self.label}: not an h5ad file (it has {shorten(self.file) or 'nothing'}, not obs and var)."
            )
        self.genes = self._index("var", "gene")
        self.cells = self._index("obs", "cell")
        self._obs = None  # filled only for old files, whose obs cannot be read column by column
        group = self.file["obs"]
        if isinstance(group, h5py.Group) and "__categories" not in group and "column-order" in group.attrs:
            self.columns = [str(name) for name in group.attrs["column-order"]]
        else:
            self._obs = anndata.io.read_elem(group)
            self.columns = [str(name) for name in self._obs.columns]
        self._find_matrix(layer)

    def _index(self, axis: str, kind: str) -> np.ndarray:
        node = self.file[axis]
        try:
            if isinstance(node, h5py.Group):
                names = anndata.io.read_elem(node[node.attrs.get("_index", "_index")])
            else:
                names = anndata.io.read_elem(node).index
        except (KeyError, ValueError, TypeError) as error:
            raise RequestError(f"{self.label}: the names in {axis} cannot be read ({error}).") from error
        return self._checked_names(names, axis, kind)

    def _checked_names(self, names, axis: str, kind: str) -> np.ndarray:
        names = np.array([str(name) for name in np.asarray(names)], dtype=object)
        if not len(names):
            raise RequestError(f"{self.label}: {axis} is empty: there is no {kind} in the file.")
        twice = pd.Index(names)[pd.Index(names).duplicated()].unique()
        if len(twice):
            raise RequestError(
                f"{self.label}: {len(twice)} duplicated {kind} name(s) in {axis}: {shorten(twice, 3)}.\n"
                f"Every {kind} name must be unique (adata.{axis}_names_make_unique() renames them)."
            )
        return names

    def _find_matrix(self, layer: str | None) -> None:
        layers = list(self.file["layers"]) if "layers" in self.file else []
        if layer is not None and layer not in layers:
            raise unknown("layer", layer, layers or ["(the file has no layers)"], self.label)
        self.where = f"layer {layer!r}" if layer is not None else "X"
        node = self.file[f"layers/{layer}"] if layer is not None else self.file.get("X")
        encoding = (
            "" if node is None else node.attrs.get("encoding-type", node.attrs.get("h5sparse_format", ""))
        )
        encoding = encoding.decode() if isinstance(encoding, bytes) else str(encoding)
        if isinstance(node, h5py.Dataset) and node.ndim == 2:
            self.layout, shape = "dense", node.shape
        elif isinstance(node, h5py.Group) and encoding[:3] in ("csr", "csc"):
            self.layout = encoding[:3]
            shape = tuple(int(n) for n in node.attrs.get("shape", node.attrs.get("h5sparse_shape", ())))
        else:
            held = f"layers: {shorten(layers)}" if layers else "no layers"
            raise RequestError(
                f"{self.label}: {self.where} holds no matrix (CSR, CSC or dense is needed; there are {held})."
            )
        if shape != (len(self.cells), len(self.genes)):
            raise RequestError(
                f"{self.label}: {self.where} has shape {shape}, but obs and var have "
                f"{len(self.cells)} cells and {len(self.genes)} genes: the file is damaged."
            )
        numbers = (node if self.layout == "dense" else node["data"]).dtype
        if numbers.kind not in "fiub":
            raise RequestError(f"{self.label}: {self.where} holds {numbers}, not numbers.")
        self._matrix = node

    def _column(self, name: str, flag: str) -> pd.Series:
        if name not in self.columns:
            raise unknown("obs column", name, self.columns, f"{self.label} ({flag})" if flag else self.label)
        if self._obs is not None:
            return self._obs[name]
        return pd.Series(anndata.io.read_elem(self.file["obs"][name]))

    def labels(self, name: str, *, flag: str = "") -> np.ndarray:
        """Reads obs column `name` as labels: object array of str [n_cells]. Missing values are refused.

        `flag` is the option that asked for the column, named in the message.
        """
        column = self._column(name, flag)
        missing = np.asarray(column.isna()) | np.asarray(column.astype(str) == "")
        if missing.any():
            first = int(np.argmax(missing))
            raise RequestError(
                f"{self.label}: column {name!r} has {int(missing.sum())} missing value(s), "
                f"first at cell {self.cells[first]!r}.\n"
                "Allowed: a label for every cell; fill it in or remove those cells."
            )
        return np.array([str(value) for value in np.asarray(column)], dtype=object)

    def gene_labels(self, name: str, *, flag: str = "") -> np.ndarray:
        """Column `name` of var as object array of str (missing values become "nan"), one for each gene."""
        var = self._var_columns()
        if name not in var:
            raise unknown("var column", name, list(var), f"{self.label} ({flag})" if flag else self.label)
        return np.array([str(value) for value in np.asarray(self._var_column(name))], dtype=object)

    def _var_columns(self) -> list[str]:
        group = self.file["var"]
        if isinstance(group, h5py.Group) and "column-order" in group.attrs:
            return [str(name) for name in group.attrs["column-order"]]
        return [str(name) for name in anndata.io.read_elem(group).columns]

    def _var_column(self, name: str):
        group = self.file["var"]
        if isinstance(group, h5py.Group) and "__categories" not in group:
            return anndata.io.read_elem(group[name])
        return anndata.io.read_elem(group)[name]

    def numbers(self, name: str, *, flag: str = "") -> np.ndarray:
        """Reads obs column `name` as finite float64 [n_cells]."""
        column = self._column(name, flag)
        try:
            values = np.asarray(pd.to_numeric(column.astype(object)), dtype=np.float64)
        except (ValueError, TypeError) as error:
            raise RequestError(f"{self.label}: column {name!r} is not numeric ({error}).") from error
        wrong = ~np.isfinite(values)
        if wrong.any():
            first = int(np.argmax(wrong))
            raise RequestError(
                f"{self.label}: column {name!r} has {int(wrong.sum())} missing or infinite value(s), "
                f"first {values[first]} at cell {self.cells[first]!r}."
            )
        return values

    def blocks(self, elements: int = BLOCK_ELEMENTS) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Yields (first row, CSR block) over all rows in order, in the file's own dtype.

        A block holds about `elements` numbers. Rows are canonical (sorted, no duplicates, no stored zeros).
        A CSC matrix is turned round in memory first: it cannot be read by rows.
        """
        genes = len(self.genes)
        if self.layout == "dense":
            rows = max(1, elements // genes)
            for start in range(0, len(self.cells), rows):
                yield start, sp.csr_matrix(widened(self._matrix[start : start + rows]))
            return
        if self.layout == "csc":
            parts = (
                widened(self._matrix["data"][()]),
                self._matrix["indices"][()],
                self._matrix["indptr"][()],
            )
            whole = sp.csc_matrix(parts, shape=(len(self.cells), genes)).tocsr()
            yield 0, canonical(whole)
            return
        indptr = self._matrix["indptr"][()].astype(np.int64)
        self._check_pointers(indptr)
        start = 0
        while start < len(self.cells):
            stop = int(np.searchsorted(indptr, indptr[start] + elements, side="right")) - 1
            stop = min(max(stop, start + 1), len(self.cells))
            low, high = indptr[start], indptr[stop]
            indices = self._matrix["indices"][low:high]
            if len(indices) and (indices.min() < 0 or indices.max() >= genes):
                raise RequestError(
                    f"{self.label}: {self.where} points at genes that do not exist: the file is damaged."
                )
            parts = (widened(self._matrix["data"][low:high]), indices, indptr[start : stop + 1] - low)
            yield start, canonical(sp.csr_matrix(parts, shape=(stop - start, genes)))
            start = stop

    def _check_pointers(self, indptr: np.ndarray) -> None:
        stored = self._matrix["data"].shape[0]
        if (
            len(indptr) != len(self.cells) + 1
            or indptr[0] != 0
            or indptr[-1] != stored
            or (np.diff(indptr) < 0).any()
        ):
            raise RequestError(
                f"{self.label}: {self.where}/indptr does not fit its data: the file is damaged."
            )


def canonical(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """The matrix itself with sorted columns, no duplicates and no stored zeros."""
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    matrix.sort_indices()
    return matrix


def widened(values: np.ndarray) -> np.ndarray:
    """float16 and bool made wider: scipy's sparse matrices cannot hold or sum them."""
    return values.astype(np.float32) if values.dtype.itemsize < 4 and values.dtype.kind in "fb" else values

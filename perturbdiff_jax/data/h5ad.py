"""Opening an AnnData h5ad file: names, obs columns and the matrix in blocks of rows.

Read as data and never executed. Owns the dataframes of the file, in old and new encodings; the matrix is read by
preparation/matrix.py, and what its numbers may be is checked in values.py. This module knows nothing of
perturbations or splits. Nothing holds a Python object for every cell: names are numpy strings, labels are codes.
"""

import pathlib
from collections.abc import Iterator

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbdiff_jax.data.preparation.matrix import BLOCK_ELEMENTS, Matrix
from perturbdiff_jax.errors import RequestError, shorten, unknown

TEXT = np.dtypes.StringDType()
NAMES_AT_ONCE = 1 << 17  # strings that are Python objects at one time


class H5ad:
    """An open h5ad file. Use as a context manager: `with H5ad(path, layer="counts") as file: ...`.

    Attributes: `path`, `label` (name for messages), `genes` (object array of str) and `cells` (StringDType array),
    both checked to be unique, `columns` (names in obs), `matrix` (Matrix), `where` (its name).
    Raises RequestError for a missing file, a file that is not an h5ad, a missing layer, or duplicated names.
    """

    def __init__(self, path: str | pathlib.Path, *, layer: str | None = None):
        self.path = pathlib.Path(path)
        self.label = str(path)
        check_file(path)
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
        self.genes = self._index("var", "gene").astype(object)
        self.cells = self._index("obs", "cell")
        self._obs = None  # filled only for old files, whose obs cannot be read column by column
        group = self.file["obs"]
        if isinstance(group, h5py.Group) and "__categories" not in group and "column-order" in group.attrs:
            self.columns = [str(name) for name in group.attrs["column-order"]]
        else:
            self._obs = anndata.io.read_elem(group)
            self.columns = [str(name) for name in self._obs.columns]
        self.matrix = Matrix(self.file, layer=layer, label=self.label)
        self.where = self.matrix.where
        if self.matrix.shape != (len(self.cells), len(self.genes)):
            raise RequestError(
                f"{self.label}: {self.where} has shape {self.matrix.shape}, but obs and var have "
                f"{len(self.cells)} cells and {len(self.genes)} genes: the file is damaged."
            )

    def _index(self, axis: str, kind: str) -> np.ndarray:
        node = self.file[axis]
        try:
            if isinstance(node, h5py.Group):
                names = node[node.attrs.get("_index", "_index")]
                if not isinstance(names, h5py.Dataset) or h5py.check_string_dtype(names.dtype) is None:
                    names = anndata.io.read_elem(names)
            else:
                names = anndata.io.read_elem(node).index
        except (KeyError, ValueError, TypeError) as error:
            raise RequestError(f"{self.label}: the names in {axis} cannot be read ({error}).") from error
        return self._checked_names(names, axis, kind)

    def _checked_names(self, names, axis: str, kind: str) -> np.ndarray:
        """StringDType array; `names` is an HDF5 dataset of strings or any array or index of names."""
        if not len(names):
            raise RequestError(f"{self.label}: {axis} is empty: there is no {kind} in the file.")
        texts = np.empty(len(names), dtype=TEXT)
        marks = np.empty(len(names), dtype=np.int64)
        for start in range(0, len(names), NAMES_AT_ONCE):
            stop = min(start + NAMES_AT_ONCE, len(names))
            texts[start:stop], marks[start:stop] = _texts(names, start, stop)
        twice = _repeated(texts, marks)
        if len(twice):
            raise RequestError(
                f"{self.label}: {len(twice)} duplicated {kind} name(s) in {axis}: {shorten(twice, 3)}.\n"
                f"Every {kind} name must be unique (adata.{axis}_names_make_unique() renames them)."
            )
        return texts

    def _column(self, name: str, flag: str) -> pd.Series:
        if name not in self.columns:
            raise unknown("obs column", name, self.columns, f"{self.label} ({flag})" if flag else self.label)
        if self._obs is not None:
            return self._obs[name]
        return pd.Series(anndata.io.read_elem(self.file["obs"][name]))

    def codes(self, name: str, *, flag: str = "") -> tuple[np.ndarray, list[str]]:
        """Obs column `name` as labels: (int32 codes [n_cells], sorted names, each of them used).

        Missing values are refused; `flag` is the option that asked for the column, named in the message.
        """
        column = self._column(name, flag)
        if isinstance(column.dtype, pd.CategoricalDtype):
            codes, values = column.cat.codes.to_numpy(), list(column.cat.categories)
        else:
            codes, values = pd.factorize(column)
        codes = np.asarray(codes, dtype=np.int32)
        texts = [str(value) for value in values]
        blank = [code for code, text in enumerate(texts) if text == ""]
        missing = (codes < 0) | np.isin(codes, blank)
        if missing.any():
            first = int(np.argmax(missing))
            raise RequestError(
                f"{self.label}: column {name!r} has {int(missing.sum())} missing value(s), "
                f"first at cell {self.cells[first]!r}.\n"
                "Allowed: a label for every cell; fill it in or remove those cells."
            )
        # Two values may read alike (1 and "1"), and a category may have no cell.
        used = np.bincount(codes, minlength=len(texts)) > 0
        names = sorted({text for text, is_used in zip(texts, used, strict=True) if is_used})
        places = {text: code for code, text in enumerate(names)}
        return np.array([places.get(text, -1) for text in texts], dtype=np.int32)[codes], names

    def labels(self, name: str, *, flag: str = "") -> np.ndarray:
        """Obs column `name` as labels: object array of str [n_cells]; see `codes`."""
        codes, names = self.codes(name, flag=flag)
        return np.array(names, dtype=object)[codes]

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
            values = np.asarray(_numeric(column), dtype=np.float64)
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
        """Yields (first row, canonical CSR block) over all rows in order, in the file's own dtype.

        A block holds about `elements` numbers. A CSC matrix is turned round in memory first.
        """
        for start, stop in self.matrix.pieces(elements):
            yield start, self.matrix.read(start, stop)


def check_file(path: str | pathlib.Path) -> None:
    """Raises RequestError unless there is such a file."""
    if not pathlib.Path(path).is_file():
        what = "is a folder, not an h5ad file" if pathlib.Path(path).is_dir() else "no such file"
        raise RequestError(f"{path}: {what}.")


def _texts(names, start: int, stop: int) -> tuple[np.ndarray | list[str], np.ndarray]:
    """Some of the names, and a hash of each."""
    if not isinstance(names, h5py.Dataset):
        texts = [str(name) for name in np.asarray(names[start:stop])]
        return texts, np.fromiter(map(hash, texts), np.int64, len(texts))
    raw = names[start:stop].tolist()
    marks = np.fromiter(map(hash, raw), np.int64, len(raw))
    packed = np.array(raw, dtype=bytes)
    if packed.view(np.uint8).max(initial=0) < 128:
        return packed.astype(TEXT), marks  # ASCII: no string is made one by one
    return [name.decode() for name in raw], marks


def _repeated(texts: np.ndarray, marks: np.ndarray) -> list[str]:
    """Names that occur more than once; `marks` are their hashes, which are looked at first."""
    ranked = np.sort(marks)
    same = ranked[1:][ranked[1:] == ranked[:-1]]
    if not len(same):
        return []
    names = pd.Index(texts[np.isin(marks, same)].astype(object))
    return list(names[names.duplicated()].unique())


def _numeric(column: pd.Series) -> pd.Series:
    return column if column.dtype.kind in "iuf" else pd.to_numeric(column.astype(object))

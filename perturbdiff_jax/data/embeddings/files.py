"""Embedding files: a vector for each name, from arrays, tables or a pickle (read as data, never executed)."""

import dataclasses
import functools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from perturbdiff_jax.data.embeddings.row_names import in_rows_order, read_row_names
from perturbdiff_jax.errors import RequestError, shorten
from perturbdiff_jax.pickles import Record, read_pickle

# Columns of a table that hold the names, in this order of preference; without one it is the first column.
NAME_COLUMNS = ("name", "perturbation", "gene", "gene_name", "symbol", "drug", "cell_type", "cytokine")
NAME_ARRAYS = ("names", "name", "labels", "index")
VECTOR_ARRAYS = ("vectors", "embeddings", "embedding", "values", "x", "X")


@dataclasses.dataclass(frozen=True)
class Vectors:
    """Names and their vectors [N, W] float32, as one file has them."""

    names: tuple[str, ...]
    vectors: np.ndarray
    path: str

    @property
    def width(self) -> int:
        """W."""
        return self.vectors.shape[1]

    @functools.cached_property
    def rows(self) -> dict[str, int]:
        """Name -> its row."""
        return {name: row for row, name in enumerate(self.names)}


def read_vectors(path: str | Path, names: str | None = None) -> Vectors:
    """Reads an embedding file; which kind it is, its name tells.

    .npz      arrays `names` [N] and `vectors` (or `embeddings`) [N, W], or an array [W] for each name
    .npy      an array [N, W], whose rows `names` tells; .npz and .pkl may hold one as well
    .csv .tsv a column of names (`name`, `gene`, ..., else the first) and W columns of numbers; may be gzipped
    .parquet  the same, or one column of lists; names may be the index
    .pkl      a dict of name -> vector, or a pair (names, matrix)

    Args:
      path: the file.
      names: a list of names for a table that has row numbers instead; see row_names.py.

    Raises:
      RequestError: no such file, another kind, a name twice, vectors of different widths, a value that is no finite
        number; as `row_names`.
    """
    file = Path(path)
    if not file.is_file():
        raise RequestError(f"{path}: no such file (an embedding file is needed).")
    suffixes = [suffix.lower() for suffix in file.suffixes if suffix.lower() != ".gz"]
    reader = _READERS.get(suffixes[-1] if suffixes else "")
    if reader is None:
        raise RequestError(
            f"{path}: embeddings are read from {', '.join(_READERS)}; the file's name says which."
        )
    keys, rows = reader(file)
    if names is not None:
        listed = read_row_names(names)
        keys, rows = listed, in_rows_order(keys, rows, listed, table=str(path), listed=names)
    return checked(keys, rows, str(path))


def checked(names: list, rows: Any, path: str) -> Vectors:
    """Names [N] and vectors (N of them, or [N, W]) as `Vectors`.

    Raises:
      RequestError: as `read_vectors`.
    """
    if not len(names):
        raise RequestError(f"{path}: holds no vector.")
    others = [name for name in names if not isinstance(name, str)]
    if others:
        raise RequestError(
            f"{path}: {len(others)} of {len(names)} names are no strings (first {others[0]!r}); a vector needs the "
            f"name it is for. A list of names may stand beside the file: {path}@NAMES.txt."
        )
    names = [name.strip() for name in names]
    twice = pd.Index(names)[pd.Index(names).duplicated()].unique()
    if len(twice):
        raise RequestError(f"{path}: {len(twice)} name(s) stand there more than once: {shorten(twice, 3)}.")
    if not isinstance(rows, np.ndarray):
        shapes = [np.shape(row) for row in rows]
        wrong = next((at for at, shape in enumerate(shapes) if len(shape) != 1 or shape != shapes[0]), None)
        if wrong is not None:
            raise RequestError(
                f"{path}: the vector of {names[wrong]!r} has shape {shapes[wrong]}, that of {names[0]!r} "
                f"{shapes[0]}; all must be [width]."
            )
        rows = np.stack([np.asarray(row) for row in rows])
    if rows.ndim != 2 or len(rows) != len(names) or not rows.shape[1]:
        raise RequestError(f"{path}: {len(names)} names, but vectors of shape {rows.shape}.")
    if rows.dtype.kind not in "fiu":
        text = next(value for row in rows.tolist() for value in row if not isinstance(value, int | float))
        raise RequestError(f"{path}: vectors are numbers; among these is {text!r}.")
    vectors = np.ascontiguousarray(rows, dtype=np.float32)
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        raise RequestError(
            f"{path}: {int(bad.sum())} vector(s) have NaN or infinite values: "
            f"{shorten([names[at] for at in np.flatnonzero(bad)], 3)}."
        )
    return Vectors(tuple(names), vectors, path)


def _from_npz(file: Path) -> tuple[list, Any]:
    try:
        with np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise RequestError(f"{file}: cannot be read as npz ({_first_line(error)}).") from None
    names = next((arrays[name] for name in NAME_ARRAYS if name in arrays), None)
    vectors = next((arrays[name] for name in VECTOR_ARRAYS if name in arrays), None)
    if names is not None and vectors is not None:
        return [str(name) if isinstance(name, np.str_) else name for name in names.ravel()], vectors
    if vectors is None and len(arrays) == 1:
        vectors = next(iter(arrays.values()))
    if names is None and vectors is not None and vectors.ndim == 2:
        return list(range(len(vectors))), vectors
    return list(arrays), list(arrays.values())


def _from_npy(file: Path) -> tuple[list, Any]:
    try:
        array = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise RequestError(f"{file}: cannot be read as npy ({_first_line(error)}).") from None
    return _bare(array, file)


def _bare(array: np.ndarray, file: Path) -> tuple[list, Any]:
    if array.ndim != 2:
        raise RequestError(f"{file}: an array of shape {array.shape}; [names, width] is needed.")
    return list(range(len(array))), array


def _from_text(file: Path) -> tuple[list, Any]:
    tabs = ".tsv" in [suffix.lower() for suffix in file.suffixes]
    how = {"sep": "\t" if tabs else ",", "encoding": "utf-8-sig"}
    try:
        head = pd.read_csv(file, nrows=0, **how)
        text = {_name_column(head): str}
        # "NA" is a name like any other; only what is empty is missing.
        table = pd.read_csv(file, dtype=text, keep_default_na=False, na_values=[""], **how)
    except (ValueError, OSError, EOFError) as error:  # ValueError is the parent of pandas' own
        raise RequestError(f"{file}: cannot be read as a table ({_first_line(error)}).") from None
    return _from_table(table, file)


def _from_parquet(file: Path) -> tuple[list, Any]:
    try:
        table = pd.read_parquet(file)
    except ImportError:
        raise RequestError(f"{file}: parquet files need pyarrow (pip install pyarrow).") from None
    except (ValueError, OSError) as error:  # pyarrow's own errors are among these
        raise RequestError(f"{file}: cannot be read as parquet ({_first_line(error)}).") from None
    if not isinstance(table.index, pd.RangeIndex) and not any(c in NAME_COLUMNS for c in table.columns):
        table = table.reset_index()
    return _from_table(table, file)


def _from_table(table: pd.DataFrame, file: Path) -> tuple[list, Any]:
    if table.shape[1] < 2:
        raise RequestError(
            f"{file}: {table.shape[1]} column(s); needed are one of names and at least one of numbers."
        )
    column = _name_column(table)
    absent = table[column].isna()
    if absent.any():
        raise RequestError(f"{file}: column {column!r} has no name in row {int(np.argmax(absent)) + 1}.")
    names = table[column].astype(object).tolist()
    if not names:
        return [], []
    rest = table.drop(columns=column)
    if rest.shape[1] == 1 and not pd.api.types.is_numeric_dtype(rest.iloc[:, 0]):
        first = rest.iloc[0, 0]
        if isinstance(first, np.ndarray | list | tuple):
            return names, [np.asarray(row) for row in rest.iloc[:, 0]]
    for name in rest.columns:
        if not pd.api.types.is_numeric_dtype(rest[name]) or pd.api.types.is_bool_dtype(rest[name]):
            wrong = pd.to_numeric(rest[name], errors="coerce").isna()
            at = int(np.argmax(wrong))
            raise RequestError(
                f"{file}: column {name!r} holds {rest[name].iloc[at]!r} for {names[at]!r}; vectors are numbers."
            )
    return names, rest.to_numpy(dtype=np.float64)


def _from_pickle(file: Path) -> tuple[list, Any]:
    content = read_pickle(file.read_bytes(), where=str(file))
    if isinstance(content, np.ndarray):
        return _bare(content, file)
    if isinstance(content, tuple | list) and len(content) == 2 and isinstance(content[1], np.ndarray):
        return list(np.asarray(content[0]).ravel().tolist()), content[1]
    if not isinstance(content, Mapping) or not content:
        found = content.named if isinstance(content, Record) else type(content).__name__
        raise RequestError(f"{file}: holds a {found}; a dict of name -> vector is needed.")
    name, value = next(((n, v) for n, v in content.items() if not _is_vector(v)), (None, None))
    if name is not None:
        found = value.named if isinstance(value, Record) else type(value).__name__
        raise RequestError(f"{file}: {name!r} is a {found}; each name needs a list or an array of numbers.")
    return list(content), list(content.values())


def _name_column(table: pd.DataFrame) -> str:
    return next((name for name in NAME_COLUMNS if name in table.columns), table.columns[0])


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def _is_vector(value: Any) -> bool:
    return isinstance(value, np.ndarray | list | tuple)


_READERS: dict[str, Callable[[Path], tuple[list, Any]]] = {
    ".npz": _from_npz,
    ".npy": _from_npy,
    ".csv": _from_text,
    ".tsv": _from_text,
    ".parquet": _from_parquet,
    ".pkl": _from_pickle,
    ".pickle": _from_pickle,
}

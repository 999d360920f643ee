"""Writes an h5ad piece by piece: the whole is never in memory.

X, obs and their attributes are laid out as anndata's description of its files on disk says; what is small (var, uns
and the empty rooms beside them) is written by anndata itself.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import write_elem

from perturbdiff_jax.prediction.table import PredictionTable

CHUNK = 1 << 16  # values
COMPRESSION = "gzip"


def write_pieces(
    output: Path,
    table: PredictionTable,
    blocks: Iterable[sp.csr_matrix],
    genes: Sequence[str],
    uns: dict[str, Any],
) -> None:
    """Writes an h5ad aside and renames it.

    Args:
      output: the file; its directory is there.
      table: obs, told in stretches.
      blocks: X, [n, G] CSR float32 each, cell after cell as in `table`.
      genes: var_names.
      uns: as in AnnData.
    """
    partial = output.with_name(output.name + ".partial")
    try:
        empty = sp.csr_matrix((0, len(genes)), dtype=np.float32)
        frame = anndata.AnnData(X=empty, var=pd.DataFrame(index=pd.Index(genes, dtype=object)), uns=uns)
        frame.write_h5ad(partial, compression=COMPRESSION)
        with h5py.File(partial, "r+") as file:
            for name in ("X", "obs"):
                del file[name]
            _write_matrix(file, blocks, (table.cells, len(genes)))
            _write_obs(file, table)
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)


def _write_matrix(file: h5py.File, blocks: Iterable[sp.csr_matrix], shape: tuple[int, int]) -> None:
    group = file.create_group("X")
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
    group.attrs["shape"] = np.array(shape, np.int64)
    data, indices = (_growing(group, name, dtype) for name, dtype in (("data", "f4"), ("indices", "i4")))
    indptr = _growing(group, "indptr", "i8")  # one file may hold more than 2**31 values
    _append(indptr, np.zeros(1, np.int64))
    for block in blocks:
        _append(indptr, block.indptr[1:].astype(np.int64) + len(data))
        _append(data, block.data)
        _append(indices, block.indices)
    assert len(indptr) == shape[0] + 1, "as many rows in X as in obs"


def _write_obs(file: h5py.File, table: PredictionTable) -> None:
    columns = table.columns
    group = file.create_group("obs")
    group.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
    group.attrs["column-order"] = np.array(list(columns), dtype=h5py.string_dtype())
    stored = {"_index": _growing(group, "_index", h5py.string_dtype(), "string-array")}
    for name, kind in columns.dtypes.items():
        if isinstance(kind, pd.CategoricalDtype):
            part = group.create_group(name)
            part.attrs.update(
                {"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": bool(kind.ordered)}
            )
            names = np.array(kind.categories, dtype=object)
            write_elem(part, "categories", names, dataset_kwargs={"compression": COMPRESSION})
            stored[name] = _growing(part, "codes", columns[name].cat.codes.dtype, "array")
        else:
            stored[name] = _growing(group, name, kind, "array")
    for start in range(0, table.cells, CHUNK):
        rows = table.stretch(start, start + CHUNK)
        for name, kind in columns.dtypes.items():
            codes = isinstance(kind, pd.CategoricalDtype)
            _append(stored[name], (rows[name].cat.codes if codes else rows[name]).to_numpy())
        _append(stored["_index"], rows.index.to_numpy())


def _growing(group: h5py.Group, name: str, dtype: Any, encoding: str | None = None) -> h5py.Dataset:
    dataset = group.create_dataset(
        name, shape=(0,), maxshape=(None,), dtype=dtype, chunks=(CHUNK,), compression=COMPRESSION
    )
    if encoding:
        dataset.attrs.update({"encoding-type": encoding, "encoding-version": "0.2.0"})
    return dataset


def _append(dataset: h5py.Dataset, values: np.ndarray) -> None:
    before = len(dataset)
    dataset.resize(before + len(values), axis=0)
    dataset[before:] = values

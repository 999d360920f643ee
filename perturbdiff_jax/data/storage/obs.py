"""obs of some of the cells, read in pieces: names and labels of all cells of an atlas would not fit into memory."""

import pathlib
from collections.abc import Mapping, Sequence

import anndata
import numpy as np
import pandas as pd
import zarr

Ranges = Sequence[tuple[int, int]]


def read_obs(folder: pathlib.Path, ranges: Ranges) -> pd.DataFrame:
    """Rows of the AnnData dataframe in `folder`, in the order of the ranges; only their chunks are read."""
    group = zarr.open_group(str(folder), mode="r", use_consolidated=False)
    columns = {name: _column(group[name], ranges) for name in group.attrs["column-order"]}
    index = np.asarray(_column(group[group.attrs["_index"]], ranges), dtype=object)
    return pd.DataFrame(columns, index=pd.Index(index, dtype=object))


def _column(element: zarr.Group | zarr.Array, ranges: Ranges):
    kind = element.attrs.get("encoding-type")
    if kind == "categorical":
        categories = pd.Index(
            np.asarray(anndata.io.read_elem(element["categories"]), dtype=object), dtype=object
        )
        codes = _rows(element["codes"], ranges)
        return pd.Categorical.from_codes(codes, categories, ordered=bool(element.attrs.get("ordered", False)))
    if isinstance(element, zarr.Array):
        return _rows(element, ranges)
    whole = anndata.io.read_elem(element)  # of a kind that we do not write
    return whole[np.concatenate([np.zeros(0, np.int64), *(np.arange(*pair) for pair in ranges)])]


def _rows(array: zarr.Array, ranges: Ranges) -> np.ndarray:
    parts = [np.asarray(array[start:stop]) for start, stop in ranges]
    values = np.concatenate([array[:0], *parts]) if len(parts) != 1 else parts[0]
    return values if values.dtype.kind in "biufc" else values.astype(object)


def stacked(
    frames: Sequence[pd.DataFrame], labels: Sequence[str], vocabularies: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Frames after each other; a label stands before the names of its frame's cells.

    `vocabularies`: column -> its categories, the same whichever frames are there. Other categories are united.
    """
    columns = {}
    for name in dict.fromkeys(column for frame in frames for column in frame.columns):
        values = [frame.get(name, pd.Series(index=frame.index, dtype=object)) for frame in frames]
        if not all(isinstance(value.dtype, pd.CategoricalDtype) for value in values):
            columns[name] = np.concatenate([value.to_numpy() for value in values])
            continue
        columns[name] = pd.api.types.union_categoricals(values)
        if name in vocabularies:
            columns[name] = columns[name].set_categories(pd.Index(vocabularies[name], dtype=object))
    named = [label + name for label, frame in zip(labels, frames, strict=True) for name in frame.index]
    return pd.DataFrame(columns, index=pd.Index(np.array(named, dtype=object), dtype=object))

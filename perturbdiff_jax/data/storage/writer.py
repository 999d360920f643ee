"""Writing a store into a new folder: frames and small arrays here, the cells shard by shard (storage/shards.py), the
manifest as its last file.

The layout is described in store.py. Equal cells give equal bytes, so `store_hash` names a store.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd
import zarr

from perturbdiff_jax.data.storage.manifest import EXTRA, FORMAT, MANIFEST, VERSION, file_sha256, is_store
from perturbdiff_jax.data.storage.shards import create_array, shard_length, write_whole
from perturbdiff_jax.errors import RequestError

if TYPE_CHECKING:
    from perturbdiff_jax.data.preparation.labels import Obs

NAMES_AT_ONCE = 1 << 17  # names of cells in a chunk of obs
DENSE_DENSITY = 0.3  # above it, counts up to 255 are smaller and faster as dense rows
PACKAGES = ("anndata", "numpy", "scipy", "tensorstore", "zarr")


def check_output(path: pathlib.Path, *, overwrite: bool) -> None:
    """Raises RequestError unless a store may be written at `path`; only a store of ours is ever replaced."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not is_store(path):
        raise RequestError(
            f"{path}: exists and is not a store of ours, so it is left alone. Choose another --output."
        )
    if not overwrite:
        raise RequestError(f"{path}: exists already. Give --overwrite to replace it, or another --output.")


@contextlib.contextmanager
def new_directory(path: pathlib.Path, *, overwrite: bool) -> Iterator[pathlib.Path]:
    """Yields a temporary sibling folder, renamed to `path` if the body succeeds and removed if it does
    not."""
    path = path.absolute()
    check_output(path, overwrite=overwrite)
    fresh = path.parent / f".{path.name}.partial-{os.getpid()}"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
    except OSError as error:
        raise RequestError(
            f"{path}: cannot be written ({error.strerror}). Choose another --output."
        ) from error
    try:
        yield fresh
        put_in_place(fresh, path, overwrite=overwrite)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def put_in_place(fresh: pathlib.Path, path: pathlib.Path, *, overwrite: bool) -> None:
    """Renames the finished folder `fresh` to `path`; an old store there goes only now."""
    check_output(path, overwrite=overwrite)  # somebody may have written there meanwhile
    old = path.parent / f".{path.name}.old"
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
    os.replace(fresh, path)
    shutil.rmtree(old, ignore_errors=True)


def is_dense_better(*, nnz: int, cells: int, genes: int, largest: float, counts: bool) -> bool:
    """Whether a store of these cells takes the dense layout (uint8, counts only)."""
    return counts and largest <= np.iinfo(np.uint8).max and nnz > DENSE_DENSITY * cells * genes


def store_hash(manifest: dict) -> str:
    """One sha256 for a whole store: that of all its files' names and checksums."""
    lines = (f"{name} {checksum}\n" for name, checksum in sorted(manifest["checksums"].items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def var_of(genes: list[str], measured: np.ndarray) -> pd.DataFrame:
    """var of a store: the names, and where some genes are not measured a column that says so."""
    var = pd.DataFrame(index=pd.Index(np.array(genes, dtype=object), dtype=object))
    return var if measured.all() else var.assign(measured=measured)


def index_dtype(genes: int) -> type:
    return np.uint16 if genes <= 65_536 else np.uint32


class StoreWriter:
    """Makes the folder of a new store: `write_frames`, every one of `shards` and `write_scale` in any order, `finish`.

    `shards` are ranges of the positions of X/data and X/indices, or of rows of X when it is dense. `measured` bool
    [genes] says which genes any of the cells can have (None: all).
    """

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        row_nnz: np.ndarray,
        genes: list[str],
        measured: np.ndarray | None = None,
        dtype: np.dtype | type,
        counts: bool,
        dense: bool = False,
        codec: str = "lz4",
    ):
        self.folder, self.genes, self.counts, self.dense, self.codec = folder, genes, counts, dense, codec
        self.measured = np.ones(len(genes), dtype=bool) if measured is None else measured
        self.root = zarr.open_group(str(folder), mode="w", zarr_format=3)
        self.root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for name in ("uns", EXTRA):
            self.root.require_group(name).attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
        cells = len(row_nnz)
        self.pointers = np.concatenate([[0], np.cumsum(row_nnz, dtype=np.int64)]).astype(np.int64)
        self.nnz = int(self.pointers[-1])
        if dense:
            create_array(folder, "X", cells, np.uint8, width=len(genes), codec=codec)
            length, step = cells, shard_length(cells, len(genes))
        else:
            matrix = self.root.create_group("X")
            kind = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0"}
            matrix.attrs.update({**kind, "shape": [cells, len(genes)]})
            create_array(folder, "X/data", self.nnz, dtype, codec=codec)
            create_array(folder, "X/indices", self.nnz, index_dtype(len(genes)), codec=codec)
            write_whole(folder, "X/indptr", self.pointers, codec=codec)
            write_whole(folder, f"{EXTRA}/row_nnz", row_nnz.astype(np.int32), codec=codec)
            length, step = self.nnz, shard_length(self.nnz)
        self.shards = [(first, min(first + step, length)) for first in range(0, length, step)]

    def write_scale(self, scale: np.ndarray) -> None:
        """target_sum / total of every cell, for counts."""
        write_whole(self.folder, f"{EXTRA}/scale", scale.astype(np.float32, copy=False), codec=self.codec)

    def write_frames(self, obs: pd.DataFrame | Obs) -> None:
        """Writes obs (its columns and index must not need pandas' newer string type) and var."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zarr announces its next defaults
            self._write_obs(obs)
            anndata.io.write_elem(self.root, "var", var_of(self.genes, self.measured))

    def _write_obs(self, obs: pd.DataFrame | Obs) -> None:
        """As anndata writes a dataframe, but with the names in pieces: a Python object for each takes much memory."""
        group = self.root.create_group("obs")
        kind = {"encoding-type": "dataframe", "encoding-version": "0.2.0"}
        group.attrs.update({**kind, "_index": "_index", "column-order": [str(name) for name in obs.columns]})
        for name in obs.columns:
            column = obs[name]
            anndata.io.write_elem(group, name, column.array if isinstance(column, pd.Series) else column)
        for start in range(0, len(obs.index), NAMES_AT_ONCE):
            names = np.array(obs.index[start : start + NAMES_AT_ONCE], dtype=object)
            if start:
                group["_index"].append(names)
            else:
                anndata.io.write_elem(group, "_index", names, dataset_kwargs={"chunks": NAMES_AT_ONCE})

    def finish(self, manifest: dict) -> None:
        """Writes manifest.json, complete, as the last file.

        Adds `pointer` to manifest["groups"]: the stored values before each group's first row (0 when dense).
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # consolidated metadata is younger than the zarr v3 text
            zarr.consolidate_metadata(str(self.folder))
        if "groups" in manifest:
            starts = np.asarray(manifest["groups"]["start"], dtype=np.int64)
            pointer = np.zeros(len(starts), np.int64) if self.dense else self.pointers[starts]
            manifest = {**manifest, "groups": {**manifest["groups"], "pointer": pointer.tolist()}}
        content = {
            "format": FORMAT,
            "version": VERSION,
            **manifest,
            "layout": "dense" if self.dense else "csr",
            "codec": self.codec,
            "nnz": self.nnz,
            "genes": self.genes,
            "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
            "checksums": checksums(self.folder),
            "complete": True,
        }
        part = self.folder / f".{MANIFEST}.part"
        part.write_text(json.dumps(content))
        os.replace(part, self.folder / MANIFEST)


def checksums(folder: pathlib.Path) -> dict[str, str]:
    """sha256 of every file below `folder`, by its relative name; two files are read at a time."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = pool.map(file_sha256, files)
        return {path.relative_to(folder).as_posix(): value for path, value in zip(files, found, strict=True)}

"""Writing a store: arrays through tensorstore into a temporary sibling folder, renamed at the very end.

The layout is described in store.py. Chunks and codec are the measured optimum for whole-group reads (blosc
lz4 with shuffle, inner chunk 16 Ki elements, sharded).
"""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import warnings
from collections.abc import Iterator

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import tensorstore as ts
import zarr

from perturbdiff_jax.data.store import EXTRA, FORMAT, MANIFEST, VERSION, file_sha256, is_store
from perturbdiff_jax.errors import RequestError

CHUNK = 16_384  # elements decoded at once
SHARD = 64 * 1024 * 1024  # elements in a file, at most
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
        check_output(path, overwrite=overwrite)  # somebody may have written there meanwhile
        old = path.parent / f".{path.name}.old-{os.getpid()}"
        if path.exists():
            os.replace(path, old)
        os.replace(fresh, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


class ArrayWriter:
    """One sharded array of known length, filled from front to back; a shard is written while the next one
    fills."""

    def __init__(self, folder: pathlib.Path, name: str, length: int, dtype: np.dtype):
        self.shard = min(SHARD, max(1, -(-length // CHUNK)) * CHUNK)
        self.name, self.position = name, 0
        self.buffer = np.empty(min(self.shard, length), dtype=dtype)
        self.filled = 0
        self.pending: list[ts.WriteFutures] = []
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        blosc = {"name": "blosc", "configuration": {"cname": "lz4", "clevel": 5, "shuffle": "shuffle"}}
        inner = {"chunk_shape": [CHUNK], "codecs": [little, blosc]}
        metadata = {
            "shape": [length],
            "data_type": np.dtype(dtype).name,
            "fill_value": 0,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [self.shard]}},
            "codecs": [{"name": "sharding_indexed", "configuration": inner}],
            "attributes": {"encoding-type": "array", "encoding-version": "0.2.0"},
        }
        store = {"driver": "file", "path": str(folder / name)}
        self.array = ts.open(
            {"driver": "zarr3", "kvstore": store, "metadata": metadata, "create": True}
        ).result()

    def append(self, values: np.ndarray) -> None:
        while len(values):
            room = min(len(self.buffer) - self.filled, len(values))
            self.buffer[self.filled : self.filled + room] = values[:room]
            self.filled += room
            values = values[room:]
            if self.filled == len(self.buffer):
                self._flush()

    def _flush(self) -> None:
        if not self.filled:
            return
        stop = self.position + self.filled
        write = self.array[self.position : stop].write(self.buffer[: self.filled])
        write.copy.result()  # the buffer may be used again; the commit goes on behind
        self.pending.append(write)
        if len(self.pending) > 1:
            self.pending.pop(0).result()
        self.position, self.filled = stop, 0

    def close(self) -> None:
        self._flush()
        for write in self.pending:
            write.result()
        if self.position != self.array.shape[0]:
            raise ValueError(
                f"array {self.name}: {self.position} of {self.array.shape[0]} elements were written"
            )


def index_dtype(genes: int) -> type:
    return np.uint16 if genes <= 65_536 else np.uint32


class StoreWriter:
    """Fills the folder of a new store: `write_frames`, `append` blocks of rows in order, then `finish`."""

    def __init__(
        self, folder: pathlib.Path, *, row_nnz: np.ndarray, genes: list[str], dtype: np.dtype, counts: bool
    ):
        self.folder, self.genes, self.row_nnz = folder, genes, row_nnz
        self.root = zarr.open_group(str(folder), mode="w", zarr_format=3)
        self.root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        shape = [len(row_nnz), len(genes)]
        matrix = self.root.create_group("X")
        matrix.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
        for name in ("uns", EXTRA):
            self.root.require_group(name).attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
        self.nnz = int(row_nnz.sum(dtype=np.int64))
        self.data = ArrayWriter(folder, "X/data", self.nnz, dtype)
        self.indices = ArrayWriter(folder, "X/indices", self.nnz, index_dtype(len(genes)))
        self._whole("X/indptr", np.concatenate([[0], np.cumsum(row_nnz, dtype=np.int64)]).astype(np.int64))
        self._whole(f"{EXTRA}/row_nnz", row_nnz.astype(np.int32))
        self.scale = ArrayWriter(folder, f"{EXTRA}/scale", len(row_nnz), np.float32) if counts else None

    def _whole(self, name: str, values: np.ndarray) -> None:
        writer = ArrayWriter(self.folder, name, len(values), values.dtype)
        writer.append(values)
        writer.close()

    def write_frames(self, obs: pd.DataFrame) -> None:
        """Writes obs (its columns and index must not need pandas' newer string type) and var."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zarr announces its next defaults
            anndata.io.write_elem(self.root, "obs", obs)
            var = pd.DataFrame(index=pd.Index(np.array(self.genes, dtype=object), dtype=object))
            anndata.io.write_elem(self.root, "var", var)

    def append(self, block: sp.csr_matrix, scale: np.ndarray | None) -> None:
        """The next rows: a CSR block with sorted columns, and target_sum / total of its cells if counts."""
        self.data.append(block.data)
        self.indices.append(block.indices)
        if self.scale is not None:
            self.scale.append(scale)

    def finish(self, manifest: dict) -> None:
        """Closes the arrays and writes manifest.json, complete, as the last file."""
        for writer in (self.data, self.indices, self.scale):
            if writer is not None:
                writer.close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # consolidated metadata is younger than the zarr v3 text
            zarr.consolidate_metadata(str(self.folder))
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        checksums = {path.relative_to(self.folder).as_posix(): file_sha256(path) for path in files}
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        content = {
            "format": FORMAT,
            "version": VERSION,
            **manifest,
            "nnz": self.nnz,
            "genes": self.genes,
            "packages": versions,
            "checksums": checksums,
            "complete": True,
        }
        part = self.folder / f".{MANIFEST}.part"
        part.write_text(json.dumps(content))
        os.replace(part, self.folder / MANIFEST)

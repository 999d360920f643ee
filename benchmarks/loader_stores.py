"""Synthetic stores and the same cells as other formats, for loader.py: written once, by the package's own writer.

A block of random cells is made once and repeated, so that ten million cells take a minute. Nothing that reads them
gains by it: codecs look back a few kilobytes, and every cell is read from its own place.
"""

import dataclasses
import shutil
from pathlib import Path

import anndata
import h5py
import numpy as np
import scipy.sparse as sp

from perturbdiff_jax.data.conditions import CONTROL, TRAIN
from perturbdiff_jax.data.groups import Groups
from perturbdiff_jax.data.storage.shards import write_ranges
from perturbdiff_jax.data.storage.writer import StoreWriter


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cells:
    """What a synthetic store holds; contexts are cell types, all alike."""

    cells: int
    genes: int = 2_000
    density: float = 0.05
    dense: bool = False
    contexts: int = 8
    controls: int = 5_000  # cells of a context
    group: int = 1_000  # cells of a condition
    ragged: bool = False  # sizes of conditions from 1 up, `group` on average
    repeated: int = 65_536  # different cells

    def name(self) -> str:
        """Of the store's folder: says all that it depends on."""
        return "-".join(str(value) for value in dataclasses.astuple(self)) + ".store"


def row_sizes(cells: Cells) -> np.ndarray:
    """Stored values of every cell, int32."""
    draw = np.random.default_rng(1)
    n = min(cells.repeated, cells.cells)
    once = draw.poisson(cells.genes * cells.density, n).clip(1, cells.genes).astype(np.int32)
    return np.resize(once, cells.cells)


def values(cells: Cells, row_nnz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(counts, genes) of the cells with these stored values: genes ascending, spread over all of them."""
    draw = np.random.default_rng(2)
    first = np.cumsum(row_nnz, dtype=np.int64) - row_nnz
    place = np.arange(int(row_nnz.sum())) - np.repeat(first, row_nnz)
    # One gene out of each of k equal stretches, so no two are equal.
    share = cells.genes / np.repeat(row_nnz, row_nnz)
    genes = ((place + draw.random(len(place))) * share).astype(np.uint16)
    counts = draw.geometric(0.4, len(place)).clip(1, 255).astype(np.uint16)
    return counts, genes


def groups_of(cells: Cells) -> Groups:
    """In every context a control group and conditions up to its share of the cells."""
    draw = np.random.default_rng(3)
    sizes, contexts, perturbations = [], [], []
    for context, share in enumerate(np.full(cells.contexts, cells.cells // cells.contexts)):
        if context == 0:
            share += cells.cells % cells.contexts
        rest = int(share) - cells.controls
        most = 2 * rest // cells.group + 2
        own = draw.geometric(1 / cells.group, most) if cells.ragged else np.full(most, cells.group)
        ends = np.minimum(np.cumsum(own), rest)
        own = np.diff(np.concatenate([[0], ends]))
        own = np.concatenate([[cells.controls], own[own > 0]])
        sizes.append(own)
        contexts.append(np.full(len(own), context))
        perturbations.append(np.arange(len(own)))
    size, context, perturbation = (np.concatenate(parts) for parts in (sizes, contexts, perturbations))
    is_control = perturbation == 0
    return Groups(
        start=np.cumsum(size) - size,
        size=size,
        perturbation=perturbation.astype(np.int32),
        cell_type=context.astype(np.int32),
        batch=np.zeros(len(size), np.int32),
        is_control=is_control,
        control=np.flatnonzero(is_control)[context].astype(np.int32),
        fallback=np.zeros(len(size), np.int8),
        split=np.where(is_control, CONTROL, TRAIN).astype(np.int8),
        pointer=np.zeros(len(size), np.int64),
    )


class Names:
    """Names of cells, made when they are written."""

    def __init__(self, cells: int):
        self.cells = cells

    def __len__(self) -> int:
        return self.cells

    def __getitem__(self, part: slice) -> list[str]:
        return [str(number) for number in range(*part.indices(self.cells))]


class Obs:
    """obs without columns."""

    columns = ()

    def __init__(self, cells: int):
        self.index = Names(cells)


def store_at(scratch: Path, cells: Cells) -> Path:
    """The store of these cells below `scratch`, written if it is not there."""
    path = scratch / cells.name()
    if (path / "manifest.json").exists():
        return path
    print(f"writing {cells.cells:,} cells: {path}", flush=True)
    shutil.rmtree(path, ignore_errors=True)
    row_nnz, groups = row_sizes(cells), groups_of(cells)
    writer = StoreWriter(
        path,
        row_nnz=row_nnz,
        genes=[f"g{number}" for number in range(cells.genes)],
        dtype=np.uint8 if cells.dense else np.uint16,
        counts=True,
        dense=cells.dense,
    )
    writer.write_scale(np.resize(np.random.default_rng(4).uniform(0.5, 2, 65_536), cells.cells))
    writer.write_frames(Obs(cells.cells))
    once = row_nnz[: cells.repeated]
    counts, genes = values(cells, once)
    if cells.dense:
        block = np.zeros((len(once), cells.genes), np.uint8)
        block[np.repeat(np.arange(len(once)), once), genes] = counts
        arrays = {"X": block}
    else:
        arrays = {"X/data": counts, "X/indices": genes}
    for first, last in writer.shards:
        part = {name: _around(array, first, last) for name, array in arrays.items()}
        write_ranges(path, first, part)
    conditions = int(groups.perturbation.max())
    writer.finish(
        {
            "n_cells": cells.cells,
            "keys": {"perturbation": "p", "cell_type": "c", "batch": None},
            "control": "control",
            "perturbations": ["control", *(f"p{number}" for number in range(conditions))],
            "cell_types": [f"c{number}" for number in range(cells.contexts)],
            "batches": ["b"],
            "values": {"encoding": "counts", "target_sum": 1e4},
            "groups": groups.to_json(),
            "split": {},
            "sources": [],
        }
    )
    return path


def _around(array: np.ndarray, first: int, last: int) -> np.ndarray:
    """Elements first..last-1 of the array repeated for ever."""
    n = len(array)
    pieces = []
    while first < last:
        low = first % n
        high = min(n, low + last - first)
        pieces.append(array[low:high])
        first += high - low
    return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]


def h5ad_at(scratch: Path, cells: Cells) -> Path:
    """The cells' X as anndata writes it into an h5ad file (uncompressed CSR, float32, in its chunks)."""
    path = scratch / (cells.name() + ".h5ad")
    if not path.exists():
        row_nnz = row_sizes(cells)
        counts, genes = values(cells, row_nnz[: cells.repeated])
        pointers = np.concatenate([[0], np.cumsum(row_nnz, dtype=np.int64)])
        parts = (_around(counts, 0, pointers[-1]).astype(np.float32), _around(genes, 0, pointers[-1]))
        matrix = sp.csr_matrix(
            (parts[0], parts[1].astype(np.int32), pointers), shape=(cells.cells, cells.genes)
        )
        part = path.with_suffix(".part")
        with h5py.File(part, "w") as file:
            anndata.io.write_elem(file, "X", matrix)
        part.rename(path)
    return path


def words_at(scratch: Path, cells: Cells) -> tuple[Path, Path]:
    """Files to be mapped into memory: gene | count << 16 of all stored values, and int32 row pointers."""
    words, pointers = (scratch / (cells.name() + end) for end in (".words.npy", ".pointers.npy"))
    if not pointers.exists():
        row_nnz = row_sizes(cells)
        counts, genes = values(cells, row_nnz[: cells.repeated])
        once = genes.astype(np.uint32) | counts.astype(np.uint32) << 16
        np.save(words, _around(once, 0, int(row_nnz.sum(dtype=np.int64))).view(np.int32))
        np.save(pointers, np.concatenate([[0], np.cumsum(row_nnz)]).astype(np.int32))
    return words, pointers

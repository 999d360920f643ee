"""The pieces of work of `prepare`; each may run in another process.

`scan` looks at values, `scatter` takes the chosen genes and sorts the rows of a stretch by their place in the store,
`write` gathers the rows of one shard. A result depends on its task alone, so the store is the same for any number of
processes. Imports stay light (no anndata, no pandas): a worker process starts in a third of a second.
"""

import hashlib
import pathlib
from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp

from perturbdiff_jax.data.preparation.checks import Findings
from perturbdiff_jax.data.preparation.matrix import Matrix, take_rows
from perturbdiff_jax.data.preparation.moments import Moments
from perturbdiff_jax.data.preparation.parts import Part, PartFile
from perturbdiff_jax.data.preparation.recover import recovered
from perturbdiff_jax.data.storage.shards import write_ranges
from perturbdiff_jax.data.values import data_dtype, normalise
from perturbdiff_jax.errors import RequestError

BLOCK = 1024 * 1024  # numbers looked at at once


def hash_file(task: dict[str, Any]) -> dict[str, Any]:
    """{"sha256"} of the file task["path"]."""
    with open(task["path"], "rb") as stream:
        return {"sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _blocks(task: dict[str, Any]):
    """(number of the first row inside the task, canonical CSR block with all genes of the file)."""
    try:
        # Compressed pieces of a dense matrix lie across several blocks: they are unpacked once.
        file = h5py.File(task["path"], "r", rdcc_nbytes=16 * 2**20)
    except OSError as error:
        raise RequestError(f"{task['path']}: cannot be opened any more ({error}).") from error
    with file:
        matrix = Matrix(file, layer=task["layer"], label=task["path"])
        for start, stop in matrix.pieces(BLOCK, task["start"], task["stop"]):
            yield start - task["start"], matrix.read(start, stop)


def scan(task: dict[str, Any]) -> dict[str, Any]:
    """Looks at the rows start..stop-1 of a file.

    With task["recover"] False it is not asked whether log1p values may be stored as counts.

    task: path, layer, start, stop; encoding ("auto", or what the values are known to be); moments (None, or a dict of
    places int32 [genes of the file], genes, counted bool [rows], target_sum, total float64 [rows] or None).
    Result: findings; encoding as it was taken for; recovered (may the log1p values be stored as counts), largest_count;
    moments (cells, total, squares) or None.
    """
    seen, moments = Findings(), None
    if task["moments"] is not None:
        moments = Moments(task["moments"]["genes"])
    taken, fits, largest_count = None, task.get("recover", True), 0.0
    for row, block in _blocks(task):
        sums = seen.see(task["start"] + row, block)
        if seen.wrong:
            continue  # it is going to be refused: only the count of what is wrong goes on
        encoding = task["encoding"]
        if encoding == "auto":
            encoding = "counts" if seen.fraction is None else "lognorm"
        taken = encoding if taken in (None, encoding) else "mixed"
        if encoding == "lognorm" and fits:
            found = recovered(block)
            fits = found is not None
            largest_count = max(largest_count, float(found[0].max())) if fits else 0.0
        if moments is not None:
            _add_moments(moments, task["moments"], row, block, sums, encoding)
    return {
        "findings": seen,
        "encoding": taken,
        "recovered": fits,
        "largest_count": largest_count,
        "moments": None if moments is None else (moments.cells, moments.total, moments.squares),
    }


def _add_moments(
    moments: Moments, wanted: dict[str, Any], row: int, block: sp.csr_matrix, sums: np.ndarray, encoding: str
) -> None:
    rows = np.arange(row, row + block.shape[0])
    counted = wanted["counted"][rows]
    if not counted.any():
        return
    if not counted.all():
        block, sums, rows = block[counted], sums[counted], rows[counted]
    block = with_columns(block, wanted["places"], wanted["genes"])
    if encoding == "counts":
        total = sums if wanted["total"] is None else wanted["total"][rows]
        with np.errstate(divide="ignore"):  # a total of 0 is refused, but later
            block = normalise(block, (wanted["target_sum"] / total).astype(np.float32))
    moments.add(block)


def with_columns(block: sp.csr_matrix, places: np.ndarray, genes: int) -> sp.csr_matrix:
    """The genes of the block that have a place (int32 [columns], -1 = none), moved there; columns sorted."""
    if len(places) == genes and (places == np.arange(genes)).all():
        return block
    columns = places[block.indices]
    kept = columns >= 0
    ends = np.concatenate([[0], np.cumsum(kept)])
    parts = (block.data[kept], columns[kept], ends[block.indptr].astype(block.indptr.dtype))
    chosen = sp.csr_matrix(parts, shape=(block.shape[0], genes))
    chosen.sort_indices()
    return chosen


def scatter(task: dict[str, Any]) -> Part | None:
    """Takes the chosen genes of rows start..stop-1, rows ascending by their place in the store.

    task: path, layer, start, stop; places and genes; rows int64 [rows], where each belongs; encoding, recover,
    largest; scale float32 [rows] or None; part (a file to write and return None, or None to return the Part).
    """
    data, indices, sizes, scales = [], [], [], []
    kind = data_dtype(task["encoding"], task["largest"])
    index = np.uint16 if task["genes"] <= 65_536 else np.uint32
    for row, block in _blocks(task):
        if task["recover"]:
            found = recovered(block)
            if found is None:
                raise RequestError(f"{task['path']}: has changed while it was read. Run prepare again.")
            block.data, scale = found
            scales.append(scale)
        elif task["scale"] is not None:
            scales.append(task["scale"][row : row + block.shape[0]])
        block = with_columns(block, task["places"], task["genes"])
        data.append(block.data)
        indices.append(block.indices)
        sizes.append(np.diff(block.indptr))
    order = np.argsort(task["rows"], kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(sizes), dtype=np.int64)])
    pointers, data, indices = take_rows(indptr, order, np.concatenate(data), np.concatenate(indices))
    data, indices = data.astype(kind, copy=False), indices.astype(index, copy=False)
    part = Part(
        rows=task["rows"][order],
        nnz=np.diff(pointers).astype(np.int32),
        scale=np.concatenate(scales)[order] if scales else None,
        data=data,
        indices=indices,
    )
    if task["part"] is None:
        return part
    PartFile.write(pathlib.Path(task["part"]), part)
    return None


def write(task: dict[str, Any]) -> None:
    """Writes one shard of the store: positions first..last-1 of X/data and X/indices, or rows of a dense X.

    task: folder (of the store), first, last, dense, genes; parts, a list of (Part or PartFile, Piece) that together
    hold these rows; skip, the numbers of the first row that belong to the shard before.
    """
    pieces = [source.piece(wanted) for source, wanted in task["parts"]]
    rows = np.concatenate([piece.rows for piece in pieces])
    indptr = np.concatenate([[0], np.cumsum(np.concatenate([piece.nnz for piece in pieces]), dtype=np.int64)])
    data = np.concatenate([piece.data for piece in pieces])
    indices = np.concatenate([piece.indices for piece in pieces])
    del pieces
    pointers, data, indices = take_rows(indptr, np.argsort(rows, kind="stable"), data, indices)
    folder, first, last = pathlib.Path(task["folder"]), task["first"], task["last"]
    if task["dense"]:
        cells = np.zeros((last - first, task["genes"]), np.uint8)
        cells[np.repeat(np.arange(last - first), np.diff(pointers)), indices] = data
        write_ranges(folder, first, {"X": cells})
        return
    inside = slice(task["skip"], task["skip"] + last - first)
    write_ranges(folder, first, {"X/data": data[inside], "X/indices": indices[inside]})


WORK = {"hash": hash_file, "scan": scan, "scatter": scatter, "write": write}

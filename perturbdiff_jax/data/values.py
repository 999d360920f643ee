"""What the numbers of an expression matrix may be: counts or log1p values, finite, not negative.

`read_checked` reads a whole open h5ad file and decides which of the two it holds; `normalise` is the one
place that turns counts into log1p-normalised expression, log1p(count * target_sum / total).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from perturbdiff_jax.data.preparation.checks import EMPTY, NEGATIVE, NOT_FINITE, Findings
from perturbdiff_jax.data.preparation.matrix import BLOCK_ELEMENTS
from perturbdiff_jax.errors import RequestError

if TYPE_CHECKING:
    from perturbdiff_jax.data.h5ad import H5ad

LOG_LIMIT = 30.0  # log1p(1e13): no normalised expression reaches it, raw or scaled values often do
ENCODINGS = ("counts", "lognorm")


@dataclasses.dataclass(frozen=True)
class Expression:
    """Cells as read: `matrix` CSR [cells, genes], uint16/uint32 counts or float32 log1p values, by
    `encoding`."""

    matrix: sp.csr_matrix
    encoding: str
    totals: np.ndarray  # float64 [cells]: row sum over all genes of the file, in the matrix's own unit


def normalise(counts: sp.csr_matrix, scale: np.ndarray) -> sp.csr_matrix:
    """log1p(count * scale) per cell, float32 CSR; `scale` float32 [cells] is target_sum / total."""
    values = counts.data.astype(np.float32) * np.repeat(scale.astype(np.float32), np.diff(counts.indptr))
    return sp.csr_matrix((np.log1p(values, out=values), counts.indices, counts.indptr), shape=counts.shape)


def read_checked(
    file: H5ad,
    *,
    values: str = "auto",
    echo: Callable[[str], None] | None = None,
    elements: int = BLOCK_ELEMENTS,
) -> Expression:
    """Reads all cells of `file`, checks the values and tells counts from log1p values.

    `values`: "counts", "lognorm", or "auto": all numbers whole = counts, otherwise log1p values. `echo` gets
    a progress line now and then. Memory: the non-zero elements only, never the dense matrix. Raises
    RequestError naming cell and gene for NaN, infinite or negative values, and the cell for an all-zero one.
    """
    if values not in ("auto", *ENCODINGS):
        raise RequestError(f"--values {values!r} is not known. Allowed: auto, counts, lognorm.")
    seen = Findings()
    blocks = []
    began = spoken = time.monotonic()
    for start, block in file.blocks(elements):
        seen.see(start, block)
        blocks.append(_compact(block) if not seen.wrong else None)
        now, done = time.monotonic(), start + block.shape[0]
        if echo and now - spoken > 5 and done < len(file.cells):
            left = (now - began) * (len(file.cells) - done) / done
            echo(f"{file.label}: {done:,} of {len(file.cells):,} cells read, about {left:.0f} s left")
            spoken = now
    complain(file, seen)
    encoding = decide(file, seen, values)
    kind = data_dtype(encoding, seen.largest)
    blocks = [sp.csr_matrix((b.data.astype(kind), b.indices, b.indptr), shape=b.shape) for b in blocks]
    matrix = blocks[0] if len(blocks) == 1 else sp.vstack(blocks, format="csr")
    return Expression(matrix, encoding, seen.total)


def data_dtype(encoding: str, largest: float) -> type:
    """uint16 or uint32 for counts up to `largest`, float32 for log1p values."""
    if encoding != "counts":
        return np.float32
    return np.uint16 if largest <= np.iinfo(np.uint16).max else np.uint32


def scales(file: H5ad, totals: np.ndarray, *, total_key: str | None, target_sum: float) -> np.ndarray:
    """target_sum / total of each cell, float32 [cells]; totals from obs column `total_key` or the row sums
    given.

    Raises RequestError when the column is not positive or smaller than the cell's own sum over the file's
    genes.
    """
    if total_key is None:
        return (target_sum / totals).astype(np.float32)
    column = file.numbers(total_key, flag="--total-key")
    low = column <= 0
    if low.any():
        raise _total_error(file, total_key, column, low, "totals must be above 0")
    # A total written as float32 may fall short of the exact sum by rounding only.
    low = column < totals * (1 - 1e-6)
    if low.any():
        own = totals[int(np.argmax(low))]
        raise _total_error(file, total_key, column, low, f"the cell's own counts already sum to {own:.10g}")
    return (target_sum / column).astype(np.float32)


def _total_error(file: H5ad, key: str, column: np.ndarray, low: np.ndarray, why: str) -> RequestError:
    first = int(np.argmax(low))
    return RequestError(
        f"{file.label}: column {key!r} is {column[first]:.10g} at cell {file.cells[first]!r} "
        f"({int(low.sum())} such cell(s)): {why}.\nAllowed: the cell's whole-transcriptome count."
    )


def _named(file: H5ad, place: list) -> str:
    row, column, value = place
    if column < 0:
        return f"cell {file.cells[row]!r}"
    return f"{value:.6g} at cell {file.cells[row]!r}, gene {file.genes[column]!r}"


def complain(file: H5ad, seen: Findings) -> None:
    """Raises RequestError for NaN, infinite or negative values and for all-zero cells, naming the first."""
    where = f"{file.label}: {file.where}"
    for kind in (NOT_FINITE, NEGATIVE):
        if kind in seen.wrong:
            count, first = seen.wrong[kind]
            raise RequestError(
                f"{where} has {count} {kind} value(s), first {_named(file, first)}.\n"
                "Allowed: raw counts or log1p-normalised values, 0 or above."
            )
    if EMPTY in seen.wrong:
        count, first = seen.wrong[EMPTY]
        raise RequestError(
            f"{where} has {count} all-zero cell(s), first {_named(file, first)}: it cannot be normalised.\n"
            "Remove such cells (scanpy.pp.filter_cells(adata, min_counts=1))."
        )


def decide(file: H5ad, seen: Findings, values: str) -> str:
    """ "counts" or "lognorm", from the option `values` and what was seen; RequestError when they disagree."""
    where = f"{file.label}: {file.where}"
    encoding = values
    if values == "auto":
        encoding = "counts" if seen.fraction is None else "lognorm"
    if encoding == "counts" and seen.fraction is not None:
        raise RequestError(
            f"{where} was said to hold counts (--values counts), but has {_named(file, seen.fraction)}.\n"
            "Allowed: whole numbers, or --values lognorm for log1p-normalised values."
        )
    if encoding == "counts" and seen.largest > np.iinfo(np.uint32).max:
        raise RequestError(
            f"{where} has a count of {seen.largest:.6g}; counts up to 4,294,967,295 are allowed."
        )
    if encoding == "lognorm" and seen.largest > LOG_LIMIT:
        found = "whole numbers and"
        if seen.fraction:
            found = f"{_named(file, seen.fraction)}, so these are not counts, and"
        raise RequestError(
            f"{where} has {found} a maximum of {seen.largest:.6g}, so these are not log1p values (all below "
            f"{LOG_LIMIT:g}).\nAllowed: raw counts (also by --layer), or log1p-normalised values."
        )
    return encoding


def _compact(block: sp.csr_matrix) -> sp.csr_matrix:
    """The block with int32 pointers' indices kept and 8-byte numbers halved where that loses nothing."""
    data = block.data
    if data.dtype.itemsize > 4 and len(data):
        narrow = np.float32 if data.dtype.kind == "f" else np.int32
        if data.dtype.kind == "f" or (data.min() >= 0 and data.max() <= np.iinfo(np.int32).max):
            half = data.astype(narrow)
            # A float64 log value may lose its last digits, a count above 2**24 may not.
            if data.dtype.kind != "f" or float(np.abs(data).max()) < 2**24:
                data = half
    return sp.csr_matrix((data, block.indices.astype(np.int32), block.indptr), shape=block.shape)

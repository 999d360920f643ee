"""Counts from log1p-normalised values: every cell of such a file is log1p(integer * scale) for one scale a cell.

The smallest value of a cell is a small count; dividing by it shows the others as whole numbers. A cell counts as
recovered only when log1p(count * scale) gives its float32 values again within 4 units in the last place, so nothing
depends on how the file was made.
"""

import numpy as np
import scipy.sparse as sp

SMALLEST = 8  # the smallest count of a cell is at most this
WHOLE = 1e-3  # how far a ratio may be from a whole number
ROUNDING = 2e-6  # and what the rounding of two float32 values up to 16 adds to it, as a share of the ratio
ULPS = 4


def recovered(block: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray] | None:
    """(counts float64 [nnz], scale float32 [rows]) of log1p values, or None when a single cell does not fit.

    `block` is canonical CSR without empty rows. Equal blocks give equal results, whatever was looked at before.
    """
    sizes = np.diff(block.indptr)
    stored = block.data.astype(np.float32, copy=False)
    linear = np.expm1(stored.astype(np.float64))
    starts = block.indptr[:-1]
    least = np.minimum.reduceat(linear, starts)
    ratio = linear / np.repeat(least, sizes)
    smallest = np.ones(len(sizes))
    open_rows = np.arange(len(sizes))
    for factor in range(1, SMALLEST + 1):
        inside = _members(block.indptr, open_rows) if factor > 1 else slice(None)
        several = ratio[inside] * factor
        off = np.abs(several - np.rint(several)) > WHOLE + ROUNDING * several
        ends = np.cumsum(sizes[open_rows])
        fits = ~np.logical_or.reduceat(off, np.concatenate([[0], ends[:-1]]))
        smallest[open_rows[fits]] = factor
        open_rows = open_rows[~fits]
        if not len(open_rows):
            break
    if len(open_rows):
        return None
    counts = np.rint(ratio * np.repeat(smallest, sizes))
    if counts.max() > np.iinfo(np.uint32).max:
        return None
    # Least squares of what is left, each value in units of its own rounding: one Newton step from the smallest.
    slope = counts / (1 + counts * np.repeat(least / smallest, sizes)) / stored
    left = 1 - np.log1p(counts * np.repeat(least / smallest, sizes)) / stored
    step = np.add.reduceat(left * slope, starts) / np.add.reduceat(slope * slope, starts)
    scale = (least / smallest + step).astype(np.float32)
    again = np.log1p(counts.astype(np.float32) * np.repeat(scale, sizes))
    apart = np.abs(again.view(np.int32) - stored.view(np.int32))
    return None if apart.max() > ULPS else (counts, scale)


def _members(indptr: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return np.concatenate([np.arange(indptr[row], indptr[row + 1]) for row in rows])

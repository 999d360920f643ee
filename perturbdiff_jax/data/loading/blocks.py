"""Blocks of cells held in memory, and taking rows out of them: the inner loop of the loader.

A block holds cells in the form in which they leave the loader:
    packed   as stored, for an accelerator that densifies them itself (kernels/densify.py)
    dense    log1p / divisor, computed once per block and not once per batch, to be densified here
Taking a row out of CSR arrays is two copies. scipy does it in C, but only for column indices of four or eight bytes
beside values of any kind: so the four-byte array of a form plays the "columns" and the other one the "values".
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from perturbdiff_jax.data.raw_cells import RawCells
from perturbdiff_jax.errors import unknown

try:  # Not a public name; the public `matrix[rows]` does the same with five times the cost per call.
    from scipy.sparse._sparsetools import csr_row_index
except ImportError:  # pragma: no cover
    csr_row_index = None

FORMS = ("packed", "dense")
LARGEST = 2**31 - 1  # stored values that 32-bit row pointers can address


@dataclasses.dataclass(frozen=True)
class Piece:
    """Cells whose row pointers fit 32 bits. A dense one has only `narrow` [n, G] uint8 and `scale`."""

    wide: np.ndarray | None  # int32 [nnz]: the bits of a word, of a count or value; or column indices
    narrow: np.ndarray  # [nnz]: nothing (int8), column indices, or float32 values; or uint8 [n, G]
    pointers: np.ndarray | None  # int32 [n + 1]
    row_nnz: np.ndarray | None  # int32 [n], their differences: one look-up per row instead of two
    scale: np.ndarray | None  # float32 [n]

    def __len__(self) -> int:
        return len(self.narrow) if self.pointers is None else len(self.pointers) - 1

    @property
    def nbytes(self) -> int:
        parts = (self.wide, self.narrow, self.pointers, self.row_nnz, self.scale)
        # The int8 zeros beside words are never written, so they take no memory.
        return sum(part.nbytes for part in parts if part is not None and part.dtype != np.int8)


@dataclasses.dataclass(frozen=True)
class Block:
    """Cells in memory, in one or several pieces; rows are numbered through."""

    pieces: tuple[Piece, ...]
    first: np.ndarray  # int64 [pieces], first row of each

    def __len__(self) -> int:
        return int(self.first[-1]) + len(self.pieces[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(piece.nbytes for piece in self.pieces)


def make_block(raw: RawCells, form: str, divisor: float, *, largest: int = LARGEST) -> Block:
    """The cells of a read as a block of the given form; `divisor` is for "dense".

    Raises RequestError, naming the forms, for another one.
    """
    if form not in FORMS:
        raise unknown("form of cells", form, FORMS)
    pieces = []
    for low, high in _cuts(raw, largest):
        part = raw if (low, high) == (0, len(raw)) else _rows(raw, low, high)
        pieces.append(_normalised(part, divisor) if form == "dense" else _as_stored(part))
    return _block(pieces)


def joined(blocks: Sequence[Block]) -> Block:
    """One block of the cells of several, in order; nothing is copied."""
    return _block([piece for block in blocks for piece in block.pieces])


def _block(pieces: list[Piece]) -> Block:
    sizes = [len(piece) for piece in pieces]
    return Block(tuple(pieces), np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64))


def _cuts(raw: RawCells, largest: int) -> list[tuple[int, int]]:
    """Ranges of rows with at most `largest` stored values each."""
    if raw.is_dense or raw.indptr[-1] <= largest:
        return [(0, len(raw))]
    cuts, low = [], 0
    while low < len(raw):
        high = int(np.searchsorted(raw.indptr, raw.indptr[low] + largest, side="right")) - 1
        cuts.append((low, max(high, low + 1)))
        low = cuts[-1][1]
    return cuts


def _rows(raw: RawCells, low: int, high: int) -> RawCells:
    first, last = int(raw.indptr[low]), int(raw.indptr[high])
    scale = None if raw.scale is None else raw.scale[low:high]
    pointers = raw.indptr[low : high + 1] - first
    return RawCells(raw.data[first:last], raw.indices[first:last], pointers, scale, raw.genes)


def _as_stored(raw: RawCells) -> Piece:
    if raw.is_dense:
        return Piece(None, np.ascontiguousarray(raw.data), None, None, raw.scale)
    if raw.data.dtype == np.uint16 and raw.indices.dtype == np.uint16:
        words = np.empty(len(raw.data), "<u4")
        halves = words.view("<u2")
        halves[0::2], halves[1::2] = raw.indices, raw.data
        return _sparse(words.view(np.int32), np.zeros(len(words), np.int8), raw.indptr, raw.scale)
    values = raw.data if raw.data.dtype.itemsize == 4 else raw.data.astype(np.uint32)
    return _sparse(np.ascontiguousarray(values).view(np.int32), raw.indices, raw.indptr, raw.scale)


def _normalised(raw: RawCells, divisor: float) -> Piece:
    matrix = raw.lognorm()
    # A new array unless lognorm made one: the cells of a read may be somebody else's as well.
    values = np.divide(matrix.data, np.float32(divisor), dtype=np.float32)
    return _sparse(matrix.indices.astype(np.int32, copy=False), values, matrix.indptr, None)


def _sparse(wide: np.ndarray, narrow: np.ndarray, pointers: np.ndarray, scale: np.ndarray | None) -> Piece:
    return Piece(wide, narrow, pointers.astype(np.int32), np.diff(pointers).astype(np.int32), scale)


def copy_rows(
    pointers: np.ndarray, wide: np.ndarray, narrow: np.ndarray, rows: np.ndarray, out: tuple
) -> None:
    """Copies CSR rows into the two arrays of `out`, which have just the room for their stored values.

    Args:
      pointers: int32 [n + 1]; wide: int32 [nnz]; narrow: [nnz]; rows: int32 [R].
      out: arrays of the kinds of `wide` and `narrow`.
    """
    if csr_row_index is not None:
        csr_row_index(len(rows), rows, pointers, wide, narrow, *out)
        return
    matrix = sp.csr_matrix((len(pointers) - 1, LARGEST), dtype=narrow.dtype)
    matrix.indptr, matrix.indices, matrix.data = pointers, wide, narrow  # as they are: words are no columns
    chosen = matrix[rows]
    out[0][:], out[1][:] = chosen.indices, chosen.data

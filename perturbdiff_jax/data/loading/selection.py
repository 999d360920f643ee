"""Rows of several blocks at once: each distinct cell is copied once, and a map says where it was asked for.

Sets of tiny groups are mostly fillings and small control groups are drawn from again and again, so this decides how
much is copied and shipped.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from perturbdiff_jax.data.loading.blocks import Block, copy_rows

BLOCK, RUN = 32, 47  # bits below the number of a block and of a run in a row's key


class Selection:
    """The distinct cells among rows asked for of several blocks, and where each asked row is among them.

    Rows are asked for in D runs; cells are distinct inside a run, and runs lie one after the other.

    Attributes:
      row_map: int32, shaped as the rows asked for: position among the distinct cells of the run.
      n_cells: list of D numbers of distinct cells.
      row_nnz: int32 [sum of n_cells], stored values of each cell; None for dense cells.
      ends: list of D + 1: the stored values before each run, and all of them.
    """

    def __init__(self, blocks: Sequence[Block], which: np.ndarray, rows: np.ndarray):
        """`which` and `rows`, int [D, ...]: block and row in it of every cell asked for.

        Raises IndexError for a row that a block does not have.
        """
        pieces, bases, keys = _keys(blocks, which, rows)
        runs = len(keys)
        # One number is run, block and row, so that one sort finds repetitions and puts every piece's rows together.
        offsets = np.arange(runs, dtype=np.int64)[:, None] << RUN
        keys += offsets
        distinct, places = np.unique(keys.reshape(-1), return_inverse=True)
        bases = (offsets + bases).reshape(-1)
        borders = [*np.searchsorted(distinct, bases).tolist(), len(distinct)]
        starts = borders[:: len(pieces)]
        self.n_cells = [high - low for low, high in itertools.pairwise(starts)]
        places = places.reshape(keys.shape) - np.array(starts[:-1])[:, None]
        self.row_map = places.reshape(rows.shape).astype(np.int32)
        if borders[0]:
            raise IndexError("a row below 0")
        self._parts = []
        for number, (low, high) in enumerate(itertools.pairwise(borders)):
            if high == low:
                continue
            piece = pieces[number % len(pieces)]
            at = distinct[low:high] - bases[number]
            # Nothing below looks at bounds again, and C would copy from anywhere.
            if at[-1] >= len(piece):
                raise IndexError(f"row {at[-1]} of {len(piece)} cells")
            self._parts.append((piece, low, high, at.astype(np.int32)))
        self.is_dense = pieces[0].pointers is None
        self.row_nnz = None
        if not self.is_dense:
            self.row_nnz = np.empty(len(distinct), np.int32)
            for piece, low, high, at in self._parts:
                piece.row_nnz.take(at, out=self.row_nnz[low:high], mode="clip")
            before = np.zeros(len(distinct) + 1, np.int64)
            np.cumsum(self.row_nnz, out=before[1:])
            self.ends = before[starts].tolist()
            self._values = [*before[[low for _, low, _, _ in self._parts]].tolist(), int(before[-1])]
        self._starts = starts

    def kinds(self) -> tuple[np.dtype | None, np.dtype]:
        """dtypes of the two arrays that `take` fills."""
        piece = self._parts[0][0]
        return None if piece.wide is None else piece.wide.dtype, piece.narrow.dtype

    def take(self, wide: np.ndarray, narrow: np.ndarray) -> None:
        """Copies the stored values of every run to the beginnings of the rows of two arrays [D, N] of `kinds`."""
        run = 0
        for (piece, first, _, at), low, high in zip(self._parts, self._values[:-1], self._values[1:]):
            while first >= self._starts[run + 1]:
                run += 1
            low, high = low - self.ends[run], high - self.ends[run]
            copy_rows(
                piece.pointers, piece.wide, piece.narrow, at, (wide[run, low:high], narrow[run, low:high])
            )

    def take_rows(self, name: str, out: np.ndarray) -> None:
        """Copies `scale`, or `narrow` of dense pieces, to the beginning of every out[run], [D, U, ...]."""
        run = 0
        for piece, low, high, at in self._parts:
            while low >= self._starts[run + 1]:
                run += 1
            first = self._starts[run]
            getattr(piece, name).take(at, axis=0, out=out[run, low - first : high - first], mode="clip")


def _keys(blocks: Sequence[Block], which: np.ndarray, rows: np.ndarray):
    """(all pieces, the key of each one's first row, the key of every row asked for int64 [D, R])."""
    pieces, bases, numbers = [], [], {}
    for block in blocks:
        if id(block) not in numbers:
            base = numbers[id(block)] = len(numbers) << BLOCK
            pieces += block.pieces
            bases += [base + first for first in block.first.tolist()]
    shape = (len(rows), -1)
    keys = rows.reshape(shape).astype(np.int64)
    if len(numbers) > 1:
        of_block = np.array([numbers[id(block)] for block in blocks], np.int64)
        keys += of_block[which].reshape(shape)
    return pieces, np.array(bases, np.int64), keys

"""Cells on their way from the disk or the network: everything is asked for at once, `result` waits.

Reads of one array are one virtual concatenation, so that tensorstore decodes straight into the final buffer
and opens a file once for all reads of a batch. Row pointers are looked up only where a read does not begin or
end at a group's border; the second round then starts from the first one's callback, not from the caller.
"""

import threading
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import scipy.sparse as sp
import tensorstore as ts

from perturbdiff_jax.data.raw_cells import RawCells, concatenated
from perturbdiff_jax.data.storage.manifest import EXTRA, damaged
from perturbdiff_jax.errors import RequestError


class Shelf(Protocol):
    """What a fetch asks of a physical store."""

    is_dense: bool

    def array(self, name: str) -> ts.TensorStore: ...
    def pointers(self, rows: np.ndarray) -> np.ndarray: ...
    def unreadable(self, error: Exception) -> RequestError: ...


Read = tuple[Shelf, int, int]  # a store, its rows start..stop-1


def merged(reads: Sequence[Read]) -> list[Read]:
    """The same rows in the same order in fewer reads: adjacent ones joined, empty ones left out."""
    joined: list[Read] = []
    for shelf, start, stop in reads:
        if start == stop:
            continue
        if joined and joined[-1][0] is shelf and joined[-1][2] == start:
            joined[-1] = (shelf, joined[-1][1], stop)
        else:
            joined.append((shelf, start, stop))
    return joined


class Fetch:
    """Rows of one or several stores, asked for when it is made. Safe to share between threads."""

    def __init__(
        self,
        reads: Sequence[Read],
        *,
        genes: int,
        counts: bool,
        dense: bool,
        dtypes: tuple[np.dtype, np.dtype],
        order: tuple[np.ndarray, np.ndarray] | None = None,
    ):
        """Asks for the rows of `reads`.

        Args:
            reads: stores and rows; adjacent ones become one read.
            genes: G.
            counts: whether there is a scale.
            dense: whether the result is dense (then all stores must be).
            dtypes: of the result's data and indices; parts of other widths are cast.
            order: (first row, number of rows) of the pieces that make up the result, when its rows stand in
                another order than they are read.
        """
        self._reads, self._order = merged(reads), order
        self._genes, self._counts, self._dense, self._dtypes = genes, counts, dense, dtypes
        self._lock = threading.RLock()
        self._blocks: list[dict[str, ts.Future]] | None = None
        self._cells: RawCells | None = None
        self._borders, self._asked = self._ask_pointers()
        if not self._asked:
            self._ask_cells()
        for _, _, future in self._asked:
            future.add_done_callback(self._on_pointer)

    def result(self) -> RawCells:
        """The cells, waiting for them. Raises RequestError when they cannot be read."""
        with self._lock:
            if self._cells is None:
                for shelf, place, future in self._asked:
                    self._borders[place] = int(self._waited(future, shelf)[0])
                self._ask_cells()
                blocks = [self._block(number) for number in range(len(self._blocks))]
                cells = concatenated(blocks) if blocks else self._none()
                self._cells = cells if self._order is None else rearranged(cells, *self._order)
                self._blocks, self._reads, self._asked, self._order = [], [], [], None
            return self._cells

    def _ask_pointers(self):
        """(borders known so far, the futures of the others): stored values before each read and at its end."""
        borders = {}
        for shelf in dict.fromkeys(read[0] for read in self._reads if not read[0].is_dense):
            mine = [number for number, read in enumerate(self._reads) if read[0] is shelf]
            rows = np.array([self._reads[number][1:] for number in mine], dtype=np.int64)
            for number, pair in zip(mine, shelf.pointers(rows).tolist()):
                borders[(number, 0)], borders[(number, 1)] = pair
        unknown = [place for place, value in borders.items() if value < 0]
        asked = []
        with ts.Batch() as batch:
            for number, side in unknown:
                shelf, *rows = self._reads[number]
                future = shelf.array("X/indptr")[rows[side] : rows[side] + 1].read(batch=batch)
                asked.append((shelf, (number, side), future))
        return borders, asked

    def _on_pointer(self, _: ts.Future) -> None:
        # A thread of tensorstore: errors are left to `result`, and waiting for a lock here would be wrong.
        if all(future.done() for _, _, future in self._asked) and self._lock.acquire(blocking=False):
            try:
                if self._blocks is None and not any(future.exception() for _, _, future in self._asked):
                    for _, place, future in self._asked:
                        self._borders[place] = int(future.result()[0])
                    self._ask_cells()
            finally:
                self._lock.release()

    def _ask_cells(self) -> None:
        with self._lock:
            if self._blocks is not None:
                return
            # Runs of reads of one layout: one for all but merged stores of both layouts.
            runs: list[list[int]] = []
            for number, (shelf, _, _) in enumerate(self._reads):
                if not runs or self._reads[runs[-1][0]][0].is_dense != shelf.is_dense:
                    runs.append([])
                runs[-1].append(number)
            self._members = runs
            with ts.Batch() as batch:
                self._blocks = [self._ask_block(numbers, batch) for numbers in runs]

    def _ask_block(self, numbers: list[int], batch: ts.Batch) -> dict[str, ts.Future]:
        reads = [self._reads[number] for number in numbers]
        by_row = [(shelf, start, stop) for shelf, start, stop in reads]
        asked = {}
        if reads[0][0].is_dense:
            asked["data"] = _joined("X", by_row).read(batch=batch)
        else:
            ends = [(self._borders[(number, 0)], self._borders[(number, 1)]) for number in numbers]
            by_value = [(read[0], low, high) for read, (low, high) in zip(reads, ends)]
            asked["data"] = _joined("X/data", by_value, self._dtypes[0]).read(batch=batch)
            asked["indices"] = _joined("X/indices", by_value, self._dtypes[1]).read(batch=batch)
            asked["row_nnz"] = _joined(f"{EXTRA}/row_nnz", by_row).read(batch=batch)
        if self._counts:
            asked["scale"] = _joined(f"{EXTRA}/scale", by_row).read(batch=batch)
        return asked

    def _block(self, number: int) -> RawCells:
        shelf = self._reads[self._members[number][0]][0]
        got = {name: self._waited(future, shelf) for name, future in self._blocks[number].items()}
        scale = got.get("scale")
        if "indices" not in got:
            cells = RawCells(got["data"], None, None, scale, self._genes)
            return cells if self._dense else _sparse(cells, self._dtypes)
        indptr = np.zeros(len(got["row_nnz"]) + 1, dtype=np.int64)
        np.cumsum(got["row_nnz"], out=indptr[1:])
        if indptr[-1] != len(got["data"]):
            raise damaged(shelf.path, f"{EXTRA}/row_nnz does not fit X/indptr")
        return RawCells(got["data"], got["indices"], indptr, scale, self._genes)

    def _none(self) -> RawCells:
        scale = np.zeros(0, np.float32) if self._counts else None
        if self._dense:
            return RawCells(np.zeros((0, self._genes), np.uint8), None, None, scale, self._genes)
        data, indices = (np.zeros(0, dtype) for dtype in self._dtypes)
        return RawCells(data, indices, np.zeros(1, np.int64), scale, self._genes)

    def _waited(self, future: ts.Future, shelf: Shelf) -> np.ndarray:
        try:
            return future.result()
        except (ValueError, OSError) as error:
            raise shelf.unreadable(error) from error


def _joined(name: str, ranges: Sequence[Read], dtype: np.dtype | None = None) -> ts.TensorStore:
    """Ranges of the arrays `name` of several stores after each other, as one virtual array."""
    parts = []
    for shelf, low, high in ranges:
        part = shelf.array(name)[low:high]
        if dtype is not None and part.dtype.numpy_dtype != dtype:
            part = ts.cast(part, ts.dtype(dtype))
        parts.append(part)
    return parts[0] if len(parts) == 1 else ts.concat([part.translate_to[0] for part in parts], axis=0)


def _sparse(cells: RawCells, dtypes: tuple[np.dtype, np.dtype]) -> RawCells:
    """Dense cells as CSR of the given kinds."""
    matrix = sp.csr_matrix(cells.data)
    data, indices = matrix.data.astype(dtypes[0]), matrix.indices.astype(dtypes[1])
    return RawCells(data, indices, matrix.indptr.astype(np.int64), cells.scale, cells.genes)


def rearranged(cells: RawCells, first: np.ndarray, size: np.ndarray) -> RawCells:
    """The rows first[0]..first[0]+size[0]-1, then those of the next piece, ...; others are dropped."""

    def taken(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        return np.concatenate([values[a:b] for a, b in zip(low.tolist(), high.tolist())])

    stop = first + size
    scale = None if cells.scale is None else taken(cells.scale, first, stop)
    if cells.is_dense:
        return RawCells(taken(cells.data, first, stop), None, None, scale, cells.genes)
    low, high = cells.indptr[first], cells.indptr[stop]
    indptr = np.zeros(int(size.sum()) + 1, dtype=np.int64)
    np.cumsum(taken(np.diff(cells.indptr), first, stop), out=indptr[1:])
    return RawCells(taken(cells.data, low, high), taken(cells.indices, low, high), indptr, scale, cells.genes)

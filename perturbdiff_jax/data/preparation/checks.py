"""What the numbers of an expression matrix may be, looked at block by block.

Findings of stretches of rows can be made anywhere (also in another process) and joined in order; they know places
by number only. The words for what is wrong are in values.py.
"""

import dataclasses

import numpy as np
import scipy.sparse as sp

NOT_FINITE, NEGATIVE, EMPTY = "NaN or infinite", "negative", "all-zero"


@dataclasses.dataclass
class Findings:
    """What has been seen of some rows. A place is [row, column, value]; column -1 means the whole row.

    `totals` are float64 row sums over all columns (a list of arrays until `total`), `largest` the largest finite
    value, `fraction` the first value that is not whole, `wrong` kind -> [how many, place of the first].
    """

    totals: list[np.ndarray] = dataclasses.field(default_factory=list)
    largest: float = 0.0
    fraction: list | None = None
    wrong: dict[str, list] = dataclasses.field(default_factory=dict)

    def see(self, start: int, block: sp.csr_matrix) -> np.ndarray:
        """Adds canonical rows, the first of which has number `start`; returns their totals."""
        data = block.data
        with np.errstate(invalid="ignore"):
            fine = not len(data) or bool(data.min() >= 0 and np.isfinite(data.max()))
        finite = None
        if not fine:
            finite = np.isfinite(data)
            self._note(NOT_FINITE, start, block, ~finite)
            self._note(NEGATIVE, start, block, finite & (data < 0))
        empty = np.diff(block.indptr) == 0
        if empty.any():
            place = [start + int(np.argmax(empty)), -1, 0.0]
            self.wrong.setdefault(EMPTY, [0, place])[0] += int(empty.sum())
        sums = row_sums(block)
        self.totals.append(sums)
        if len(data) and (fine or finite.any()):
            self.largest = max(self.largest, float(data.max() if fine else data[finite].max()))
        if self.fraction is None and data.dtype.kind == "f":
            part = np.floor(data) != data
            if not fine:
                part &= finite
            if part.any():
                self.fraction = _place(start, block, int(np.argmax(part)))
        return sums

    def _note(self, kind: str, start: int, block: sp.csr_matrix, wrong: np.ndarray) -> None:
        if wrong.any():
            entry = self.wrong.setdefault(kind, [0, _place(start, block, int(np.argmax(wrong)))])
            entry[0] += int(wrong.sum())

    def add(self, later: "Findings") -> None:
        """Joins what was seen of the rows after these."""
        self.totals += later.totals
        self.largest = max(self.largest, later.largest)
        self.fraction = self.fraction or later.fraction
        for kind, (count, place) in later.wrong.items():
            self.wrong.setdefault(kind, [0, place])[0] += count

    @property
    def total(self) -> np.ndarray:
        """float64 [rows]."""
        return np.concatenate(self.totals) if self.totals else np.zeros(0)


def _place(start: int, block: sp.csr_matrix, position: int) -> list:
    row = int(np.searchsorted(block.indptr, position, side="right")) - 1
    return [start + row, int(block.indices[position]), float(block.data[position])]


def row_sums(block: sp.csr_matrix) -> np.ndarray:
    """float64 [rows], summed in float64 without a copy of the values."""
    sums = np.zeros(block.shape[0])
    filled = np.flatnonzero(np.diff(block.indptr))
    if len(filled):
        sums[filled] = np.add.reduceat(block.data, block.indptr[filled], dtype=np.float64)
    return sums

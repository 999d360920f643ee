"""How the cells of one condition are held: as they are, as copies of few points, or as control cells to be moved.

A rival that predicts a mean says the same cell a thousand times, and one that moves control cells fills every gene:
written out, their cells are twenty times as many numbers as the screen's. They are kept as what they are made of, and
written out one condition at a time, or never. Pure numpy and scipy. Cells are log1p-normalised float32 CSR matrices.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import scipy.sparse as sp


def as_cells(matrix) -> sp.csr_matrix:
    """CSR float32 [n, G] with int32 indices and no stored zeros: the same cells have the same bytes."""
    cells = sp.csr_matrix(matrix, dtype=np.float32, copy=True)
    cells.eliminate_zeros()
    cells.sort_indices()
    return _narrow(cells)


def stack(parts: Iterable[sp.csr_matrix]) -> sp.csr_matrix:
    """Cells of several groups below each other, in the one type of `as_cells`."""
    return as_cells(sp.vstack(list(parts), format="csr"))


def _narrow(cells: sp.csr_matrix) -> sp.csr_matrix:
    if cells.nnz < np.iinfo(np.int32).max:
        cells.indices = cells.indices.astype(np.int32, copy=False)
        cells.indptr = cells.indptr.astype(np.int32, copy=False)
    return cells


@dataclasses.dataclass(frozen=True)
class Copies:
    """`counts[i]` copies of cell i of `points` [k, G]."""

    points: sp.csr_matrix
    counts: np.ndarray

    @classmethod
    def of(cls, cell: np.ndarray, count: int) -> "Copies":
        """`count` copies of one cell [G]."""
        return cls(as_cells(np.asarray(cell)[None]), np.array([count]))

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and genes."""
        return int(self.counts.sum()), self.points.shape[1]

    def toarray(self) -> np.ndarray:
        """All cells [n, G], dense."""
        return np.repeat(self.points.toarray(), self.counts, axis=0)

    def mean32(self) -> np.ndarray:
        """Mean cell [G] by the float32 arithmetic that scipy has for the same cells as CSR.

        Every cell is divided by their number, then they are added one after the other: with a thousand cells that
        is some 1e-6 off the mean, and pdex's fold changes are made of it.
        """
        total = np.zeros(self.shape[1], np.float32)
        for point, count in zip(self.points.toarray() * (1.0 / self.shape[0]), self.counts):
            for _ in range(count):
                total += point
        return total


@dataclasses.dataclass(frozen=True)
class Moved:
    """Cells `rows` of `source` [m, G] moved by `shift` [G] and cut off at 0; several such parts below each other."""

    parts: tuple[tuple[sp.csr_matrix, np.ndarray, np.ndarray], ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and genes."""
        return sum(len(rows) for _, rows, _ in self.parts), self.parts[0][0].shape[1]

    def toarray(self) -> np.ndarray:
        """All cells [n, G], dense float32."""
        moved = [np.maximum(source[rows].toarray() + shift, 0.0) for source, rows, shift in self.parts]
        return np.concatenate(moved).astype(np.float32)


Population = sp.csr_matrix | Copies | Moved


def join(parts: Sequence[Population]) -> Population:
    """The populations of several batches (at least one, all of one kind) as one, in their order."""
    if isinstance(parts[0], Copies):
        counts = np.concatenate([part.counts for part in parts])
        return Copies(stack(part.points for part in parts), counts)
    if isinstance(parts[0], Moved):
        return Moved(tuple(one for part in parts for one in part.parts))
    return stack(parts)


def written_out(population: Population) -> sp.csr_matrix | Copies:
    """The population as one can count with it: moved cells as CSR, the others as they are."""
    if not isinstance(population, Moved):
        return population
    dense = population.toarray()
    places = np.flatnonzero(dense)
    ends = np.searchsorted(places, np.arange(len(dense) + 1) * dense.shape[1])
    return _narrow(sp.csr_matrix((dense.ravel()[places], places % dense.shape[1], ends), shape=dense.shape))

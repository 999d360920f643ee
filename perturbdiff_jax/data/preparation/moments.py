"""Mean and variance of every gene, streamed over the cells: what highly variable genes are chosen by."""

import numpy as np
import scipy.sparse as sp


class Moments:
    """Streaming mean and variance per gene of expm1(x): `add` blocks of log1p values [cells, genes], in
    order."""

    def __init__(self, genes: int):
        self.cells = 0
        self.total = np.zeros(genes)
        self.squares = np.zeros(genes)

    def add(self, lognorm: sp.csr_matrix) -> None:
        # Raw or scaled values are refused when all of them have been seen.
        with np.errstate(over="ignore"):
            values = np.expm1(lognorm.data.astype(np.float32, copy=False))
            squares = values * values
        # add.at sums one by one in row order, whatever the block size: genes that tie in exact arithmetic
        # keep tying, as in scanpy, and squares are rounded to float32 first because scanpy's are.
        indices = lognorm.indices.astype(np.intp)
        np.add.at(self.total, indices, values.astype(np.float64))
        np.add.at(self.squares, indices, squares.astype(np.float64))
        self.cells += lognorm.shape[0]

    def join(self, cells: int, total: np.ndarray, squares: np.ndarray) -> None:
        """Adds the sums of later cells."""
        self.cells += cells
        self.total += total
        self.squares += squares

    def mean_and_variance(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 [genes] each; the variance is the unbiased one."""
        mean = self.total / self.cells
        variance = self.squares / self.cells - mean**2
        return mean, variance * (self.cells / (self.cells - 1)) if self.cells > 1 else variance

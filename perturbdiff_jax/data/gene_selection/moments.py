"""Mean and variance of every gene of a composite, over the cells of those files that have the gene.

A gene that a file lacks is not measured there: it is not a zero, and the file's cells do not count for it.
"""

from __future__ import annotations

import numpy as np

from perturbdiff_jax.data.preparation.moments import Moments


class MeasuredMoments(Moments):
    """As Moments, with a number of cells for each gene: `cells` int64 [genes]."""

    def __init__(self, genes: int):
        super().__init__(genes)
        self.cells = np.zeros(genes, dtype=np.int64)

    def join_file(self, places: np.ndarray, sums: Moments) -> None:
        """Adds a file's sums; `places` int [genes of the file], each gene's position here, all different."""
        self.cells[places] += sums.cells
        self.total[places] += sums.total
        self.squares[places] += sums.squares

    def mean_and_variance(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 [genes] each; the variance is the unbiased one, 0 for a gene with one cell."""
        mean = self.total / self.cells
        variance = self.squares / self.cells - mean**2
        return mean, variance * (self.cells / np.maximum(self.cells - 1, 1))

    def keep(self, chosen: np.ndarray) -> MeasuredMoments:
        """Only the genes of a mask or of positions."""
        kept = MeasuredMoments(0)
        kept.cells, kept.total, kept.squares = self.cells[chosen], self.total[chosen], self.squares[chosen]
        return kept

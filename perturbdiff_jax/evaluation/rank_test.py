"""Two-sided Wilcoxon rank-sum test of one population after the other against the same control cells, gene by gene.

The normal approximation with corrections for ties and continuity, as in pdex 0.3 and, bit for bit, with its numbers:

    U = R1 - n1 (n1 + 1) / 2,   z = (max(U, n1 n2 - U) - n1 n2 / 2 - 1/2) / s,   p = min(1, 2 Phi(-z))
    s^2 = n1 n2 / 12 (n + 1 - sum(t^3 - t) / (n (n - 1)))       t: sizes of the groups of equal values, zeros too

R1 is the sum of the population's mid-ranks. The control cells are sorted once, and only values above zero are ever
looked at: a gene's zeros are one large tie below them. Pure numpy: it knows no table and no AnnData.
"""

import dataclasses
import math

import numpy as np
import scipy.sparse as sp

from perturbdiff_jax.evaluation.populations import Copies

# A key is the gene's number above the 32 bits of a float32 > 0, which sort like the number.
_GENE = np.uint64(32)


def _keys(cells: sp.csr_matrix) -> np.ndarray:
    """Stored values [nnz] of float32 CSR cells as whole numbers that sort by gene, then by value."""
    return (cells.indices.astype(np.uint64) << _GENE) | cells.data.view(np.uint32)


def _starts(keys: np.ndarray) -> np.ndarray:
    """Where a new value begins in sorted keys."""
    return np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)])


def _cubes(counts: np.ndarray) -> np.ndarray:
    return counts * counts * counts - counts


@dataclasses.dataclass(frozen=True)
class Reference:
    """Control cells, sorted for `rank_test`.

    cells: CSR float32 [n, G], values > 0 stored only. keys [u]: their distinct values by gene; before [u + 1]: how
    many values lie before each; first [G + 1]: how many lie before each gene; ties [G]: sum of t^3 - t.
    """

    cells: sp.csr_matrix
    keys: np.ndarray
    before: np.ndarray
    first: np.ndarray
    ties: np.ndarray

    @classmethod
    def of(cls, cells: sp.csr_matrix) -> "Reference":
        """Sorts cells [n, G] that are canonical (populations.as_cells)."""
        keys = np.sort(_keys(cells))
        genes = np.arange(cells.shape[1] + 1, dtype=np.uint64) << _GENE
        first = np.searchsorted(keys, genes)
        starts = _starts(keys)
        before = np.append(starts, len(keys))
        keys = keys[starts]
        ties = np.bincount((keys >> _GENE).astype(np.int64), _cubes(np.diff(before)), cells.shape[1])
        return cls(cells, keys, before, first, ties)


def rank_test(cells: sp.csr_matrix | Copies, reference: Reference) -> tuple[np.ndarray, np.ndarray]:
    """(U of the population [G], two-sided p [G]) of cells [m, G] against the reference; 1 for constant genes.

    Values must be finite and >= 0, without stored zeros (populations.as_cells).
    """
    n1, n2 = cells.shape[0], reference.cells.shape[0]
    values, counts, below, gene = _values(cells)
    at = np.searchsorted(reference.keys, values)
    before = reference.before[at]
    # The last key of the reference has none behind it to be compared with.
    same = np.append(reference.keys, np.uint64(0))[at] == values
    equal = np.where(same, np.append(np.diff(reference.before), 0)[at], 0)

    genes = cells.shape[1]
    nonzero = np.bincount(gene, counts, genes)
    zeros = (n1 + n2) - nonzero - np.diff(reference.first)
    # Mid-rank of a value: those below it, of both sides, and the middle of those that equal it.
    low = below + (before - reference.first[gene])
    rank = zeros[gene] + ((low + (low + counts + equal - 1)) / 2.0 + 1.0)
    ties = reference.ties + np.bincount(gene, _cubes(counts + equal) - _cubes(equal), genes)

    first = (n1 - nonzero) * ((zeros + 1.0) / 2.0) + np.bincount(gene, counts * rank, genes)
    u = first - n1 * (n1 + 1.0) / 2.0
    return u, _p(u, n1, n2, (zeros * zeros * zeros - zeros) + ties)


def _values(cells: sp.csr_matrix | Copies) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Distinct values (as keys) of the cells, how often each comes, how many of its gene lie below it, its gene."""
    if isinstance(cells, Copies):
        keys = _keys(cells.points)
        order = np.argsort(keys, kind="stable")
        keys, each = keys[order], np.repeat(cells.counts, np.diff(cells.points.indptr))[order]
        starts = _starts(keys)
        edges = np.append(0, np.cumsum(each))
        before = edges[np.append(starts, len(keys))]
    else:
        keys = np.sort(_keys(cells))
        starts = _starts(keys)
        before = np.append(starts, len(keys))
    values = keys[starts]
    gene = (values >> _GENE).astype(np.int64)
    # The first value of a gene in `values` tells how many lie before the gene.
    begins = np.searchsorted(gene, np.arange(cells.shape[1]))
    below = before[:-1] - before[begins][gene]
    return values, np.diff(before), below, gene


def _p(u: np.ndarray, n1: int, n2: int, ties: np.ndarray) -> np.ndarray:
    """Two-sided p of U, in the order of operations that pdex has."""
    n = float(n1 + n2)
    variance = n1 * n2 / 12.0 * ((n + 1.0) - ties / (n * (n - 1.0)))
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (np.maximum(u, n1 * n2 - u) - n1 * n2 / 2.0 - 0.5) / np.sqrt(variance)
    # The C library's erfc, as pdex has it: numpy has none, and scipy's differs in the last bits.
    tail = np.array([0.5 * math.erfc(value) for value in (z / math.sqrt(2.0)).tolist()])
    return np.where(variance > 0.0, np.clip(tail * 2.0, 0.0, 1.0), 1.0)

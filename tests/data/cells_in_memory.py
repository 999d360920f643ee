"""Small random cells of every stored kind, and draws from blocks of them, for the tests of blocks and batches."""

import types

import numpy as np
import scipy.sparse as sp

from perturbdiff_jax.data.raw_cells import RawCells

KINDS = ("words", "wide counts", "many genes", "log1p values", "dense")


def raw_cells(kind: str = "words", cells: int = 60, genes: int = 9, seed: int = 0) -> RawCells:
    """Cells with 0 to `genes` stored values each; see KINDS."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 60_000, (cells, genes)) * (rng.random((cells, genes)) < rng.random((cells, 1)))
    counts[0] = 0
    scale = rng.uniform(1e-3, 2.0, cells).astype(np.float32)
    if kind == "dense":
        return RawCells((counts % 256).astype(np.uint8), None, None, scale, genes)
    matrix = sp.csr_matrix(counts)
    indices, pointers = matrix.indices.astype(np.uint16), matrix.indptr.astype(np.int64)
    if kind == "wide counts":
        return RawCells(matrix.data.astype(np.uint32) * 70_000, indices, pointers, scale, genes)
    if kind == "many genes":
        step = 20_000  # columns 0, 20,000, ...: beyond 16 bits from the fourth
        return RawCells(
            matrix.data.astype(np.uint16),
            (matrix.indices * step).astype(np.uint32),
            pointers,
            scale,
            genes * step,
        )
    if kind == "log1p values":
        return RawCells(np.log1p(matrix.data).astype(np.float32), indices, pointers, None, genes)
    return RawCells(matrix.data.astype(np.uint16), indices, pointers, scale, genes)


def dense_of(raw: RawCells, divisor: float) -> np.ndarray:
    """[cells, G] float32 the slow way: one matrix of counts, normalised as the definition says."""
    matrix = np.zeros((len(raw), raw.genes), np.float32)
    if raw.is_dense:
        matrix[:] = raw.data
    else:
        for cell in range(len(raw)):
            for k in range(raw.indptr[cell], raw.indptr[cell + 1]):
                matrix[cell, raw.indices[k]] = raw.data[k]
    if raw.scale is not None:
        matrix = np.log1p(matrix * raw.scale[:, None])
    return matrix / np.float32(divisor)


def store_of(raw: RawCells, groups: int = 6):
    """What a batcher asks of a store."""
    at = np.arange(groups, dtype=np.int32)
    codes = {"perturbation": at % 4, "cell_type": at % 2, "batch": at // 3}
    return types.SimpleNamespace(
        genes=[f"g{i}" for i in range(raw.genes)],
        n_cells=len(raw),
        nnz=raw.data.size,
        is_counts=raw.scale is not None,
        groups=types.SimpleNamespace(**codes),
    )


def random_draw(blocks, sets: int, size: int, seed: int = 0, repeats: bool = True):
    """A draw of rows of the blocks: with all kinds of repetition, or all different."""
    rng = np.random.default_rng(seed)
    shape = (2, sets, size)
    first = np.cumsum([0, *(len(block) for block in blocks)])
    cells = rng.integers(0, first[-1], shape)
    if repeats:
        cells[..., size // 2 :] = cells[..., :1]
    else:
        cells = rng.permutation(first[-1])[: cells.size].reshape(shape)
    which = np.searchsorted(first, cells, side="right") - 1
    rows = cells - first[which]

    def side(number, blocks, which):
        return types.SimpleNamespace(blocks=blocks, which=which.astype(np.int32), rows=rows[number])

    return types.SimpleNamespace(
        group=rng.integers(0, 6, sets),
        mask=(rng.random((sets, size)) < 0.8).astype(np.float32),
        perturbed=side(0, list(blocks), which[0]),
        control=side(1, list(blocks)[::-1], len(blocks) - 1 - which[1]),  # in another order, as a tier may
        cells=rng.integers(0, 100, (sets, size)),
    )

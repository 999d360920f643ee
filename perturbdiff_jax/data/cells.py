"""The expression of all cells given to `prepare`, from one or several h5ad files, held sparse in memory."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbdiff_jax.data.h5ad import H5ad
from perturbdiff_jax.data.store import file_sha256
from perturbdiff_jax.data.values import normalise, read_checked, scales
from perturbdiff_jax.errors import RequestError

if TYPE_CHECKING:
    from perturbdiff_jax.data.prepare import PrepareOptions


@dataclasses.dataclass(frozen=True)
class Cells:
    """`matrix` CSR [cells, genes], uint16/uint32 counts or float32 log1p values, by `encoding`.

    `scale` float32 [cells] is target_sum / total for counts, None otherwise; `sources` describe the files.
    """

    matrix: sp.csr_matrix
    encoding: str
    scale: np.ndarray | None
    sources: list[dict]

    def lognorm(self, rows: np.ndarray) -> sp.csr_matrix:
        """log1p-normalised expression of some cells, float32 CSR, all genes."""
        block = self.matrix[rows]
        return block if self.scale is None else normalise(block, self.scale[rows])


def read_cells(
    inputs: Sequence[str | pathlib.Path],
    genes: np.ndarray,
    options: PrepareOptions,
    *,
    echo: Callable[[str], None],
) -> Cells:
    """Reads and checks the matrix of every file, columns in the order of `genes` (the same set in each file).

    Raises RequestError naming file, cell and gene; also when one file holds counts and another log1p values.
    """
    parts = []
    for path in inputs:
        part = _read_file(path, genes, options, echo)
        if parts and parts[0].encoding != part.encoding:
            raise RequestError(
                f"{path}: holds {part.encoding}, but {inputs[0]} holds {parts[0].encoding}.\n"
                "Allowed: files of one kind (see --layer and --values)."
            )
        parts.append(part)
    if len(parts) == 1:
        return parts[0]
    kind = np.result_type(*(part.matrix.dtype for part in parts))
    matrix = sp.vstack([part.matrix.astype(kind, copy=False) for part in parts], format="csr")
    scale = None if parts[0].scale is None else np.concatenate([part.scale for part in parts])
    return Cells(matrix, parts[0].encoding, scale, [part.sources[0] for part in parts])


def _read_file(
    path: str | pathlib.Path, genes: np.ndarray, options: PrepareOptions, echo: Callable[[str], None]
) -> Cells:
    with H5ad(path, layer=options.layer) as file:
        read = read_checked(file, values=options.values, echo=echo)
        scale = None
        if read.encoding == "counts":
            scale = scales(file, read.totals, total_key=options.total_key, target_sum=options.target_sum)
        elif options.total_key:
            echo(
                f"{file.label}: {file.where} holds log1p values: --total-key {options.total_key} is not used."
            )
        columns = pd.Index(file.genes).get_indexer(pd.Index(genes))
        source = {
            "path": str(path),
            "cells": len(file.cells),
            "bytes": file.path.stat().st_size,
            "sha256": file_sha256(file.path),
            "matrix": file.where,
        }
        return Cells(select_columns(read.matrix, columns), read.encoding, scale, [source])


def select_columns(matrix: sp.csr_matrix, columns: np.ndarray) -> sp.csr_matrix:
    """The given columns in the given order, columns sorted in each row; the matrix itself if that is all of
    them."""
    if len(columns) == matrix.shape[1] and (columns == np.arange(len(columns))).all():
        return matrix
    chosen = matrix[:, columns]
    chosen.sort_indices()
    return chosen

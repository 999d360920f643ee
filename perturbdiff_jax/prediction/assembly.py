"""Predicted cells as AnnData, ready for cell-eval and scanpy, and whether a file can be written at all."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.prediction.table import PredictionTable


def assemble(
    blocks: Sequence[sp.csr_matrix], table: PredictionTable, genes: Sequence[str], uns: dict[str, Any]
) -> anndata.AnnData:
    """Joins predicted cells and, behind them, the real control cells that were used.

    Args:
      blocks: predicted cells [n, G] each, log1p-normalised, cell after cell as in `table`.
      table: obs, and the control cells.
      genes: var_names.
      uns: what is told about the prediction.
    """
    matrix = sp.vstack([*blocks, *table.control_blocks(table.cells)], format="csr").astype(np.float32)
    obs = table.stretch(0, table.cells)
    return anndata.AnnData(X=matrix, obs=obs, var=pd.DataFrame(index=pd.Index(genes, dtype=object)), uns=uns)


def check_output(
    output: str | Path, inputs: Sequence[str | Path] = (), *, flag: str = "--output", kind: str = "h5ad"
) -> Path:
    """The path itself, asked before long work.

    Raises:
      RequestError: `output` is a directory or one of the `inputs`, or lies below something that is none.
    """
    output = Path(output)
    if output.is_dir():
        raise RequestError(f"{flag} {output}: is a directory; give the name of an {kind} file.")
    if output.resolve() in [Path(path).resolve() for path in inputs]:
        raise RequestError(f"{flag} {output}: is the input; it would be overwritten.")
    above = next(parent for parent in output.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise RequestError(f"{flag} {output}: nothing can be written in {above}.")
    return output

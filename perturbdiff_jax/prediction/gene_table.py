"""Several draws of the same conditions, told gene by gene: a table of changes, spread, direction and calls.

Reads predictions (an AnnData, or an h5ad condition by condition) whose obs holds `draw`; changes are against the real
control cells that the file brings along. The statistics are evaluation/spread.py's.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.evaluation import spread
from perturbdiff_jax.evaluation.metrics import mean_of
from perturbdiff_jax.prediction.controls import ControlCells
from perturbdiff_jax.prediction.design import CONDITION
from perturbdiff_jax.telemetry.progress import Progress

COLUMNS = (
    *CONDITION,
    "gene",
    "draws",
    "control_mean",
    "change",
    "spread",
    *(f"{end}_{100 * level:g}" for level in spread.LEVELS for end in ("low", "high")),
    "p_up",
    "p_down",
    "calls",
)


def gene_table(predicted: anndata.AnnData, *, calls: bool = True) -> Iterator[pd.DataFrame]:
    """Yields a table for each condition, a row for every gene (COLUMNS).

    change: mean log1p expression of the draws less that of the control cells; spread: standard deviation of that mean
    between draws (NaN with one); low_80, high_80: where the change of another population of the condition, of as many
    cells, lies with 80 %; p_up, p_down: probability that it is above, below 0; calls: share of draws in which the gene
    is called differentially expressed (NaN without `calls`, which takes the longest). Intervals count with the model's
    error where the file tells it (uns["perturbdiff"]["model_error"]; evaluation/spread.py).

    Raises:
      RequestError: the file was not made by predict, or holds no control cells.
    """
    told = predicted.uns.get("perturbdiff")
    if told is None or "draw" not in predicted.obs:
        raise RequestError(
            "predictions: no obs column 'draw' or no uns['perturbdiff']; give a file that predict wrote."
        )
    roles = {role: predicted.obs[key].astype(str) for role, key in told["keys"].items() if role in CONDITION}
    obs = pd.DataFrame({role: roles.get(role, "all") for role in CONDITION}, index=predicted.obs_names)
    obs["draw"] = predicted.obs["draw"].to_numpy()
    is_control = (obs["perturbation"] == told["control"]).to_numpy()
    if not is_control.any():
        raise RequestError(f"predictions: no control cells {told['control']!r}; changes are against them.")
    rows = obs.reset_index(drop=True)
    groups = rows[is_control].groupby(["cell_type", "batch"], sort=True).groups
    contexts = {context: _cells(predicted, index.to_numpy()) for context, index in groups.items()}
    controls = ControlCells(contexts, {})
    for condition, mine in rows[~is_control].groupby(list(CONDITION), sort=True):
        control = contexts[controls.resolve(*condition[1:])[0]]
        parts = [_cells(predicted, part.index.to_numpy()) for _, part in mine.groupby("draw", sort=True)]
        known = spread.Error.read(told.get("model_error")) or spread.TRUSTED
        yield _condition(condition, parts, control, list(predicted.var_names), calls, known)


def write_gene_table(
    predicted: anndata.AnnData | str | Path,
    output: str | Path,
    *,
    calls: bool = True,
    show: Callable[[int], None] | None = None,
) -> Path:
    """Writes `gene_table` as csv (.gz is compressed), condition by condition, aside and then renamed."""
    if not isinstance(predicted, anndata.AnnData):
        opened = anndata.read_h5ad(predicted, backed="r")
        try:
            return write_gene_table(opened, output, calls=calls, show=show)
        finally:
            opened.file.close()
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".partial-{output.name}")
    if show is None:
        show = Progress(_conditions(predicted), "genes of conditions", every=10.0).show
    try:
        for number, table in enumerate(gene_table(predicted, calls=calls), 1):
            first = number == 1
            table.to_csv(partial, mode="w" if first else "a", header=first, index=False, float_format="%.6g")
            show(number)
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)
    return output


def _conditions(predicted: anndata.AnnData) -> int:
    """How many conditions a file of predictions has; 0 for other files, which `gene_table` refuses."""
    told = predicted.uns.get("perturbdiff", {"keys": {}})
    keys = {role: key for role, key in told["keys"].items() if role in CONDITION}
    asked = predicted.obs[list(keys.values())].drop_duplicates()
    return int((asked[keys["perturbation"]].astype(str) != told["control"]).sum()) if keys else 0


def _cells(predicted: anndata.AnnData, rows: np.ndarray) -> sp.csr_matrix:
    return sp.csr_matrix(predicted.X[np.sort(rows)])


def _condition(
    condition, draws: list[sp.csr_matrix], control, genes: list[str], calls: bool, error: spread.Error
) -> pd.DataFrame:
    base = mean_of(control)
    found = spread.drawn(draws, base)
    up, down = spread.directions(found, error=error)
    ends = [end for level in spread.LEVELS for end in spread.interval(found, level, error=error)]
    share = (
        np.mean([spread.called(cells, control) for cells in draws], axis=0)
        if calls
        else np.full(len(genes), np.nan)
    )
    columns = (genes, len(draws), base, found.change, found.between, *ends, up, down, share)
    return pd.DataFrame(dict(zip(COLUMNS, (*condition, *columns), strict=True)))

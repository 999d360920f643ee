"""Reads the two sides of an evaluation and refuses what cannot be scored, naming file, column and value.

The predicted side decides what is evaluated: its (perturbation, cell type[, batch]) triples. The real side is
restricted to them and to the control cells of their contexts, put into the predictions' gene order, and
normalised like the predictions when it holds raw counts. It must not know metrics.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbdiff_jax.data.conditions import DOSE_MARK
from perturbdiff_jax.errors import RequestError, shorten, unknown
from perturbdiff_jax.evaluation.contexts import NO_BATCH, as_cells

LARGEST_LOG = 15.0  # log1p of a normalised value stays below; cell-eval refuses more
FIELDS = ("perturbation", "cell_type", "batch")
DRAW = "draw"  # obs column: which of several populations of its condition a predicted cell belongs to


@dataclasses.dataclass(frozen=True)
class Keys:
    """Columns of obs with perturbation, cell type and batch (None: one for all); the control label.

    `dose`: column whose number is part of the perturbation's label ("name @ dose", as in a store), where a
    file has it.
    """

    perturbation: str
    control: str
    cell_type: str | None = None
    batch: str | None = None
    dose: str | None = None


@dataclasses.dataclass(frozen=True)
class Side:
    """`cells` [n, G] log1p float32 CSR; `conditions` [n] rows of perturbation, cell_type, batch."""

    cells: sp.csr_matrix
    conditions: pd.DataFrame
    genes: tuple[str, ...]


def open_file(source, what: str) -> tuple[ad.AnnData, str]:
    """(AnnData, its name for messages) of an h5ad path (opened backed) or an AnnData."""
    if isinstance(source, ad.AnnData):
        return source, f"{what} AnnData"
    path = pathlib.Path(source)
    if not path.is_file():
        raise RequestError(f"{what} file {path} does not exist; give an h5ad file.")
    try:
        return ad.read_h5ad(path, backed="r"), str(path)
    except Exception as error:
        raise RequestError(f"{what} file {path} cannot be read as h5ad: {error}") from error


def conditions_of(obs: pd.DataFrame, keys: Keys, name: str) -> pd.DataFrame:
    """Columns perturbation, cell_type, batch (text) of every cell; refuses missing columns and labels.

    A column `draw` of whole numbers, as predictions of ours have it, is kept too.
    """
    columns = {"perturbation": keys.perturbation, "cell_type": keys.cell_type, "batch": keys.batch}
    found = {}
    for field, column in columns.items():
        if column is None:
            found[field] = np.full(len(obs), NO_BATCH)
            continue
        if column not in obs.columns:
            raise unknown("obs column", column, obs.columns, where=name)
        if obs[column].isna().any():
            cell = obs.index[np.flatnonzero(obs[column].isna())[0]]
            raise RequestError(f"{name}: obs column {column!r} has no value for cell {cell!r}.")
        found[field] = obs[column].astype(str).to_numpy(dtype=object)
    if keys.dose is not None and keys.dose in obs.columns:
        found["perturbation"] = _with_dose(found["perturbation"], obs[keys.dose], keys.control)
    frame = pd.DataFrame(found)
    if DRAW in obs.columns and pd.api.types.is_integer_dtype(obs[DRAW]):
        frame[DRAW] = obs[DRAW].to_numpy()
    if not (frame["perturbation"] == keys.control).any():
        raise RequestError(
            f"{name}: obs column {keys.perturbation!r} has no control cells {keys.control!r}.\n"
            f"It has: {shorten(sorted(set(frame['perturbation'])))}."
        )
    return frame


def _with_dose(names: np.ndarray, doses: pd.Series, control: str) -> np.ndarray:
    return np.array(
        [
            name if name == control or DOSE_MARK in name else f"{name}{DOSE_MARK}{float(dose):g}"
            for name, dose in zip(names, doses)
        ],
        dtype=object,
    )


def check_names(adata: ad.AnnData, name: str) -> None:
    """Refuses duplicated gene or cell names."""
    for kind, index in (("gene (var)", adata.var_names), ("cell (obs)", adata.obs_names)):
        if not index.is_unique:
            twice = index[index.duplicated()].unique()
            raise RequestError(f"{name}: duplicated {kind} names: {shorten(twice)}; make them unique.")


def check_values(cells: sp.csr_matrix, name: str, obs_names, genes) -> None:
    """Refuses NaN, infinite and negative values, naming the first one's cell, gene and value."""
    for kind, bad in (("not finite", ~np.isfinite(cells.data)), ("negative", cells.data < 0)):
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            row = int(np.searchsorted(cells.indptr, at, side="right")) - 1
            raise RequestError(
                f"{name}: X is {kind} at cell {str(obs_names[row])!r}, gene "
                f"{str(genes[cells.indices[at]])!r}: {cells.data[at]:g}; "
                "allowed: finite log1p-normalised values >= 0."
            )


def whole_numbers(cells: sp.csr_matrix) -> bool:
    """Whether all values are whole, and some are not zero: raw counts."""
    values = cells.data[cells.data != 0]
    return bool(values.size) and bool(np.all(values == np.round(values)))


def check_scale(cells: sp.csr_matrix, name: str, what: str) -> None:
    """Refuses values beyond log1p-normalised expression."""
    if cells.nnz and float(cells.data.max()) >= LARGEST_LOG:
        raise RequestError(
            f"{name}: X has the value {cells.data.max():g}; {what} must be log1p-normalised "
            f"(below {LARGEST_LOG:g})."
        )


def own_account(adata: ad.AnnData) -> dict:
    """uns["perturbdiff"] of a prediction of ours: how it was made; empty for other tools' files."""
    account = adata.uns.get("perturbdiff")
    return dict(account) if isinstance(account, Mapping) else {}


def read_predicted(source, keys: Keys, what: str = "prediction") -> tuple[Side, dict]:
    """Predicted cells without their control cells, and uns["perturbdiff"] (empty for foreign files).

    `what` names it in messages, before its path.
    """
    adata, name = open_file(source, what)
    if what != "prediction" and adata is not source:
        name = f"{what} {name}"
    with closing(adata, source):
        check_names(adata, name)
        conditions = conditions_of(adata.obs, keys, name)
        rows = np.flatnonzero(conditions["perturbation"].to_numpy() != keys.control)
        if rows.size == 0:
            raise RequestError(f"{name}: only control cells {keys.control!r}; there is nothing to score.")
        everything = rows_of(adata, np.arange(adata.n_obs))
        check_values(everything, name, adata.obs_names, adata.var_names)
        cells = as_cells(everything[rows])
        if whole_numbers(cells):
            raise RequestError(
                f"{name}: X looks like raw counts (whole numbers up to {cells.data.max():g}); "
                "predictions must be log1p-normalised."
            )
        check_scale(everything, name, "predictions")
        facts = own_account(adata)
        genes = tuple(adata.var_names.astype(str))
    return Side(cells, conditions.iloc[rows].reset_index(drop=True), genes), facts


def rows_of(adata: ad.AnnData, rows: np.ndarray) -> sp.csr_matrix:
    """Rows of X, in memory, as CSR with every stored value kept."""
    if not adata.isbacked:
        return sp.csr_matrix(adata.X[rows])
    if 2 * len(rows) < adata.n_obs:
        return sp.csr_matrix(adata[rows].to_memory().X)
    # Row after row is far slower than the whole, which is at most twice as large.
    whole = adata.X.to_memory() if hasattr(adata.X, "to_memory") else adata.X[:]
    whole = sp.csr_matrix(whole)
    return whole if len(rows) == adata.n_obs else whole[rows]


@contextlib.contextmanager
def closing(adata: ad.AnnData, source):
    """Closes the file again if it was opened here."""
    try:
        yield adata
    finally:
        if adata is not source and adata.isbacked:
            adata.file.close()


def normalise(
    counts: sp.csr_matrix, totals: np.ndarray, target_sum: float, name: str, obs_names
) -> sp.csr_matrix:
    """log1p(count * target_sum / total) float32 of raw counts [n, G] with the cells' totals [n]."""
    bad = ~(np.isfinite(totals) & (totals > 0))
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        raise RequestError(
            f"{name}: cell {str(obs_names[at])!r} has the total {totals[at]:g}; it must be > 0."
        )
    scaled = sp.csr_matrix(counts, dtype=np.float64, copy=True)
    scaled.data *= np.repeat(target_sum / totals, np.diff(scaled.indptr))
    scaled.data = np.log1p(scaled.data)
    return as_cells(scaled)

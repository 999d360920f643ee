"""Differential expression of populations against control cells: the table of pdex, which cell-eval scores.

pdex (mode "ref", epsilon 0, as cell_eval.MetricsEvaluator calls it) sorts the control cells anew for every
perturbation. For the versions named in FOLLOWED the same table is made here, bit for bit up to the last bit of the
logarithm of a fold change, in a tenth of the time; for any other version pdex itself is called. Needs the extra
`[eval]`. It must not know metrics.
"""

import functools
import importlib.metadata
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.stats import false_discovery_control

from perturbdiff_jax.evaluation.populations import Copies, Population, stack, written_out
from perturbdiff_jax.evaluation.rank_test import Reference, rank_test
from perturbdiff_jax.evaluation.threads import mapped, threads

TEST = {"mode": "ref", "epsilon": 0.0}  # of pdex, as cell-eval calls it
FOLLOWED = ("0.3.0",)  # versions of pdex whose numbers ours are
_KEY = "perturbation"


def _version() -> str | None:
    try:
        return importlib.metadata.version("pdex")
    except importlib.metadata.PackageNotFoundError:
        return None


def maker() -> str | None:
    """Whose code makes the tables, for the record; None without pdex."""
    version = _version()
    if version in FOLLOWED:
        return f"perturbdiff_jax, with the numbers of pdex {version}"
    return None if version is None else f"pdex {version}"


def expression_table(
    cells: Mapping[str, Population],
    control: Reference | sp.csr_matrix,
    genes: tuple[str, ...],
    label: str,
    *,
    is_log1p: bool = True,
):
    """pdex's table (polars) of each perturbation's cells [n, G] against `control`: p, adjusted p, log2 fold.

    Fold changes are those of expm1(mean log1p). `is_log1p=False` takes the logarithm once more: what
    cell-eval does under allow_discrete=True. Only fold changes and what ranks by them depend on it.
    """
    if _version() not in FOLLOWED:
        return _by_pdex(cells, getattr(control, "cells", control), genes, label, is_log1p)
    reference = control if isinstance(control, Reference) else Reference.of(control)
    names = sorted(cells)
    values = len(genes) * (reference.cells.shape[0] + sum(part.shape[0] for part in cells.values()))
    back = _natural(_mean32(reference.cells, is_log1p))

    def row(name: str) -> dict[str, np.ndarray]:
        population = written_out(cells[name])
        statistic, p = rank_test(population, reference)
        mean = _natural(_mean32(population, is_log1p))
        changes = _changes(mean, back)
        return {"target_mean": mean, **changes, "p_value": p, "statistic": statistic,
                "fdr": false_discovery_control(p)}  # fmt: skip

    return _assembled(names, genes, cells, reference, back, mapped(row, names, values))


def _assembled(names, genes, cells, reference: Reference, back: np.ndarray, rows: list[dict]):
    """One polars table with pdex's columns, perturbation after perturbation."""
    import polars as pl

    whole = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    size, count = len(genes), len(names)
    columns = {
        "target": np.repeat(np.array(names, dtype=object), size),
        "feature": np.tile(np.array(genes, dtype=object), count),
        "target_mean": whole["target_mean"],
        "ref_mean": np.tile(back, count),
        "target_membership": np.repeat([cells[name].shape[0] for name in names], size),
        "ref_membership": np.full(size * count, reference.cells.shape[0]),
    }
    order = ("log2_fold_change", "percent_change", "p_value", "statistic", "fdr")
    return pl.DataFrame(columns | {name: whole[name] for name in order})


def _mean32(population: sp.csr_matrix | Copies, is_log1p: bool) -> np.ndarray:
    """Mean [G] of log1p values in float32, in the order in which pdex adds them."""
    if isinstance(population, Copies):
        return population.mean32() if is_log1p else _logged(population.points, population.counts).mean32()
    cells = population
    if not is_log1p:
        cells = cells.copy()
        np.log1p(cells.data, out=cells.data)
    return np.asarray(cells.mean(axis=0)).ravel()


def _logged(points: sp.csr_matrix, counts: np.ndarray) -> Copies:
    points = points.copy()
    np.log1p(points.data, out=points.data)
    return Copies(points, counts)


def _changes(mean: np.ndarray, back: np.ndarray) -> dict[str, np.ndarray]:
    """log2 fold and percent change [G] (float64) of means; a gene that neither side has is unchanged."""
    with np.errstate(divide="ignore", invalid="ignore"):
        fold = np.log2((mean + np.float64(TEST["epsilon"])) / (back + np.float64(TEST["epsilon"])))
        percent = (mean - back) / (back + np.float64(TEST["epsilon"]))
    return {
        "log2_fold_change": np.where(np.isnan(fold), 0.0, fold),
        "percent_change": np.where(np.isnan(percent), 0.0, percent),
    }


def _natural(values: np.ndarray) -> np.ndarray:
    """expm1 of float32 values [G] by the C library, whose float32 function is not numpy's in the last bit."""
    return _expm1()(np.ascontiguousarray(values))


@functools.cache
def _expm1() -> Callable[[np.ndarray], np.ndarray]:
    import numba

    @numba.njit
    def each(values):
        found = np.empty_like(values)
        for i in range(values.size):
            found[i] = np.expm1(values[i])
        return found

    return each


def _by_pdex(cells: Mapping[str, Population], control: sp.csr_matrix, genes, label: str, is_log1p: bool):
    import anndata as ad
    import numba
    from pdex import pdex

    def csr(population: Population) -> sp.csr_matrix:
        part = written_out(population)
        return (
            part.points[np.repeat(np.arange(len(part.counts)), part.counts)]
            if isinstance(part, Copies)
            else part
        )

    names = sorted(cells)
    labels = np.repeat([label, *names], [control.shape[0], *(cells[name].shape[0] for name in names)])
    adata = ad.AnnData(
        X=stack([control, *(csr(cells[name]) for name in names)]),
        obs=pd.DataFrame({_KEY: pd.Categorical(labels)}, index=np.arange(len(labels)).astype(str)),
        var=pd.DataFrame(index=list(genes)),
    )
    return pdex(
        adata,
        groupby=_KEY,
        reference=label,
        threads=min(threads(adata.n_obs * adata.n_vars), numba.config.NUMBA_NUM_THREADS),
        is_log1p=is_log1p,
        **TEST,
    )

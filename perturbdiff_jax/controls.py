"""Control cells of a request: from an AnnData or h5ad in its own words, or from a store, in the bundle's genes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbdiff_jax.checkpoint import Bundle
from perturbdiff_jax.data.groups import FALLBACKS, resolve_controls
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.data.values import normalise
from perturbdiff_jax.errors import RequestError, shorten, unknown


@dataclasses.dataclass(frozen=True)
class ControlCells:
    """Control cells by context, log1p-normalised, columns in the bundle's gene order."""

    cells: dict[tuple[str, str], sp.csr_matrix]  # (cell type, batch) -> [C, G] float32
    names: dict[tuple[str, str], list[str]]  # the cells' names

    def resolve(self, cell_type: str, batch: str) -> tuple[tuple[str, str], str]:
        """The context whose controls serve (cell type, batch), and the rule that found it.

        Own context; else another cell type of the same batch; else the same cell type of another batch; else any.
        """
        contexts = list(self.cells)
        if (cell_type, batch) in self.cells:
            return (cell_type, batch), FALLBACKS[0]
        kinds = pd.factorize(np.array([k for k, _ in contexts] + [cell_type], dtype=object))[0]
        places = pd.factorize(np.array([b for _, b in contexts] + [batch], dtype=object))[0]
        is_control = np.array([True] * len(contexts) + [False])
        sizes = np.array([m.shape[0] for m in self.cells.values()] + [0])
        serving, rule = resolve_controls(kinds, places, is_control, sizes)
        return contexts[serving[-1]], FALLBACKS[rule[-1]]


def from_store(store: Store) -> ControlCells:
    """All control cells of a store."""
    groups, cells, names = store.groups, {}, {}
    for g in np.flatnonzero(groups.is_control):
        context = (store.cell_types[groups.cell_type[g]], store.batches[groups.batch[g]])
        start, stop = int(groups.start[g]), int(groups.start[g] + groups.size[g])
        cells[context] = store.read(start, stop)
        names[context] = list(store.obs.index[start:stop].astype(str))
    return ControlCells(cells, names)


def from_anndata(
    source: anndata.AnnData | str | Path,
    bundle: Bundle,
    *,
    cell_type_key: str | None,
    batch_key: str | None,
    total_key: str | None = None,
    min_gene_overlap: float = 0.8,
    echo: Callable[[str], None] = print,
) -> ControlCells:
    """Control cells of a user's file: raw counts or log1p-normalised; normalised and aligned to the bundle.

    When the file has the bundle's perturbation column, its cells under the control label are used; otherwise every
    cell counts as a control cell.

    Raises:
      RequestError: missing file or column, unknown cell type or batch, wrong values, too few genes in common.
    """
    name = "input" if isinstance(source, anndata.AnnData) else str(source)
    adata = source if isinstance(source, anndata.AnnData) else _open(Path(source))
    obs, rows = adata.obs, np.arange(adata.n_obs)
    column = bundle.keys["perturbation"]
    if column in obs:
        rows = np.flatnonzero(obs[column].astype(str).to_numpy() == bundle.control)
        if not len(rows):
            labels = sorted(set(obs[column].astype(str)))
            raise RequestError(
                f"{name}: column {column!r} has no cell labelled {bundle.control!r}.\n"
                f"It has: {shorten(labels)}."
            )
    else:
        echo(f"{name}: no column {column!r}, so all {len(rows):,} cells are taken as control cells.")
    kinds = _labels(obs, cell_type_key, bundle.cell_types, "cell type", name)[rows]
    places = _labels(obs, batch_key, bundle.batches, "batch", name)[rows]
    matrix = _expression(adata, rows, bundle, total_key, min_gene_overlap, name, echo)
    cells, names = {}, {}
    for context in sorted(set(zip(kinds, places))):
        inside = np.flatnonzero((kinds == context[0]) & (places == context[1]))
        cells[context] = matrix[inside]
        names[context] = list(adata.obs_names[rows[inside]])
    return ControlCells(cells, names)


def _open(path: Path) -> anndata.AnnData:
    if not path.is_file():
        raise RequestError(f"{path}: no such file.")
    try:
        return anndata.read_h5ad(path)
    except Exception as error:  # whatever the HDF5 stack says: the file is not what it should be
        raise RequestError(f"{path}: cannot be read as h5ad ({str(error).splitlines()[0]}).") from error


def _labels(obs: pd.DataFrame, key: str | None, known: list[str], kind: str, name: str) -> np.ndarray:
    if key is None:
        if len(known) > 1:
            flag = kind.replace(" ", "-")
            raise RequestError(
                f"{name}: the bundle knows {len(known)} {kind}s; say which column holds them with --{flag}-key."
            )
        return np.full(len(obs), known[0], dtype=object)
    if key not in obs:
        raise unknown(f"{kind} column", key, obs.columns, name)
    labels = obs[key].astype(str).to_numpy(dtype=object)
    for label in sorted(set(labels)):
        if label not in known:
            raise unknown(f"{kind} in column {key!r}", label, known, name)
    return labels


def _expression(adata, rows, bundle, total_key, min_gene_overlap, name, echo) -> sp.csr_matrix:
    matrix = adata.X[rows]
    matrix = sp.csr_matrix(matrix, dtype=np.float32)
    values = matrix.data
    if not np.isfinite(values).all() or (values < 0).any():
        raise RequestError(
            f"{name}: X has NaN, infinite or negative values; allowed are counts or log1p values."
        )
    genes = adata.var_names.astype(str)
    if genes.has_duplicates:
        raise RequestError(f"{name}: gene {genes[genes.duplicated()][0]!r} stands twice in var_names.")
    # The cells must be totalled over all genes of the file, before those of the bundle are picked out.
    if len(values) and (values == np.round(values)).all():
        if total_key is not None and total_key not in adata.obs:
            raise unknown("total column", total_key, adata.obs.columns, name)
        if total_key is None:
            totals = np.asarray(matrix.sum(axis=1)).ravel()
        else:
            totals = adata.obs[total_key].to_numpy()[rows].astype(np.float64)
        if not (np.isfinite(totals) & (totals > 0)).all():
            cell = adata.obs_names[rows[np.flatnonzero(~(totals > 0))[0]]]
            raise RequestError(f"{name}: cell {cell!r} has total {0:g}; every cell needs counts.")
        matrix = normalise(matrix, (bundle.values["target_sum"] / totals).astype(np.float32))
        echo(
            f"{name}: raw counts, normalised to {bundle.values['target_sum']:g} per cell and log1p-transformed."
        )
    elif len(values) and values.max() > 30:
        raise RequestError(
            f"{name}: X is neither counts nor log1p-normalised (largest value {values.max():.4g}); "
            "allowed are whole counts, or log1p values below 30."
        )
    position = genes.get_indexer(pd.Index(bundle.genes))
    found = position >= 0
    if found.mean() < min_gene_overlap:
        lost = [g for g, ok in zip(bundle.genes, found) if not ok]
        raise RequestError(
            f"{name}: has {found.sum():,} of the bundle's {len(found):,} genes ({found.mean():.0%}); at least "
            f"{min_gene_overlap:.0%} are needed (--min-gene-overlap).\nMissing: {shorten(lost, 6)}."
        )
    if not found.all():
        echo(f"{name}: {len(found) - found.sum():,} of {len(found):,} genes are missing and taken as zero.")
    picked = matrix.tocsc()[:, np.where(found, position, 0)] @ sp.diags(found.astype(np.float32))
    aligned = sp.csr_matrix(picked, dtype=np.float32)
    aligned.eliminate_zeros()
    return aligned

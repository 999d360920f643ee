"""Control cells of a user's AnnData or h5ad: its words for genes, cell types and batches matched with the bundle's."""

from collections.abc import Callable, Sequence
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbdiff_jax.bundle import Bundle
from perturbdiff_jax.data.cell_sources import InMemory, SomeRows
from perturbdiff_jax.data.gene_naming.source_names import check_map, open_map, usable_names
from perturbdiff_jax.data.h5ad import H5ad
from perturbdiff_jax.data.storage.measured import mask_of
from perturbdiff_jax.data.values import normalise, read_checked, scales
from perturbdiff_jax.errors import RequestError, shorten, unknown
from perturbdiff_jax.prediction.controls import ControlCells, check_gene_names
from perturbdiff_jax.vocabulary import batch_names, unknown_batch


def from_anndata(
    source: anndata.AnnData | str | Path,
    bundle: Bundle,
    *,
    cell_type_key: str | None = None,
    batch_key: str | None = None,
    total_key: str | None = None,
    gene_key: str | None = None,
    map: str | Path | None = None,
    map_to: str | None = None,
    min_gene_overlap: float = 0.8,
    dataset: str | None = None,
    echo: Callable[[str], None] = print,
) -> ControlCells:
    """Control cells of a user's file: raw counts or log1p-normalised; normalised and aligned to the bundle.

    When the file has the bundle's perturbation column, its cells under the control label are used; otherwise every
    cell counts as a control cell. Genes are matched by name: the index of var, or its column `gene_key`, turned into
    the column `map_to` of the table `map` (data/gene_naming). Genes whose names it cannot turn count in totals only.
    `dataset`: the source or data set whose batches are meant, where those of several are called alike.

    Raises:
      RequestError: missing file or column, unknown cell type or batch, wrong values, too few genes in common; a table
        that cannot be read, or has no name of the file.
    """
    check_map(map, map_to)
    table = open_map(map, map_to, echo)
    file = InMemory(source) if isinstance(source, anndata.AnnData) else H5ad(source)
    with file:
        rows = _control_rows(file, bundle, echo)
        kinds = _labels(file, rows, cell_type_key, bundle.cell_types, "cell type")
        given = _labels(file, rows, batch_key, bundle.batches, "batch")
        batches = batch_names(bundle, dataset)
        _check_contexts(file, bundle, (kinds, cell_type_key), (given, batch_key), batches)
        names = file.genes if gene_key is None else file.gene_labels(gene_key, flag="--gene-key")
        if table is not None:
            names = usable_names(file.label, list(names), table, echo)
        columns = _columns(file, bundle, names, gene_key, min_gene_overlap, echo)
        matrix = _expression(SomeRows(file, rows), bundle, total_key, echo)
    places = np.array([batches[label] for label in given], dtype=object)
    picked = matrix.tocsc()[:, np.maximum(columns, 0)] @ sp.diags((columns >= 0).astype(np.float32))
    matrix = sp.csr_matrix(picked, dtype=np.float32)
    matrix.eliminate_zeros()
    cells, names = {}, {}
    for context in sorted(set(zip(kinds, places))):
        inside = np.flatnonzero((kinds == context[0]) & (places == context[1]))
        cells[context] = matrix[inside]
        names[context] = list(file.cells[rows[inside]])
    return ControlCells(cells, names, {batches[label]: label for label in sorted(set(given))})


def _control_rows(file: H5ad, bundle: Bundle, echo: Callable[[str], None]) -> np.ndarray:
    column = bundle.keys["perturbation"]
    if column not in file.columns:
        count = len(file.cells)
        why = f"no column {column!r}" if column else "no perturbation was told to this network"
        echo(f"{file.label}: {why}, so all {count:,} cells are taken as control cells.")
        return np.arange(count)
    labels = file.labels(column)
    rows = np.flatnonzero(labels == bundle.control)
    if not len(rows):
        raise RequestError(
            f"{file.label}: column {column!r} has no cell labelled {bundle.control!r}.\n"
            f"It has: {shorten(sorted(set(labels)))}."
        )
    return rows


def _labels(file: H5ad, rows: np.ndarray, key: str | None, known: list[str], kind: str) -> np.ndarray:
    flag = f"--{kind.replace(' ', '-')}-key"
    if key is None:
        if len(known) > 1:
            raise RequestError(
                f"{file.label}: the bundle knows {len(known)} {kind} names; say which column holds them: {flag}.\n"
                f"Columns: {shorten(file.columns)}."
            )
        return np.full(len(rows), known[0], dtype=object)
    return file.labels(key, flag=flag)[rows]


def _check_contexts(
    file: H5ad, bundle: Bundle, cell_types: tuple, batches: tuple, known: dict[str, str]
) -> None:
    """Raises RequestError on the first name, (labels, column) each, that the bundle does not know."""
    for label in sorted(set(cell_types[0]) - set(bundle.cell_types)):
        raise unknown("cell type", label, bundle.cell_types, f"{file.label}, column {cell_types[1]!r}")
    for label in sorted(set(batches[0]) - set(known)):
        raise unknown_batch(bundle, label, f"{file.label}, column {batches[1]!r}")


def _columns(
    file: H5ad,
    bundle: Bundle,
    names: Sequence[str | None],
    gene_key: str | None,
    least: float,
    echo: Callable[[str], None],
) -> np.ndarray:
    """Where each of the bundle's genes stands among the file's `names`, -1 = missing; None is no gene of anybody's."""
    check_gene_names(bundle)
    names, wanted = pd.Index(names, dtype=object), pd.Index(np.array(bundle.genes, dtype=object))
    twice = names[names.duplicated()].intersection(wanted)
    if len(twice):
        raise RequestError(
            f"{file.label}: var column {gene_key!r} names {len(twice)} of the bundle's genes more than once: "
            f"{shorten(twice, 3)}."
        )
    unique = ~names.duplicated()
    places = np.flatnonzero(unique)[names[unique].get_indexer(wanted)]
    columns = np.where(wanted.isin(names), places, -1)
    found, trained = columns >= 0, _trained(bundle)
    share, those = found[trained].mean(), "genes" if trained.all() else "genes that training measured"
    if share < least or not found[trained].any():
        lost = [gene for gene, ok in zip(bundle.genes, found | ~trained) if not ok]
        hint = "" if found.any() else " --gene-key takes a column of var, --map turns ids and symbols."
        raise RequestError(
            f"{file.label}: has {found[trained].sum():,} of the bundle's {trained.sum():,} {those} ({share:.0%}); at "
            f"least {least:.0%} are needed (--min-gene-overlap).\nMissing: {shorten(lost, 6)}.{hint}"
        )
    missing = len(found) - found.sum()
    if missing:
        also = "" if trained.all() else f" ({(~found & ~trained).sum():,} of them as in training)"
        echo(f"{file.label}: {missing:,} of {len(found):,} genes are missing and taken as zero{also}.")
    else:
        echo(f"{file.label}: all {len(found):,} genes of the bundle are there.")
    return columns


def _trained(bundle: Bundle) -> np.ndarray:
    """bool [G]: the genes that training measured; where its cells had zeros only, a file need not do better."""
    kept = bundle.values.get("measured")
    try:
        return np.ones(len(bundle.genes), dtype=bool) if kept is None else mask_of(kept, len(bundle.genes))
    except (TypeError, ValueError) as error:
        raise RequestError(f"The bundle is damaged: its measured genes cannot be read ({error}).") from error


def _expression(
    file: SomeRows, bundle: Bundle, total_key: str | None, echo: Callable[[str], None]
) -> sp.csr_matrix:
    """log1p-normalised, all genes of the file: cells are totalled before the bundle's genes are picked out."""
    read = read_checked(file, echo=echo)
    target = bundle.values["target_sum"]
    if read.encoding == "counts":
        echo(f"{file.label}: raw counts, normalised to {target:g} per cell and log1p-transformed.")
        scale = scales(file, read.totals, total_key=total_key, target_sum=target)
        return normalise(read.matrix, scale)
    if total_key:
        echo(f"{file.label}: X holds log1p values: the total key {total_key!r} is not used.")
    # Cells that were normalised to a larger total than the bundle's are told by their sums.
    linear = sp.csr_matrix((np.expm1(read.matrix.data), read.matrix.indices, read.matrix.indptr))
    largest = float(linear.sum(axis=1).max())
    if largest > 1.05 * np.expm1(bundle.values["largest"]):
        raise RequestError(
            f"{file.label}: X holds log1p values of cells normalised to {largest:.4g}, the bundle's to {target:g}.\n"
            f"Allowed: raw counts, or log1p values of counts normalised to {target:g} per cell."
        )
    return read.matrix

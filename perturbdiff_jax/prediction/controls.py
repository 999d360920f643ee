"""Control cells of a request: from an AnnData or h5ad in its own words, or from a store, in the bundle's genes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbdiff_jax.bundle import Bundle
from perturbdiff_jax.data.cell_sources import InMemory, SomeRows
from perturbdiff_jax.data.groups import FALLBACKS, resolve_controls
from perturbdiff_jax.data.h5ad import H5ad
from perturbdiff_jax.data.storage.measured import mask_of
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.data.values import normalise, read_checked, scales
from perturbdiff_jax.errors import RequestError, shorten, unknown
from perturbdiff_jax.vocabulary import batch_names, unknown_batch


@dataclasses.dataclass(frozen=True)
class ControlCells:
    """Control cells by context, log1p-normalised, columns in the bundle's gene order."""

    cells: dict[tuple[str, str], sp.csr_matrix]  # (cell type, batch) -> [C, G] float32
    names: dict[tuple[str, str], list[str]]  # the cells' names
    # Batches that the file calls otherwise than the bundle: the bundle's name -> the file's.
    spelling: dict[str, str] = dataclasses.field(default_factory=dict)

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


def check_store(store: Store, bundle: Bundle) -> None:
    """Raises RequestError when the cells of `store` are not in the bundle's genes and unit."""
    check_gene_names(bundle)
    if store.genes != bundle.genes:
        lost = [gene for gene in bundle.genes if gene not in set(store.genes)]
        what = f"lacks {shorten(lost, 3)}" if lost else "other genes besides, or another order"
        raise RequestError(
            f"{store.path}: its genes are not those of the bundle ({what}).\n"
            "Prepare it with --genes BUNDLE/bundle.json --absent-genes zero."
        )
    ours, theirs = bundle.values["target_sum"], store.manifest["values"]["target_sum"]
    if ours != theirs:
        raise RequestError(
            f"{store.path}: cells are normalised to {theirs:g}, those of the bundle to {ours:g}; prepare it with "
            f"--target-sum {ours:g}."
        )


def from_store(
    store: Store, bundle: Bundle | None = None, *, source: str | None = None, named: bool = True
) -> ControlCells:
    """All control cells of a store; batches get the names that `bundle` has for them, those of `source` if given.

    Without `named` the cells' own names are not read, which takes a while for millions.
    """
    groups, cells, names = store.groups, {}, {}
    known = batch_names(bundle, source) if bundle is not None else {}
    spelling = {}
    for g in np.flatnonzero(groups.is_control):
        label = store.batches[groups.batch[g]]
        context = (store.cell_types[groups.cell_type[g]], known.get(label, label))
        spelling[context[1]] = label
        start, stop = int(groups.start[g]), int(groups.start[g] + groups.size[g])
        cells[context] = store.read(start, stop)
        names[context] = list(store.obs_of([(start, stop)]).index.astype(str)) if named else []
    return ControlCells(cells, names, spelling)


def check_gene_names(bundle: Bundle) -> None:
    """Raises RequestError for converted weights whose genes were never named."""
    if bundle.origin.get("gene_names") is False:
        raise RequestError(
            "The bundle has no gene names, so genes of a file cannot be matched: convert it again with --genes."
        )


def from_anndata(
    source: anndata.AnnData | str | Path,
    bundle: Bundle,
    *,
    cell_type_key: str | None = None,
    batch_key: str | None = None,
    total_key: str | None = None,
    gene_key: str | None = None,
    min_gene_overlap: float = 0.8,
    dataset: str | None = None,
    echo: Callable[[str], None] = print,
) -> ControlCells:
    """Control cells of a user's file: raw counts or log1p-normalised; normalised and aligned to the bundle.

    When the file has the bundle's perturbation column, its cells under the control label are used; otherwise every
    cell counts as a control cell. Genes are matched by name (the index of var, or its column `gene_key`). `dataset`:
    the source or data set whose batches are meant, where those of several are called alike.

    Raises:
      RequestError: missing file or column, unknown cell type or batch, wrong values, too few genes in common.
    """
    file = InMemory(source) if isinstance(source, anndata.AnnData) else H5ad(source)
    with file:
        rows = _control_rows(file, bundle, echo)
        kinds = _labels(file, rows, cell_type_key, bundle.cell_types, "cell type")
        given = _labels(file, rows, batch_key, bundle.batches, "batch")
        batches = batch_names(bundle, dataset)
        _check_contexts(file, bundle, (kinds, cell_type_key), (given, batch_key), batches)
        columns = _columns(file, bundle, gene_key, min_gene_overlap, echo)
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
    file: H5ad, bundle: Bundle, gene_key: str | None, least: float, echo: Callable[[str], None]
) -> np.ndarray:
    """Where each of the bundle's genes stands in the file, -1 = missing."""
    check_gene_names(bundle)
    names = file.genes if gene_key is None else file.gene_labels(gene_key, flag="--gene-key")
    names, wanted = pd.Index(names), pd.Index(np.array(bundle.genes, dtype=object))
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
        raise RequestError(
            f"{file.label}: has {found[trained].sum():,} of the bundle's {trained.sum():,} {those} ({share:.0%}); at "
            f"least {least:.0%} are needed (--min-gene-overlap).\nMissing: {shorten(lost, 6)}."
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

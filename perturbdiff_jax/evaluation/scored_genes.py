"""Which genes are scored: those that all predictions have and some real cell measures.

A store has columns for genes that its files lack. A prediction of such a gene cannot be right or wrong; agreement on
zeros that nobody counted would raise every score.
"""

from collections.abc import Callable, Iterable, Mapping

import anndata as ad

from perturbdiff_jax.data.storage.measured import told, zeros_that_say_nothing
from perturbdiff_jax.errors import RequestError, shorten
from perturbdiff_jax.evaluation.columns import open_store
from perturbdiff_jax.evaluation.inputs import Side, closing, open_file
from perturbdiff_jax.evaluation.real_cells import is_store

LEAST_SHARED = 0.5  # of the smallest prediction's genes
COLUMN = "measured"  # of var, where a store was written as h5ad or made into an AnnData


def unmeasured_genes(real: ad.AnnData | str, echo: Callable[[str], None]) -> frozenset[str]:
    """Genes that no cell of `real` measures: of a store what its manifest says, else what var["measured"] denies.

    Genes that only some of a store's files have are scored, and zeros in the cells of the others: that is said.
    """
    if not is_store(real):
        adata, _ = open_file(real, "real")
        with closing(adata, real):
            mask = adata.var[COLUMN].to_numpy() if COLUMN in adata.var.columns else None
            known = mask is not None and mask.dtype == bool
            return frozenset(adata.var_names[~mask].astype(str)) if known else frozenset()
    store = open_store(real)
    nowhere, partly = zeros_that_say_nothing(store.measured, store.genes)
    if partly:
        echo(
            f"store {store.path}: {told(partly)} measured in some of its files only; they count as zero in the "
            "cells of the others"
        )
    return frozenset(nowhere)


def common_genes(sides: Mapping[str, Side]) -> tuple[str, ...]:
    """The genes of all sides, in the first one's order; raises RequestError for fewer than half of the smallest's."""
    first = next(iter(sides.values())).genes
    shared = set(first).intersection(*(side.genes for side in sides.values()))
    smallest = min(sides, key=lambda name: len(sides[name].genes))
    least = len(sides[smallest].genes)
    if len(shared) < LEAST_SHARED * least:
        examples = "; ".join(f"{name}: {shorten(side.genes, most=2)}" for name, side in sides.items())
        raise RequestError(
            f"predictions: var_names: only {len(shared):,} genes are in all files, under half of the {least:,} of "
            f"{smallest!r}.\nAllowed: gene names of one kind in all files. They have {examples}."
        )
    return tuple(gene for gene in first if gene in shared)


def measured_genes(
    genes: tuple[str, ...], unmeasured: Iterable[str], echo: Callable[[str], None]
) -> tuple[str, ...]:
    """The predicted `genes` that real cells measure, in their order; raises RequestError if that is none."""
    denied = frozenset(unmeasured)
    lost = [gene for gene in genes if gene in denied]
    if len(lost) == len(genes):
        raise RequestError(
            f"predictions: the real cells measure none of their {len(genes):,} genes ({shorten(genes, most=3)})."
        )
    if lost:
        echo(
            f"genes: {len(lost):,} of {len(genes):,} predicted genes are measured in no real cell and left out "
            f"({shorten(lost, most=4)})"
        )
    return tuple(gene for gene in genes if gene not in denied)


def check_rivals(store, genes: Iterable[str], echo: Callable[[str], None]) -> None:
    """Says which of the scored genes the rivals' store does not measure; raises RequestError for genes it lacks."""
    known = frozenset(store.genes)
    missing = [gene for gene in genes if gene not in known]
    if missing:
        raise RequestError(f"store {store.path}: lacks predicted genes: {shorten(missing, most=5)}.")
    denied = frozenset(zeros_that_say_nothing(store.measured, store.genes)[0])
    lost = [gene for gene in genes if gene in denied]
    if lost:
        echo(
            f"store {store.path}: {told(lost)} scored but not measured there; the rivals that learn from it have zeros"
        )

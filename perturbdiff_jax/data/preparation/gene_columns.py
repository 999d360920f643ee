"""Which column of every file is which gene of the store, when files differ in their genes and in their order.

A list decides alone: what a file lacks of it counts as zero there. Of a list, genes that no file has are left out, or
kept as empty columns if so wished. Without a list the genes that every file has are kept. Either way what is missing
is said, and a file that lacks most of them is refused, but for a list that is kept whole: then only one that lacks all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from perturbdiff_jax.data.gene_naming.source_names import IDS, OTHERS, kind_of
from perturbdiff_jax.data.genes import match_genes, read_gene_list
from perturbdiff_jax.data.preparation.labels import Labels
from perturbdiff_jax.errors import RequestError, shorten

if TYPE_CHECKING:
    from perturbdiff_jax.data.prepare import PrepareOptions

LEAST = 0.5  # share of the genes that every file must have
MOST_LINES = 10  # of files that lack some of a list that is kept whole


@dataclasses.dataclass(frozen=True)
class GeneColumns:
    """`names` in the store's order; `places[file]` int32 [genes of the file]: the gene's position, -1 = left out.

    `origin` is a phrase for the table; None means that they are candidates, `variable` genes of which are wanted.
    `listed` is how many genes the list has that they are from, None without one.
    """

    names: list[str]
    places: list[np.ndarray]
    origin: str | None
    listed: int | None = None

    @property
    def measured(self) -> np.ndarray:
        """bool [files, genes]: whether the file has the gene."""
        found = np.zeros((len(self.places), len(self.names)), dtype=bool)
        for mask, places in zip(found, self.places, strict=True):
            mask[places[places >= 0]] = True
        return found

    def keep(self, chosen: np.ndarray, origin: str) -> GeneColumns:
        """Only the genes at positions `chosen`, in that order."""
        to = np.full(len(self.names) + 1, -1, dtype=np.int32)  # the last one is for those left out
        to[chosen] = np.arange(len(chosen))
        return GeneColumns([self.names[i] for i in chosen], [to[place] for place in self.places], origin)


def gene_columns(labels: Labels, options: PrepareOptions, echo: Callable[[str], None]) -> GeneColumns:
    """Decides by --genes, --all-genes or --hvg; raises RequestError when files have too little in common."""
    if options.genes is not None and not options.all_genes:
        return _listed(labels, options, echo)
    names = _common(labels.files, _known(labels), echo)
    origin = "all" if len(labels.files) == 1 else "all that every file has"
    if not options.all_genes and options.hvg is not None:
        if options.hvg < len(names):
            origin = None
        elif options.hvg > len(names):
            echo(
                f"{options.hvg:,} highly variable genes asked for, the data have {len(names):,}: all are kept."
            )
    return GeneColumns(names, _places(labels, names), origin)


def _places(labels: Labels, names: list[str]) -> list[np.ndarray]:
    index = pd.Index(np.array(names, dtype=object))
    return [index.get_indexer(pd.Index(own, dtype=object)).astype(np.int32) for own in labels.gene_names]


def _known(labels: Labels) -> list[np.ndarray]:
    """The names of each file's genes, object [genes that are not left out]."""
    kept = [pd.notna(names) for names in labels.gene_names]
    return [names if mask.all() else names[mask] for names, mask in zip(labels.gene_names, kept, strict=True)]


def _listed(labels: Labels, options: PrepareOptions, echo: Callable[[str], None]) -> GeneColumns:
    wanted = read_gene_list(options.genes)
    own = _known(labels)
    known = set().union(*own)
    names = [name for name in wanted if name in known]
    if not names:
        match_genes(wanted, own[0], source=str(options.genes), file=shorten(labels.files, 3))
    lost = [name for name in wanted if name not in known]
    if options.absent_genes == "zero":
        names = wanted
        _tell_unmeasured(labels.files, own, wanted, lost, options, echo)
    else:
        if lost:
            echo(
                f"{options.genes}: {len(lost)} of {len(wanted)} genes are not in the data, left out: "
                f"{shorten(lost, 5)}."
            )
        _tell_missing(labels.files, own, names, options, echo)
    return GeneColumns(names, _places(labels, names), f"list {options.genes}", listed=len(wanted))


def _tell_missing(
    files: list[str],
    known: list[np.ndarray],
    names: list[str],
    options: PrepareOptions,
    echo: Callable[[str], None],
) -> None:
    """Says what each file lacks of the listed genes that some file has; RequestError where that is most of them."""
    for file, genes in zip(files, known, strict=True):
        own = set(genes)
        lost = [name for name in names if name not in own]
        if len(lost) > (1 - LEAST) * len(names):
            raise RequestError(
                f"{file}: has {len(names) - len(lost):,} of the {len(names):,} genes of {options.genes}; at least "
                f"{LEAST:.0%} are needed (any share with --absent-genes zero).\nMissing: {shorten(lost, 5)}."
            )
        if lost:
            echo(
                f"{file}: {len(lost):,} of the {len(names):,} listed genes are missing and count as zero: "
                f"{shorten(lost, 5)}."
            )


def _tell_unmeasured(
    files: list[str],
    known: list[np.ndarray],
    wanted: list[str],
    lost: list[str],
    options: PrepareOptions,
    echo: Callable[[str], None],
) -> None:
    """Says what each file lacks of the list, and what all do; RequestError for a file that lacks all of it."""
    lines = []
    for file, genes in zip(files, known, strict=True):
        own = set(genes)
        missing = [name for name in wanted if name not in own]
        if len(missing) == len(wanted):
            match_genes(wanted, genes, source=str(options.genes), file=file)
        # Some genes have no symbol: ids among symbols match, and would pass for the share that is measured.
        if len(missing) > (1 - LEAST) * len(wanted) and {kind_of(wanted), kind_of(genes)} == {IDS, OTHERS}:
            raise RequestError(
                f"{options.genes} has {kind_of(wanted)} ({shorten(wanted, 3)}), {file} has {kind_of(genes)} "
                f"({shorten(genes, 3)}).\n"
                "Give --map TABLE.csv, whose two columns name each gene both ways (or --gene-key, a column of var)."
            )
        if not missing:
            continue
        share = 1 - len(missing) / len(wanted)
        low = f"; only {share:.1%} of the list is measured" if share < LEAST else ""
        lines.append(
            f"{file}: {len(missing):,} of the {len(wanted):,} listed genes are missing, zeros that are not measured: "
            f"{shorten(missing, 5)}{low}."
        )
    for line in lines[:MOST_LINES]:
        echo(line)
    if len(lines) > MOST_LINES:
        echo(
            f"... and {len(lines) - MOST_LINES:,} more files that lack listed genes; the manifest says which."
        )
    if lost and len(files) > 1:
        echo(f"{options.genes}: {len(lost):,} of {len(wanted):,} genes are in no file: {shorten(lost, 5)}.")


def _common(files: list[str], own: list[np.ndarray], echo: Callable[[str], None]) -> list[str]:
    """The genes of every file, in the first file's order."""
    shared = set(own[0]).intersection(*own[1:])
    smallest = min(range(len(files)), key=lambda number: len(own[number]))
    if len(shared) < LEAST * len(own[smallest]):
        other = 0 if smallest else next(n for n in range(1, len(files)))
        raise RequestError(
            f"{files[smallest]}: {len(shared):,} of its {len(own[smallest]):,} genes are in every "
            f"other file (as {files[other]}); at least {LEAST:.0%} are needed.\n"
            f"It has {shorten(own[smallest], 3)}; the other has {shorten(own[other], 3)}."
        )
    everything = dict.fromkeys(gene for genes in own for gene in genes)
    lost = [gene for gene in everything if gene not in shared]
    if lost:
        lacking = [
            f"{file} lacks {len(everything) - len(genes):,}"
            for file, genes in zip(files, own, strict=True)
            if len(genes) < len(everything)
        ]
        echo(
            f"{len(lost):,} of {len(everything):,} genes are not in every file and left out: {shorten(lost, 5)} "
            f"({shorten(lacking, 3)})."
        )
    return [gene for gene in own[0] if gene in shared]

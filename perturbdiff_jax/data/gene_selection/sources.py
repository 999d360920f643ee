"""What is merged: the files with their cells and genes, and the gene lists that are taken whole.

Only numbers of genes are kept for a file (int32, shared between files with the same genes), so that a thousand files
with sixty thousand genes each fit into memory. Names that a gene list cannot hold or tell apart are left out, aloud.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from perturbdiff_jax.data.gene_naming.name_table import NameTable
from perturbdiff_jax.data.gene_naming.source_names import kind_of, usable_names
from perturbdiff_jax.data.gene_selection.notes import NAMES, Notes
from perturbdiff_jax.data.gene_selection.options import VocabularyOptions
from perturbdiff_jax.data.genes import read_gene_list
from perturbdiff_jax.data.h5ad import H5ad
from perturbdiff_jax.data.preparation.progress import Progress
from perturbdiff_jax.data.preparation.scan import cut
from perturbdiff_jax.data.storage.manifest import is_store


class GeneNames:
    """Numbers for the names of all sources: `names[number]`, in the order in which they were met."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._same: dict[bytes, np.ndarray] = {}

    def numbers(self, names: Iterable[str | None]) -> np.ndarray:
        """int32 [names], -1 for None; the same array for the same names."""
        found = np.array([-1 if name is None else self._number(name) for name in names], dtype=np.int32)
        return self._same.setdefault(hashlib.sha256(found).digest(), found)

    def _number(self, name: str) -> int:
        number = self._numbers.setdefault(name, len(self.names))
        if number == len(self.names):
            self.names.append(name)
        return number

    def some(self, numbers: np.ndarray, most: int = 3) -> list[str]:
        """The first names of an array of numbers, for messages."""
        return [self.names[number] for number in numbers[numbers >= 0][:most].tolist()]


@dataclasses.dataclass(frozen=True)
class Source:
    """A file or a list: `genes` int32 numbers of its genes, -1 = left out; `kind` of names, see naming.py.

    Of a file also: cells, pieces (rows start..stop-1 that are read at once), `where` (the matrix) and stored numbers.
    """

    path: str
    genes: np.ndarray
    kind: str
    cells: int = 0
    pieces: Sequence[tuple[int, int]] = ()
    where: str = ""
    stored: int = 0

    @property
    def own(self) -> np.ndarray:
        """Numbers of the genes that are not left out."""
        return self.genes[self.genes >= 0]


def read_files(
    files: Sequence[str], options: VocabularyOptions, table: NameTable | None, names: GeneNames, notes: Notes
) -> list[Source]:
    """Opens every file; raises RequestError for one that is no h5ad, lacks a layer or column, or is damaged."""
    progress = Progress(notes.echo, "opening", len(files), unit="files")
    found = []
    for path in files:
        with H5ad(path, layer=options.layer) as file:
            genes = file.genes
            if options.gene_key is not None:
                genes = file.gene_labels(options.gene_key, flag="--gene-key")
            if options.total_key is not None:
                # Only to refuse it before the long work: it is read again when it is needed.
                file.numbers(options.total_key, flag="--total-key")
            facts = {
                "cells": len(file.cells),
                "pieces": cut(file.matrix, options.memory),
                "where": file.where,
                "stored": file.matrix.stored,
            }
        found.append(_source(path, list(genes), table, names, notes, facts))
        progress.add(1)
    return found


def read_lists(
    options: VocabularyOptions, table: NameTable | None, names: GeneNames, notes: Notes
) -> list[Source]:
    """Gene lists (or the genes of stores) in the order given; raises RequestError as read_gene_list does."""
    found = []
    for path in options.include:
        if "://" in str(path) or is_store(pathlib.Path(path)):
            from perturbdiff_jax.data.store import Store  # it brings tensorstore along

            listed = list(Store.open(path).genes)
        else:
            listed = read_gene_list(path, flag="--include")
        found.append(_source(str(path), listed, table, names, notes, {}))
    return found


def _source(
    path: str, listed: list[str], table: NameTable | None, names: GeneNames, notes: Notes, facts: dict
) -> Source:
    wanted = usable_names(path, listed, table, lambda text: notes.say(NAMES, text))
    genes = names.numbers(wanted)
    return Source(path, genes, kind_of([name for name in wanted if name is not None]), **facts)

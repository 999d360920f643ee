"""Who the cells are: the labels of all files given to `prepare`, checked before any long reading begins."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from perturbdiff_jax.data.conditions import DOSE_MARK
from perturbdiff_jax.data.h5ad import H5ad
from perturbdiff_jax.errors import RequestError, shorten, unknown

if TYPE_CHECKING:
    from perturbdiff_jax.data.prepare import PrepareOptions

ONLY = "all"  # the batch (or cell type) of every cell when no key was given


@dataclasses.dataclass(frozen=True)
class Labels:
    """Cells in the files' order; arrays are [cells]."""

    files: list[str]
    genes: np.ndarray  # object [genes], in the first file's order
    names: np.ndarray  # object, unique
    perturbation: np.ndarray  # object; with a dose, "name @ dose"
    cell_type: np.ndarray  # object
    batch: np.ndarray  # object
    dose: np.ndarray | None  # float64
    source: np.ndarray  # int32, position in `files`
    source_row: np.ndarray  # int64

    def __len__(self) -> int:
        return len(self.names)

    def obs(
        self, order: np.ndarray, vocabularies: dict[str, list[str]], options: PrepareOptions
    ) -> pd.DataFrame:
        """obs of the store, in `order`: the keys' own columns, dose, source file (if several) and source
        row."""
        frame = pd.DataFrame(index=pd.Index(self.names[order], dtype=object))
        keys = {
            "perturbation": options.perturbation_key,
            "cell_type": options.cell_type_key,
            "batch": options.batch_key,
        }
        for role, key in keys.items():
            if key:
                frame[key] = _categorical(getattr(self, role)[order], vocabularies[role])
        if self.dose is not None:
            frame[options.dose_key] = self.dose[order]
        if len(self.files) > 1:
            frame["source"] = _categorical(np.array(self.files, dtype=object)[self.source[order]], self.files)
        frame["source_row"] = self.source_row[order]
        return frame


def _categorical(values: np.ndarray, names: Sequence[str]) -> pd.Categorical:
    # Object categories: pandas' newer string type would be written in a form that older readers lack.
    categories = pd.Index(np.array(names, dtype=object), dtype=object)
    return pd.Categorical.from_codes(
        categories.get_indexer(pd.Index(values, dtype=object)), categories=categories
    )


def read_labels(inputs: Sequence[str | pathlib.Path], options: PrepareOptions) -> Labels:
    """Reads names and key columns of every file; raises RequestError naming file, column and value.

    Refused: unknown columns, missing labels, a control that no cell has, a perturbation with one cell, files
    with different genes.
    """
    parts = [_read_file(path, options) for path in inputs]
    for part in parts[1:]:
        _check_same_genes(parts[0], part)
    labels = parts[0] if len(parts) == 1 else _joined(parts)
    where = f"{shorten(labels.files, 3)}, column {options.perturbation_key!r}"
    names, counts = np.unique(labels.perturbation.astype(str), return_counts=True)
    if options.control not in names:
        raise unknown("control label", options.control, names, where)
    if len(names) == 1:
        raise RequestError(
            f"{where}: every cell is a control ({options.control!r}); perturbed cells are needed."
        )
    single = names[counts == 1].tolist()
    if single:
        raise RequestError(
            f"{where}: {len(single)} perturbation(s) with one cell: {shorten(single, 5)}.\n"
            "Allowed: 2 or more cells each (a distribution of cells is learnt); remove those cells."
        )
    return labels


def _read_file(path: str | pathlib.Path, options: PrepareOptions) -> Labels:
    with H5ad(path, layer=options.layer) as file:
        count = len(file.cells)
        every = np.full(count, ONLY, dtype=object)
        perturbation = file.labels(options.perturbation_key, flag="--perturbation-key")
        cell_type = (
            file.labels(options.cell_type_key, flag="--cell-type-key") if options.cell_type_key else every
        )
        batch = file.labels(options.batch_key, flag="--batch-key") if options.batch_key else every
        if options.total_key:
            file.numbers(options.total_key, flag="--total-key")
        dose = None
        if options.dose_key:
            dose = file.numbers(options.dose_key, flag="--dose-key")
            pairs = zip(perturbation, dose, strict=True)
            dosed = np.array([f"{name}{DOSE_MARK}{amount:g}" for name, amount in pairs], dtype=object)
            perturbation = np.where(perturbation == options.control, perturbation, dosed)
        return Labels(
            files=[str(path)],
            genes=file.genes,
            names=file.cells,
            perturbation=perturbation,
            cell_type=cell_type,
            batch=batch,
            dose=dose,
            source=np.zeros(count, dtype=np.int32),
            source_row=np.arange(count, dtype=np.int64),
        )


def _check_same_genes(first: Labels, other: Labels) -> None:
    lost, extra = set(first.genes) - set(other.genes), set(other.genes) - set(first.genes)
    if lost or extra:
        raise RequestError(
            f"{other.files[0]}: its genes are not those of {first.files[0]}: {len(lost)} missing "
            f"({shorten(sorted(lost), 3)}), {len(extra)} more ({shorten(sorted(extra), 3)}).\n"
            "Allowed: files with the same genes, in any order."
        )


def _joined(parts: list[Labels]) -> Labels:
    def stacked(name: str) -> np.ndarray | None:
        return (
            None
            if getattr(parts[0], name) is None
            else np.concatenate([getattr(part, name) for part in parts])
        )

    names = stacked("names")
    if pd.Index(names).has_duplicates:
        # The same barcode in two files is two cells: the file's name tells them apart.
        stems = [pathlib.Path(part.files[0]).stem for part in parts]
        if len(set(stems)) < len(stems):
            stems = [f"{number}:{stem}" for number, stem in enumerate(stems)]
        named = [f"{stem}:{name}" for stem, part in zip(stems, parts, strict=True) for name in part.names]
        names = np.array(named, dtype=object)
    return Labels(
        files=[part.files[0] for part in parts],
        genes=parts[0].genes,
        names=names,
        perturbation=stacked("perturbation"),
        cell_type=stacked("cell_type"),
        batch=stacked("batch"),
        dose=stacked("dose"),
        source=np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts]),
        source_row=stacked("source_row"),
    )

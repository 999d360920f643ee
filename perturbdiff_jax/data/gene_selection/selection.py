"""Highly variable genes of one composite: scanpy's definition, over the genes that enough of its cells measure."""

from __future__ import annotations

import dataclasses

import numpy as np

from perturbdiff_jax.data.gene_selection.moments import MeasuredMoments
from perturbdiff_jax.data.gene_selection.notes import CHOICE, Notes
from perturbdiff_jax.data.gene_selection.options import VocabularyOptions
from perturbdiff_jax.data.genes import highly_variable
from perturbdiff_jax.errors import RequestError


@dataclasses.dataclass(frozen=True)
class Choice:
    """Genes of a composite, as ascending numbers: those that its files have, and those that are chosen.

    `rare` is how many were left out because too few cells measure them.
    """

    genes: np.ndarray
    chosen: np.ndarray
    rare: int


def choose(
    where: str,
    genes: np.ndarray,
    moments: MeasuredMoments,
    cells: int,
    options: VocabularyOptions,
    notes: Notes,
) -> Choice:
    """The `hvg` most variable of `genes` (int [genes], one for each of the moments) of a composite of `cells`.

    Genes that tie at the cut are all kept, and all genes if there are no more than `hvg`. Raises RequestError when no
    gene is measured in enough cells or none varies.
    """
    enough = moments.cells >= options.min_measured * cells
    if not enough.any():
        raise RequestError(
            f"{where}: none of its {len(genes):,} genes is in files with {options.min_measured:.0%} of its "
            f"{cells:,} cells (--min-measured)."
        )
    candidates, count = genes[enough], int(enough.sum())
    constant = RequestError(f"{where}: no gene varies over its {cells:,} cells.")
    try:
        chosen = candidates[highly_variable(moments.keep(enough), options.hvg)]
    except RequestError as error:
        raise constant from error
    # Rounding can leave constant genes a variance, but no score.
    if not len(chosen):
        raise constant
    if len(chosen) != options.hvg:
        why = f"only {len(chosen):,} vary"
        if count <= options.hvg:
            why = f"it has {count:,}, and all are kept"
        elif len(chosen) > options.hvg:
            why = f"{len(chosen):,} are kept, because some tie at the cut"
        notes.say(CHOICE, f"{where}: {options.hvg:,} highly variable genes asked for; {why}.")
    rare = len(genes) - count
    if rare:
        notes.say(
            CHOICE,
            f"{where}: {rare:,} of its {len(genes):,} genes are in files with less than {options.min_measured:.0%} of "
            "its cells, not chosen from (--min-measured).",
        )
    return Choice(genes, chosen, rare)

"""Which part of which array is taken from another network: axis by axis, by position or by name.

A plan tells for every array of the new network where its numbers come from. What is known by name (genes, cell types,
batches, perturbations, doses) is matched by name; everything else has to have the same shape.
"""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from perturbdiff_jax.bundle import Bundle
from perturbdiff_jax.models.covariates import FROZEN
from perturbdiff_jax.settings import Settings

# Arrays that have genes along an axis: input layers, output layer, anchor.
INPUTS, OUTPUTS = ("embed_perturbed", "embed_control"), ("head/out", "anchor")


@dataclasses.dataclass(frozen=True)
class Names:
    """What the rows of a network's arrays stand for."""

    genes: Sequence[str]
    perturbation: Sequence[Hashable]  # of the learned rows; None is "none"
    cell_type: Sequence[Hashable]
    batch: Sequence[str]
    dose: Sequence[Any]
    parts: Sequence[str]  # of the covariates, in the order in which their embeddings are concatenated
    width: int  # of each
    tables: dict[str, Any]  # covariate -> what its frozen table is made of

    @classmethod
    def of(cls, bundle: Bundle, settings: Settings) -> "Names":
        """As `models/covariates.py` lays them out."""
        model, tables = settings.model, bundle.tables
        told = {role: tables.get(role, {}) for role in ("perturbation", "cell_type")}
        # Marginal pretraining trains the row of "none" alone.
        perturbations = (None, *([] if model.use_perturbation == "no" else bundle.perturbations))
        parts = ["perturbation"]
        parts += ["dose"] if bundle.doses else []
        parts += ["cell_type"] if model.use_cell_type != "no" else []
        parts += ["batch"] if model.use_batch != "no" else []
        return cls(
            genes=bundle.genes,
            perturbation=_learned(perturbations, told["perturbation"]),
            cell_type=_learned(bundle.cell_types, told["cell_type"]),
            batch=bundle.batches,
            dose=bundle.doses.get("values", ()),
            parts=parts,
            width=model.covariate_width,
            tables={role: facts.get("parts") or facts.get("name") for role, facts in told.items()},
        )


def _learned(names: Sequence[Hashable], facts: dict[str, Any]) -> list[Hashable]:
    """The name of each learned row; a row that several names share, or that none has alone, has no other's name."""
    rows = facts.get("learned")
    if not rows:
        return [] if "shape" in facts else list(names)
    found: list[Hashable] = [object() for _ in range(1 + max(row for own in rows for row in own))]
    for name, own in zip(names, rows):
        if len(own) == 1:
            found[own[0]] = name
    return found


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows `ours` of an axis come from rows `theirs` of the same axis there."""

    axis: int
    ours: np.ndarray
    theirs: np.ndarray


def by_name(ours: Sequence[Hashable], theirs: Sequence[Hashable], axis: int) -> Rows:
    """Rows whose names both have."""
    places = {name: row for row, name in enumerate(theirs)}
    pairs = [(row, places[name]) for row, name in enumerate(ours) if name in places]
    return Rows(axis, *np.array(pairs, np.int64).reshape(-1, 2).T)


def rows_of(path: str, ours: Names, theirs: Names) -> Rows | None:
    """How the array at `path` ("covariates/batch") is matched; None = as it is, whole."""
    if path.startswith(INPUTS):
        if path.endswith("bias"):
            return None
        genes = by_name(ours.genes, theirs.genes, 0)
        # The second half of the rows reads the previous estimate.
        both = [
            np.concatenate([rows, rows + len(names)])
            for rows, names in ((genes.ours, ours.genes), (genes.theirs, theirs.genes))
        ]
        return Rows(0, *both)
    if path.startswith(OUTPUTS):
        return by_name(ours.genes, theirs.genes, -1)
    name = path.removeprefix("covariates/")
    if name in ("perturbation", "cell_type", "batch", "dose"):
        return by_name(getattr(ours, name), getattr(theirs, name), 0)
    if name.startswith("map_"):
        role = name.removeprefix("map_").split("/")[0]
        same = ours.tables[role] == theirs.tables[role]
        return None if same else by_name((), (), 0)
    if name == "mix/linear/kernel":
        parts = by_name(ours.parts, theirs.parts, 0)
        width = np.arange(ours.width)
        blocks = [(rows[:, None] * ours.width + width).ravel() for rows in (parts.ours, parts.theirs)]
        return Rows(0, *blocks)
    return None


def is_gene_layer(path: str) -> bool:
    """Whether an array belongs to the input or the output layer."""
    return path.startswith((*INPUTS, *OUTPUTS))


def is_frozen(path: str) -> bool:
    """Whether an array is a table of vectors, which the run's own files tell."""
    return path.rsplit("/", 1)[-1].startswith(FROZEN)

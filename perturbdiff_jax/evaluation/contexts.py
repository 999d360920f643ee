"""The cells of an evaluation, arranged: one Context per cell type, its control and real cells by batch.

Scoring happens once per cell type (cell-eval's unit): the cells of all evaluated batches of a cell type are
pooled, the controls too. Baselines work one level lower, per (cell type, batch), because a training shift is
added to the control cells of the very context. Cells are log1p-normalised float32 CSR matrices.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import scipy.sparse as sp

from perturbdiff_jax.evaluation.populations import Population, join, stack
from perturbdiff_jax.evaluation.populations import as_cells as as_cells

NO_BATCH = "all"  # the batch of cells when nobody names a batch column (as in a store)

# What a model says about one context: cells per (batch, perturbation), None where it can say nothing.
Prediction = Mapping[tuple[str, str], Population | None]


@dataclasses.dataclass(frozen=True)
class Context:
    """Real cells of one cell type: `control` per batch, `real` per (batch, perturbation); G genes."""

    cell_type: str
    genes: tuple[str, ...]
    control: Mapping[str, sp.csr_matrix]
    real: Mapping[tuple[str, str], sp.csr_matrix]

    @property
    def perturbations(self) -> list[str]:
        """Perturbations that are scored here, sorted."""
        return sorted({perturbation for _, perturbation in self.real})

    @property
    def values(self) -> int:
        """Cells x genes of the context, controls included: the size of its scoring."""
        cells = sum(part.shape[0] for part in (*self.control.values(), *self.real.values()))
        return cells * len(self.genes)

    def pooled_control(self) -> sp.csr_matrix:
        """Control cells of all evaluated batches [n, G]: the control of both sides, whatever the model."""
        return stack(self.control[batch] for batch in sorted(self.control))

    def pooled_real(self) -> dict[str, sp.csr_matrix]:
        """Real cells [n, G] of each perturbation over all evaluated batches."""
        return pool(self.real)


def pool(prediction: Prediction) -> dict[str, Population | None]:
    """Cells per perturbation over batches; None when a part is missing (half a condition is biased)."""
    parts: dict[str, list] = {}
    for batch, perturbation in sorted(prediction):
        parts.setdefault(perturbation, []).append(prediction[batch, perturbation])
    return {
        name: None if any(part is None for part in cells) else join(cells) for name, cells in parts.items()
    }


def together(name: str, contexts: Mapping[str, Context]) -> Context:
    """One context `name` of all the cells of several (by cell type; at least one), their batches kept apart.

    Its batches are pairs (cell type, batch).
    """
    control, real = {}, {}
    for cell_type, context in contexts.items():
        control |= {(cell_type, batch): cells for batch, cells in context.control.items()}
        real |= {((cell_type, batch), p): cells for (batch, p), cells in context.real.items()}
    return Context(name, next(iter(contexts.values())).genes, control, real)


def chosen_rows(cells: sp.csr_matrix, count: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of `count` cells drawn with `rng`: without replacement when there are enough, else with."""
    return rng.choice(cells.shape[0], size=count, replace=cells.shape[0] < count)


def resample(cells: sp.csr_matrix, count: int, rng: np.random.Generator) -> sp.csr_matrix:
    """The cells of `chosen_rows`."""
    return cells[chosen_rows(cells, count, rng)]


def halves(context: Context, rng: np.random.Generator) -> tuple[Context, Prediction]:
    """The ceiling's context and prediction: real cells of each group split at random into the two.

    Controls stay whole and shared, as for every model. A group of one cell cannot be split and is left out.
    The truth is half the cells: significant genes, MSE and energy are not on the other rows' sample size.
    """
    truth, prediction = {}, {}
    for key in sorted(context.real):
        cells = context.real[key]
        half = cells.shape[0] // 2
        if half < 1:
            continue
        rows = rng.permutation(cells.shape[0])
        truth[key], prediction[key] = cells[np.sort(rows[half:])], cells[np.sort(rows[:half])]
    return dataclasses.replace(context, real=truth), prediction

"""Predicted, real and control cells in one plane, for the report's picture.

The two principal components are fitted on real and control cells only: a prediction cannot turn the plane to
its advantage. Cells are subsampled, seeded; the mean of the fitted cells is taken off all.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.sparse.linalg import svds

from perturbdiff_jax.evaluation.contexts import Context
from perturbdiff_jax.evaluation.stages import stage

PER_GROUP = 100  # cells of a kind in a (cell type, perturbation), at most
MOST_CELLS = 6_000  # cells in all
PCA_COLUMNS = ("cell_type", "perturbation", "kind", "pc1", "pc2")


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Cells [n, G] (float64) of one `kind` ("control", "real", "predicted") of a condition that are drawn."""

    cell_type: str
    perturbation: str
    kind: str
    cells: np.ndarray

    def placed(self, **coordinates: np.ndarray) -> pd.DataFrame:
        """One row per cell: cell_type, perturbation, kind and the coordinates [n]."""
        names = {name: getattr(self, name) for name in ("cell_type", "perturbation", "kind")}
        return pd.DataFrame({**names, **coordinates})


def sample(
    contexts: Sequence[Context],
    predicted: Mapping[str, Mapping[str, sp.csr_matrix]],
    label: str,
    rng: np.random.Generator,
) -> list[Drawn]:
    """A subsample of the cells, `label` for the controls; `predicted[cell type][perturbation]` are cells [n, G]."""
    parts = []
    for context in contexts:
        parts.append((context.cell_type, label, "control", context.pooled_control()))
        real = context.pooled_real()
        for name in sorted(real):
            parts.append((context.cell_type, name, "real", real[name]))
            parts.append((context.cell_type, name, "predicted", predicted[context.cell_type][name]))
    most = max(2, min(PER_GROUP, MOST_CELLS // len(parts)))
    drawn = []
    for *names, cells in parts:
        rows = rng.permutation(cells.shape[0])[:most]
        drawn.append(Drawn(*names, cells[np.sort(rows)].toarray().astype(np.float64)))
    return drawn


def principal_axes(cells: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(mean [G], axes [count, G]) of cells [n, G]; axes by falling variance, largest loading positive."""
    mean = cells.mean(axis=0)
    centred = cells - mean
    if min(centred.shape) <= count + 1:
        axes = np.linalg.svd(centred, full_matrices=False)[2][:count]
    else:
        _, size, axes = svds(centred, k=count, v0=np.ones(min(centred.shape)))
        axes = axes[np.argsort(-size)]
    if axes.shape[0] < count:
        axes = np.vstack([axes, np.zeros((count - axes.shape[0], axes.shape[1]))])
    signs = np.sign(axes[np.arange(count), np.argmax(np.abs(axes), axis=1)])
    return mean, axes * np.where(signs == 0, 1.0, signs)[:, None]


@stage("plane of cells")
def project(drawn: Sequence[Drawn]) -> pd.DataFrame:
    """PCA_COLUMNS of the cells."""
    fitted = np.vstack([part.cells for part in drawn if part.kind != "predicted"])
    mean, axes = principal_axes(fitted, 2)
    planes = [(part, (part.cells - mean) @ axes.T) for part in drawn]
    frames = [part.placed(pc1=plane[:, 0], pc2=plane[:, 1]) for part, plane in planes]
    return pd.concat(frames, ignore_index=True)

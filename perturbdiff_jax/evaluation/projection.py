"""Predicted, real and control cells in one plane, for the report's picture.

The two principal components are fitted on real and control cells only: a prediction cannot turn the plane to
its advantage. Cells are subsampled, seeded; the mean of the fitted cells is taken off all.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.sparse.linalg import svds

from perturbdiff_jax.evaluation.contexts import Context

PER_GROUP = 100  # cells of a kind in a (cell type, perturbation), at most
MOST_CELLS = 6_000  # cells in all
PCA_COLUMNS = ("cell_type", "perturbation", "kind", "pc1", "pc2")


def principal_plane(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean [G], axes [2, G]) of cells [n, G]; axes by falling variance, largest loading positive."""
    mean = cells.mean(axis=0)
    centred = cells - mean
    if min(centred.shape) <= 3:
        axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    else:
        _, size, axes = svds(centred, k=2, v0=np.ones(min(centred.shape)))
        axes = axes[np.argsort(-size)]
    if axes.shape[0] < 2:
        axes = np.vstack([axes, np.zeros((2 - axes.shape[0], axes.shape[1]))])
    signs = np.sign(axes[np.arange(2), np.argmax(np.abs(axes), axis=1)])
    return mean, axes * np.where(signs == 0, 1.0, signs)[:, None]


def project(
    contexts: Sequence[Context],
    predicted: Mapping[str, Mapping[str, sp.csr_matrix]],
    label: str,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """PCA_COLUMNS of a subsample of the cells; `predicted[cell type][perturbation]` are cells [n, G]."""
    parts = []
    for context in contexts:
        parts.append((context.cell_type, label, "control", context.pooled_control()))
        real = context.pooled_real()
        for name in sorted(real):
            parts.append((context.cell_type, name, "real", real[name]))
            parts.append((context.cell_type, name, "predicted", predicted[context.cell_type][name]))
    most = max(2, min(PER_GROUP, MOST_CELLS // len(parts)))
    sampled = []
    for *_, cells in parts:
        rows = rng.permutation(cells.shape[0])[:most]
        sampled.append(cells[np.sort(rows)].toarray().astype(np.float64))
    mean, axes = principal_plane(np.vstack([x for x, part in zip(sampled, parts) if part[2] != "predicted"]))
    frames = []
    for x, (cell_type, name, kind, _) in zip(sampled, parts):
        plane = (x - mean) @ axes.T
        frames.append(
            pd.DataFrame(
                {
                    "cell_type": cell_type,
                    "perturbation": name,
                    "kind": kind,
                    "pc1": plane[:, 0],
                    "pc2": plane[:, 1],
                }
            )
        )
    return pd.concat(frames, ignore_index=True)

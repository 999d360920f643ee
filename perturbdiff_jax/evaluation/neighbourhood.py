"""Predicted, real and control cells in one UMAP, for the report's second picture of cells.

It is fitted on all of them together. A map fitted on real cells alone can only place a predicted cell among real ones,
so that a prediction which resembles nothing real would look good; fitted together, such cells lie apart. The price is
that predicted cells shape the map, which the page says. umap-learn comes with the extra `[eval]`.
"""

import importlib.util
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd

from perturbdiff_jax.evaluation.projection import Drawn, principal_axes
from perturbdiff_jax.evaluation.stages import stage

UMAP_COLUMNS = ("cell_type", "perturbation", "kind", "umap1", "umap2")
LEAST = 500  # cells; a map of fewer shows the start of the optimisation more than the cells
MOST = 2_000  # cells; seconds on one core
COMPONENTS = 30  # principal components that neighbours are looked for in
NEIGHBOURS = 15


def installed() -> bool:
    """Whether umap-learn is installed."""
    return importlib.util.find_spec("umap") is not None


def why_not(drawn: Sequence[Drawn]) -> str | None:
    """The sentence that says why there is no UMAP of these cells; None when there can be one."""
    if not installed():
        return (
            "UMAP is not drawn: umap-learn is not installed. Install the extra `perturbdiff_jax[eval]` and run "
            "`perturbdiff evaluate` again."
        )
    cells = sum(len(part.cells) for part in drawn)
    if cells < LEAST:
        return (
            f"UMAP is not drawn: of {cells} cells it would show little but chance; it takes {LEAST} or more."
        )
    return None


@stage("umap")
def embed(drawn: Sequence[Drawn], seed: int) -> pd.DataFrame:
    """UMAP_COLUMNS of at most MOST of the cells, from every part the same share; the same numbers for a seed.

    Needs umap-learn and at least LEAST cells.
    """
    most = max(2, MOST // len(drawn))
    drawn = [Drawn(p.cell_type, p.perturbation, p.kind, p.cells[:most]) for p in drawn]
    cells = np.vstack([part.cells for part in drawn])
    mean, axes = principal_axes(cells, min(COMPONENTS, cells.shape[1]))
    plane = _layout((cells - mean) @ axes.T, seed)
    stops = np.cumsum([len(part.cells) for part in drawn])[:-1]
    frames = [part.placed(umap1=p[:, 0], umap2=p[:, 1]) for part, p in zip(drawn, np.split(plane, stops))]
    return pd.concat(frames, ignore_index=True)


def _layout(components: np.ndarray, seed: int) -> np.ndarray:
    """[n, 2] of components [n, K]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of optional backends, and that a seed means one thread
        import umap

        # Exact neighbours and a start at the principal plane: less to compile, and no chance but the seed's.
        found = umap.UMAP(
            n_neighbors=NEIGHBOURS,
            init=_start(components),
            precomputed_knn=(*_neighbours(components), None),
            random_state=seed,
            n_jobs=1,
        )
        return found.fit_transform(components.astype(np.float32))


def _start(components: np.ndarray) -> np.ndarray:
    plane = components[:, :2]
    return (10.0 * plane / max(np.abs(plane).max(), 1e-12)).astype(np.float32)


def _neighbours(components: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(places, distances) [n, NEIGHBOURS] of the nearest cells, each cell itself first."""
    squares = np.sum(components**2, axis=1)
    distances = squares[:, None] + squares[None, :] - 2.0 * components @ components.T
    np.fill_diagonal(distances, -1.0)
    places = np.argsort(distances, axis=1, kind="stable")[:, :NEIGHBOURS]
    nearest = np.sqrt(np.maximum(np.take_along_axis(distances, places, axis=1), 0.0))
    return places.astype(np.int32), nearest.astype(np.float32)

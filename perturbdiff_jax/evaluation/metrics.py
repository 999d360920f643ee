"""Metrics between predicted and real cells that need no cell-eval; names and directions of all metrics.

Owns: R2, half energy distance, and Pearson delta, MSE, MAE and discrimination scores by the definitions of
cell-eval 0.8.2, so that an evaluation without the `[eval]` extra still says something. Pure numpy: it must
not know files, AnnData or models. Expression is log1p-normalised everywhere.
"""

from collections.abc import Iterable

import numpy as np
import scipy.sparse as sp

from perturbdiff_jax.evaluation.populations import Copies

DE_METRICS = (
    "overlap_at_N",
    "precision_at_N",
    "de_spearman_sig",
    "de_direction_match",
    "de_spearman_lfc_sig",
    "pr_auc",
    "roc_auc",
)
DISCRIMINATION = {
    "discrimination_score_l1": "l1",
    "discrimination_score_l2": "l2",
    "discrimination_score_cosine": "cosine",
}
MEAN_METRICS = ("pearson_delta", "mse", "mae", *DISCRIMINATION)
CELL_METRICS = ("r2", "energy")
COUNTS = ("n_sig_real", "n_sig_pred")
METRICS = (*DE_METRICS, *MEAN_METRICS, *CELL_METRICS, *COUNTS)

LOWER_IS_BETTER = frozenset({"mse", "mae", "energy"})
# One number for all perturbations of a cell type: its rows are copies, not a sample.
PER_CONTEXT = frozenset({"de_spearman_sig"})

ENERGY_DIVISOR = 10.0  # the model's unit: log1p / 10
SMALLEST_SQUARE = 1e-8  # |d| = sqrt(max(|d|^2, 1e-8)), the released loss
_CHUNK = 2048  # cells per block of the distance matrix


def mean_of(cells: sp.csr_matrix | Copies | np.ndarray) -> np.ndarray:
    """Mean cell [G] (float64) of cells [n, G], added up in float64."""
    if isinstance(cells, Copies):
        return (cells.counts @ cells.points.astype(np.float64)) / cells.shape[0]
    if sp.issparse(cells):  # its own mean adds float32 numbers in float32
        return (np.ones(cells.shape[0]) @ cells) / cells.shape[0]
    return cells.mean(axis=0, dtype=np.float64)


def r2(predicted: np.ndarray, real: np.ndarray) -> float:
    """Coefficient of determination of the real mean cell [G] by the predicted one, over genes.

    1 - sum((real - predicted)^2) / sum((real - mean(real))^2); NaN when the real mean is constant.
    """
    residual = np.sum((real - predicted) ** 2)
    total = np.sum((real - real.mean()) ** 2)
    return float(1.0 - residual / total) if total > 0 else float("nan")


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson correlation of two vectors in float64; NaN when one of them is constant."""
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt(np.sum(x * x) * np.sum(y * y))
    # Far below float32 resolution a "variation" is only rounding.
    return float(np.sum(x * y) / scale) if scale > 1e-13 else float("nan")


def discrimination(
    predicted: np.ndarray, real: np.ndarray, names: list[str], genes: list[str], metric: str
) -> np.ndarray:
    """1 - rank / P of the own real effect among all P real effects by distance from the prediction, [P].

    Effects [P, G] are mean minus control mean. The gene called like the perturbation is left out, as in
    cell-eval: the knocked-out gene itself would give the answer away. `metric`: l1, l2 or cosine.
    """
    genes = np.asarray(genes)
    scores = np.full(len(names), np.nan)
    for i, name in enumerate(names):
        keep = genes != name
        x, y = predicted[i, keep], real[:, keep]
        if not np.all(np.isfinite(x)):
            continue
        if metric == "l1":
            distance = np.abs(y - x).sum(axis=1)
        elif metric == "l2":
            distance = np.sqrt(np.sum((y - x) ** 2, axis=1))
        elif metric == "cosine":
            norm = np.linalg.norm(y, axis=1) * np.linalg.norm(x)
            distance = 1.0 - np.divide(y @ x, norm, out=np.zeros(len(y)), where=norm > 0)
        else:
            raise ValueError(f"metric is {metric!r}; allowed: l1, l2, cosine")
        rank = int(np.flatnonzero(np.argsort(distance) == i)[0])
        scores[i] = 1.0 - rank / len(names)
    return scores


def mean_distance(x: sp.csr_matrix | Copies | np.ndarray, y: sp.csr_matrix | Copies | np.ndarray) -> float:
    """Mean Euclidean distance between all pairs of cells of x [n, G] and y [m, G], both divided by 10.

    Squared distances by the Gram expansion in float64 (worst error about 1e-7 in a distance, where two cells
    coincide), in blocks of 2,048 cells, so memory stays at a few blocks whatever n and m are. Of x and x itself
    only half of the pairs are looked at, of copies only one.
    """
    if isinstance(y, Copies) and not isinstance(x, Copies):
        x, y = y, x
    total, alike, few = 0.0, x is y, isinstance(x, Copies)
    (x, copies), (y, others) = _counted(x), _counted(y)
    for i in range(0, x.shape[0], _CHUNK):
        left = _dense(x[i : i + _CHUNK])
        left_square = np.einsum("ig,ig->i", left, left)
        for j in range(i if alike else 0, y.shape[0], _CHUNK):
            right = left if alike and j == i else (_scaled if few else _dense)(y[j : j + _CHUNK])
            square = left_square[:, None] + _squares(right)[None, :]
            square -= 2.0 * ((right @ left.T).T if few else left @ right.T)
            np.maximum(square, SMALLEST_SQUARE, out=square)
            np.sqrt(square, out=square)
            part = copies[i : i + _CHUNK] @ square @ others[j : j + _CHUNK]
            total += float(part) * (2 if alike and j > i else 1)
    return total / (copies.sum() * others.sum())


def _counted(cells: sp.csr_matrix | Copies | np.ndarray) -> tuple[sp.csr_matrix | np.ndarray, np.ndarray]:
    """(Cells [k, G], how often each is there [k], float64)."""
    if isinstance(cells, Copies):
        return cells.points, cells.counts.astype(np.float64)
    return cells, np.ones(cells.shape[0])


def _scaled(cells: sp.csr_matrix | np.ndarray) -> sp.csr_matrix | np.ndarray:
    if not sp.issparse(cells):
        return cells.astype(np.float64) / ENERGY_DIVISOR
    data = cells.data.astype(np.float64) / ENERGY_DIVISOR
    return sp.csr_matrix((data, cells.indices, cells.indptr), shape=cells.shape)


def _dense(cells: sp.csr_matrix | np.ndarray) -> np.ndarray:
    scaled = _scaled(cells)
    return scaled.toarray() if sp.issparse(scaled) else scaled


def _squares(cells: sp.csr_matrix | np.ndarray) -> np.ndarray:
    """Squared lengths of cells [m, G]."""
    if sp.issparse(cells):
        return np.asarray(cells.multiply(cells).sum(axis=1)).ravel()
    return np.einsum("jg,jg->j", cells, cells)


def energy(
    predicted: sp.csr_matrix | Copies | np.ndarray,
    real: sp.csr_matrix | np.ndarray,
    real_spread: float | None = None,
) -> float:
    """Half energy distance E|x-y| - 1/2 E|x-x'| - 1/2 E|y-y'| of cells [n, G] and [m, G] on log1p / 10.

    V-statistic: the diagonal counts, with |d| >= 1e-4. `real_spread` is E|y-y'| = mean_distance(real, real)
    when it is known already.
    """
    if real_spread is None:
        real_spread = mean_distance(real, real)
    return mean_distance(predicted, real) - 0.5 * mean_distance(predicted, predicted) - 0.5 * real_spread


def mean_metrics(
    predicted: np.ndarray, real: np.ndarray, control: np.ndarray, names: Iterable[str], genes: Iterable[str]
) -> dict[str, np.ndarray]:
    """Pearson delta, MSE, MAE and discrimination scores, each [P], from mean cells as in cell-eval.

    predicted, real: [P, G] mean cells (a row of NaN in predicted gives NaN); control: [G] mean of the real
    control cells, the same for both sides. MSE and MAE compare the means, not the effects.
    """
    names, genes = list(names), list(genes)
    difference = predicted - real
    values = {
        "pearson_delta": np.array([pearson(p - control, r - control) for p, r in zip(predicted, real)]),
        "mse": np.mean(difference**2, axis=1),
        "mae": np.mean(np.abs(difference), axis=1),
    }
    for column, metric in DISCRIMINATION.items():
        values[column] = discrimination(predicted - control, real - control, names, genes, metric)
    return values

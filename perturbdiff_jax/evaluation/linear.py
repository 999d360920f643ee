"""The rival "linear": a bilinear model from a gene embedding and a perturbation embedding, both of training.

Y ~ G W P^T + b with Y [G, N] the training shifts (one column per perturbation, and the control's zeros), b their
mean, G [G, k] the genes' scores on the first k principal components of the training pseudobulks, P [N, l] the
perturbations' embedding and W [k, l] the ridge solution (G'G + c)^-1 G' (Y - b) P (P'P + c)^-1. After
Ahlmann-Eltze, Huber and Anders, Nature Methods 2025 ("Deep-learning-based gene perturbation effect prediction does
not yet outperform simple linear baselines"), with their k = 10 and c = 0.1. It must not know contexts or files.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

COMPONENTS = 10
PENALTY = 0.1
GENES, ONE_HOT = "rows of the gene embedding", "one-hot"


@dataclasses.dataclass(frozen=True)
class Linear:
    """Shifts G W P^T + b: `offset` b [G], `weights` G W [G, l], `embedding` P by perturbation, each [l] (float64)."""

    offset: np.ndarray
    weights: np.ndarray
    embedding: Mapping[str, np.ndarray]
    kind: str  # GENES or ONE_HOT

    @classmethod
    def fit(
        cls,
        pseudobulks: np.ndarray,
        shifts: Mapping[str, np.ndarray],
        genes: tuple[str, ...],
        *,
        components: int = COMPONENTS,
        penalty: float = PENALTY,
    ) -> "Linear | None":
        """The model of training pseudobulks [M, G] and mean shifts [G] by perturbation; None without any shift.

        The perturbations' embedding are the rows of G of the genes that they are called after, when at least
        half of them are called after a gene: the others are left out then, and a gene that was never perturbed
        in training can be predicted. Else it is one-hot, for the trained perturbations only. The control stands
        in the fit as a perturbation whose shift and embedding are zero.
        """
        if not shifts:
            return None
        scores = gene_scores(pseudobulks, components)
        named = [name for name in shifts if name in set(genes)]
        if 2 * len(named) >= len(shifts):
            kind, embedding = GENES, dict(zip(genes, scores))
            trained = named
        else:
            kind, trained = ONE_HOT, list(shifts)
            embedding = dict(zip(trained, np.eye(len(trained))))
        columns = [embedding[name] for name in trained]
        p = np.stack([*columns, np.zeros_like(columns[0])])
        y = np.stack([*(shifts[name] for name in trained), np.zeros(len(genes))], axis=1)
        offset = y.mean(axis=1)
        left = np.linalg.solve(_penalised(scores, penalty), scores.T @ (y - offset[:, None]))
        inner = np.linalg.solve(_penalised(p, penalty), (left @ p).T).T
        return cls(offset, scores @ inner, embedding, kind)

    def shift(self, perturbation: str) -> np.ndarray | None:
        """Predicted shift [G] from the control cells, or None for a name without an embedding."""
        place = self.embedding.get(perturbation)
        return None if place is None else self.offset + self.weights @ place


def gene_scores(pseudobulks: np.ndarray, components: int) -> np.ndarray:
    """Scores [G, k] of the genes on the first principal components of pseudobulks [M, G], k <= `components`.

    Genes are the observations and pseudobulks the variables, each centred. Directions of no variance are left
    out, so k can be smaller; a component's sign is arbitrary, and W takes it up.
    """
    table = np.asarray(pseudobulks, dtype=np.float64).T
    left, size, _ = np.linalg.svd(table - table.mean(axis=0), full_matrices=False)
    kept = int(np.sum(size[:components] > 1e-9 * max(size[0], 1e-300)))
    return left[:, :kept] * size[:kept]


def _penalised(x: np.ndarray, penalty: float) -> np.ndarray:
    return x.T @ x + penalty * np.eye(x.shape[1])

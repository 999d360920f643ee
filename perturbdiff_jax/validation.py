"""Sampled validation during training: predicts held-out conditions and compares populations, not losses.

Cheap metrics of ours, means over conditions: R2 of the mean expression, Pearson correlation of the mean change
against control, energy distance. They choose the best checkpoint.
"""

import numpy as np
import scipy.sparse as sp

from perturbdiff_jax.data.storage.joined import JoinedStores
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.evaluation import metrics
from perturbdiff_jax.prediction.controls import from_store
from perturbdiff_jax.prediction.design import split_design
from perturbdiff_jax.prediction.population import Request, Walker


class SampledValidation:
    """Holds real cells of conditions and what is asked of the network; calling it with weights samples and scores.

    Attributes: split, what the conditions are, for people.
    """

    def __init__(
        self,
        walker: Walker,
        split: str,
        conditions: list[tuple[Request, sp.csr_matrix, np.ndarray]],
        *,
        change: bool,
    ):
        """Args:
        walker: samples.
        split: what the conditions are.
        conditions: what is asked for, the real cells (CSR [n, G], log1p) and the genes that they measure (bool [G]);
            agreement on zeros that nobody counted would raise every score.
        change: whether a change against the control cells is predicted, and scored.
        """
        self.split, self._walker, self._conditions, self._change = split, walker, conditions, change

    def __len__(self) -> int:
        return len(self._conditions)

    def __call__(self, params: dict) -> dict[str, float]:
        """`validation/r2`, `validation/energy` and, of a change, `validation/pearson_delta`: means over conditions."""
        scores: dict[str, list[float]] = {"r2": [], "energy": []}
        if self._change:
            scores["pearson_delta"] = []
        walked = self._walker(params, [request for request, *_ in self._conditions])
        for (request, cells, _), (_, real, genes) in zip(walked, self._conditions):
            cells, real = cells[:, genes], real[:, genes]
            predicted, truth = metrics.mean_of(cells), metrics.mean_of(real)
            scores["r2"].append(metrics.r2(predicted, truth))
            scores["energy"].append(metrics.energy(cells, real))
            if self._change:
                base = metrics.mean_of(request.controls[:, genes])
                scores["pearson_delta"].append(metrics.pearson(predicted - base, truth - base))
        return {f"validation/{name}": float(np.nanmean(values)) for name, values in scores.items()}


def of_split(store: Store, walker: Walker, *, split: str, conditions: int, cells: int) -> SampledValidation:
    """Conditions of a split: at most so many, spread over it, and at most so many sampled `cells` of each."""
    design = split_design(store, split, most=conditions, most_cells=cells)
    controls = from_store(store, named=False)
    groups, found, genes = store.groups, [], store.measured.any(axis=0)
    for row in design.itertuples(index=False):
        start = int(groups.start[row.group])
        serving = groups.control[row.group]
        context = (store.cell_types[groups.cell_type[serving]], store.batches[groups.batch[serving]])
        codes = tuple(int(getattr(groups, c)[row.group]) for c in ("perturbation", "cell_type", "batch"))
        names = (row.perturbation, row.cell_type, row.batch)
        request = Request(*names, codes, int(row.cells), controls.cells[context])
        # All real cells of the condition, also when fewer are sampled: the steadier reference.
        found.append((request, store.read(start, start + int(groups.size[row.group])), genes))
    return SampledValidation(walker, split, found, change=True)


def of_contexts(store: JoinedStores, walker: Walker, *, conditions: int, cells: int) -> SampledValidation:
    """Contexts (cell type, batch) of all sources: what marginal pretraining learns, compared with their control cells.

    Each source has its share of the `conditions`, at least one; they are spread over its contexts.
    """
    groups, found = store.groups, []
    control = np.flatnonzero(groups.is_control)
    owners = np.array([store.source_of(group) for group in control])
    each = max(1, conditions // len(store.stores))
    for source, part in enumerate(store.stores):
        genes = part.measured.any(axis=0)
        mine = control[owners == source]
        if len(mine) > each:
            mine = mine[np.round(np.linspace(0, len(mine) - 1, each)).astype(int)]
        for group in mine.tolist():
            start, size = int(groups.start[group]), int(groups.size[group])
            # Steady enough, and a cell type of RNA-seq may have a hundred thousand.
            real = store.read(start, start + min(size, 8 * cells))
            codes = tuple(int(getattr(groups, c)[group]) for c in ("perturbation", "cell_type", "batch"))
            names = (store.control, store.cell_types[codes[1]], store.batches[codes[2]])
            request = Request(*names, codes, min(size, cells), real, source=source)
            found.append((request, real, genes))
    return SampledValidation(walker, "contexts", found, change=False)

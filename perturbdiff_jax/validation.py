"""Sampled validation during training: predicts held-out conditions and compares populations, not losses.

Cheap metrics of ours, means over conditions: R2 of the mean expression, Pearson correlation of the mean change
against control, energy distance. They choose the best checkpoint.
"""

import numpy as np

from perturbdiff_jax.data.store import Store
from perturbdiff_jax.evaluation import metrics
from perturbdiff_jax.prediction.controls import from_store
from perturbdiff_jax.prediction.design import split_design
from perturbdiff_jax.prediction.population import Request, Walker


class SampledValidation:
    """Holds the real cells of the validation conditions; calling it with weights samples and scores."""

    def __init__(self, store: Store, walker: Walker, *, split: str, conditions: int, cells: int):
        design = split_design(store, split, most=conditions, most_cells=cells)
        controls = from_store(store, named=False)
        groups = store.groups
        self.split = split
        self._walker = walker
        self._requests, self._real = [], []
        for row in design.itertuples(index=False):
            start = int(groups.start[row.group])
            serving = groups.control[row.group]
            context = (store.cell_types[groups.cell_type[serving]], store.batches[groups.batch[serving]])
            codes = tuple(int(getattr(groups, c)[row.group]) for c in ("perturbation", "cell_type", "batch"))
            self._requests.append(
                Request(
                    row.perturbation, row.cell_type, row.batch, codes, int(row.cells), controls.cells[context]
                )
            )
            # All real cells of the condition, also when fewer are sampled: the steadier reference.
            self._real.append(store.read(start, start + int(groups.size[row.group])))

    def __len__(self) -> int:
        return len(self._requests)

    def __call__(self, params: dict) -> dict[str, float]:
        """`validation/r2`, `validation/pearson_delta`, `validation/energy`, means over conditions."""
        scores = {"r2": [], "pearson_delta": [], "energy": []}
        for (request, cells, _), real in zip(self._walker(params, self._requests), self._real):
            predicted, truth = metrics.mean_of(cells), metrics.mean_of(real)
            base = metrics.mean_of(request.controls)
            scores["r2"].append(metrics.r2(predicted, truth))
            scores["pearson_delta"].append(metrics.pearson(predicted - base, truth - base))
            scores["energy"].append(metrics.energy(cells, real))
        return {f"validation/{name}": float(np.nanmean(values)) for name, values in scores.items()}

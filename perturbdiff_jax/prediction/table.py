"""What stands beside predicted cells: their obs, stretch by stretch, and the facts in uns.

First come the predicted cells in the order of their requests, then the real control cells that they were matched with.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.utils import make_index_unique

from perturbdiff_jax.bundle import Bundle
from perturbdiff_jax.diffusion.samplers import SamplerOptions
from perturbdiff_jax.prediction.controls import ControlCells
from perturbdiff_jax.prediction.design import CONDITION
from perturbdiff_jax.prediction.model_error import ModelError
from perturbdiff_jax.prediction.set_plan import SetPlan

NAME = "predicted{:07d}"
COVARIATE = "covariate_batch"  # obs column of draws that were told to be of another batch


class PredictionTable:
    """obs of all cells, known in runs of equal rows (a run for each request and each context of control cells)."""

    def __init__(
        self,
        plan: SetPlan,
        contexts: dict[tuple[str, str], tuple[str, str]],
        controls: ControlCells,
        bundle: Bundle,
    ):
        """`contexts`: (cell type, batch) of a request -> the context whose control cells serve it."""
        self._controls = controls
        self._used = _used_rows(plan, contexts, controls)
        runs = [((*request.names, request.covariate_batch), request.cells) for request in plan.requests]
        runs += [((bundle.control, *context, 0, ""), len(rows)) for context, rows in self._used.items()]
        self.predicted = plan.cells
        self._ends = np.cumsum([count for _, count in runs])
        self.cells = int(self._ends[-1])
        trained = {name for name, _, _ in bundle.trained} | {bundle.control}
        table = pd.DataFrame([names for names, _ in runs], columns=[*CONDITION, "draw", COVARIATE])
        table["seen_perturbation"] = table["perturbation"].isin(trained)
        if (table[COVARIATE] == "").all():
            del table[COVARIATE]
        else:
            table[COVARIATE] = (
                table[COVARIATE].where(table[COVARIATE] != "", table["batch"]).astype("category")
            )
        table["batch"] = [controls.spelling.get(name, name) for name in table["batch"]]
        renamed = {role: bundle.keys[role] for role in CONDITION if bundle.keys.get(role)}
        table = table.drop(columns=[role for role in CONDITION if role not in renamed])
        table = table.rename(columns=renamed)
        for column in renamed.values():
            table[column] = table[column].astype("category")
        self._runs = table
        self._names = self._control_names()

    @property
    def columns(self) -> pd.DataFrame:
        """No rows, but the columns with their types and categories."""
        return self._runs.iloc[:0]

    def stretch(self, start: int, stop: int) -> pd.DataFrame:
        """obs of the cells from `start` to before `stop`, index = their names; categories are those of all cells."""
        stop = min(stop, self.cells)
        rows = self._runs.iloc[np.searchsorted(self._ends, np.arange(start, stop), side="right")]
        names = [NAME.format(place) for place in range(start, min(stop, self.predicted))]
        names += self._names[max(0, start - self.predicted) : max(0, stop - self.predicted)]
        return rows.set_axis(pd.Index(names, dtype=object), axis=0)

    def control_blocks(self, most: int) -> Iterator[sp.csr_matrix]:
        """The control cells that were used, [at most `most`, G] CSR float32 log1p, in the order of their rows here."""
        for context, rows in self._used.items():
            for first in range(0, len(rows), most):
                yield self._controls.cells[context][rows[first : first + most]]

    def _control_names(self) -> list[str]:
        names = [self._controls.names[context][row] for context, rows in self._used.items() for row in rows]
        # As AnnData makes names unique, of which only those of predicted cells that occur twice need be there.
        taken = [name for name in dict.fromkeys(names) if _is_predicted(name, self.predicted)]
        return list(make_index_unique(pd.Index(taken + names, dtype=object)))[len(taken) :]


def _is_predicted(name: str, cells: int) -> bool:
    digits = name.removeprefix(NAME[:9])
    return digits.isdecimal() and int(digits) < cells and NAME.format(int(digits)) == name


def _used_rows(
    plan: SetPlan, contexts: dict[tuple[str, str], tuple[str, str]], controls: ControlCells
) -> dict[tuple[str, str], np.ndarray]:
    """Ascending rows of the control cells that were used, by context; contexts ascend as well."""
    used: dict[tuple[str, str], np.ndarray] = {}
    for request in plan.requests:
        context = contexts[(request.cell_type, request.batch)]
        mask = used.setdefault(context, np.zeros(controls.cells[context].shape[0], bool))
        if not mask.all():
            mask[plan.used_rows(request)] = True
    return {context: np.flatnonzero(used[context]) for context in sorted(used)}


def facts(
    bundle: Bundle,
    checkpoint: str,
    step: int,
    error: ModelError | None,
    *,
    sampler: SamplerOptions,
    seed: int,
) -> dict[str, Any]:
    """What `uns["perturbdiff"]` tells about a prediction."""
    told = {
        "checkpoint": checkpoint,
        "checkpoint_step": step,
        "sampler": dataclasses.asdict(sampler),
        "seed": seed,
        "target_sum": float(bundle.values["target_sum"]),
        "divisor": float(bundle.values["divisor"]),
        "keys": {role: name for role, name in bundle.keys.items() if name},
        "control": bundle.control,
        "versions": bundle.versions,
    }
    data = bundle.settings.get("data", {})
    if data.get("fraction", 1.0) != 1:
        told["training_cells"] = {name: data[name] for name in ("fraction", "fraction_seed")}
    if error is not None:
        told["model_error"] = dataclasses.asdict(error.value)
        told["model_error_learned_on"] = f"{error.conditions} {error.split} conditions, {error.draws} draws"
    if bundle.origin:  # converted weights: the file they come from, and which of its weights
        told["origin"] = {key: bundle.origin[key] for key in ("file", "weights")}
    return told

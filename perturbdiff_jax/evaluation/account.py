"""What an evaluation says of itself in summary.json: keys, rules, cells on both sides, what was left out."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from perturbdiff_jax.evaluation import expression, spread
from perturbdiff_jax.evaluation.contexts import Context
from perturbdiff_jax.evaluation.inputs import Keys
from perturbdiff_jax.evaluation.linear import Linear
from perturbdiff_jax.evaluation.model_rows import ModelRows
from perturbdiff_jax.evaluation.predicted import Predicted
from perturbdiff_jax.evaluation.real_tables import RealTables
from perturbdiff_jax.evaluation.stages import so_far
from perturbdiff_jax.evaluation.summary import undefined
from perturbdiff_jax.evaluation.training_share import TrainingShare


def settings_of(
    predicted: Predicted,
    contexts: Sequence[Context],
    cells: Mapping[str, Mapping],
    found: ModelRows,
    *,
    keys: Keys,
    seed: int,
    is_log1p: bool,
    normalisation: str,
    linear: Linear | None,
    share: TrainingShare | None,
    order: Mapping[str, float],
    error: spread.Error | None,
    tables: RealTables,
    no_umap: str | None,
    seconds: float,
) -> dict[str, Any]:
    """`settings` of summary.json; the first of `cells` is the prediction that the page is about.

    `cells`: {name: {cell type: cells per (batch, perturbation)}}; `order`, `error`: what genes by position correlate,
    what the first model errs; the others as evaluate() has them.
    """
    counts, first = cell_counts(contexts, cells), next(iter(cells))
    return {
        "keys": dataclasses.asdict(keys),
        "seed": seed,
        "de_is_log1p": is_log1p,
        "de_by": expression.maker(),
        "genes": len(predicted.genes),
        "control_rule": "real control cells of the same contexts on both sides, for every model",
        "scored_on": "the conditions and genes that all predictions have",
        "scored_per": "cell type (its batches pooled)",
        "normalisation": normalisation,
        "energy": "half energy distance on log1p / 10, V-statistic",
        "ceiling": "real cells split in two random halves, controls whole; truth is half the cells",
        "linear": None if linear is None else f"perturbations embedded by: {linear.kind}",
        "baselines_trained_on": None if share is None else dataclasses.asdict(share),
        "predictions": {name: {**predicted.account[name], **counts["predictions"][name]} for name in cells},
        **counts["predictions"][first],
        **counts["real"],
        "genes_by_position_correlation": dict(order),
        "conditions_left_out": predicted.left_out,
        "conditions_not_in_real": len(predicted.conditions) - counts["real"]["conditions"],
        "model_error": None if error is None else vars(error),
        "real_de_tables": {"read": tables.read, "computed": tables.computed},
        "no_umap": no_umap,
        "problems": found.problems,
        "undefined_rows": undefined(found.rows),
        "seconds": round(seconds, 1),
        "stages": so_far(),
    }


def cell_counts(contexts: Sequence[Context], cells: Mapping[str, Mapping]) -> dict[str, dict]:
    """Cells on both sides: the rank-sum test's power, and so the DE metrics, depend on them."""
    predictions = {}
    for name, by_type in cells.items():
        predictions[name] = {
            "predicted_cells": sum(part.shape[0] for parts in by_type.values() for part in parts.values()),
            "conditions_with_other_cell_count": sum(
                by_type[context.cell_type][key].shape[0] != part.shape[0]
                for context in contexts
                for key, part in context.real.items()
            ),
        }
    real = {
        "real_cells": sum(part.shape[0] for context in contexts for part in context.real.values()),
        "control_cells": sum(part.shape[0] for context in contexts for part in context.control.values()),
        "conditions": sum(len(context.real) for context in contexts),
    }
    return {"predictions": predictions, "real": real}

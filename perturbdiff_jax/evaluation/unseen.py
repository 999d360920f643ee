"""Perturbations that a model was never trained on, as its predictions tell: from uns["perturbdiff"] to summary.json."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

FIELDS = ("perturbation", "nearest", "distance")


def read_unseen(facts: Mapping[str, Any], scored: Collection[str]) -> dict[str, list]:
    """Parallel lists of FIELDS for those of `scored`, in the order of the file; {} where every one was trained.

    `nearest` is the trained perturbation with the nearest vector, `distance` its cosine distance; "" and None without
    a vector. What another tool has put there is passed over.
    """
    found = facts.get("unseen")
    if not isinstance(found, Mapping) or set(FIELDS) - set(found):
        return {}
    columns = [np.atleast_1d(np.asarray(found[name], dtype=object)).tolist() for name in FIELDS]
    if len({len(column) for column in columns}) > 1:
        return {}
    rows = [(str(name), str(near), _number(far)) for name, near, far in zip(*columns) if str(name) in scored]
    return {name: [row[place] for row in rows] for place, name in enumerate(FIELDS)} if rows else {}


def _number(value: Any) -> float | None:
    try:
        return round(float(value), 6) if math.isfinite(float(value)) else None
    except (TypeError, ValueError):
        return None

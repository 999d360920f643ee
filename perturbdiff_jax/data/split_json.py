"""The two JSON split files: held-out cell types x batches x perturbations, and explicit lists of conditions.

Holdout file:    {"holdout_cell_types": [...], "holdout_batches": [...],
                  "holdout_perturbations": {"validation": [...], "test": [...]}}
Condition file:  {"columns": ["cell_type", "batch", "perturbation"],
                  "validation": [[...], ...], "test": [[...], ...]}
"""

from collections.abc import Callable, Mapping

import numpy as np

from perturbdiff_jax.data.conditions import ROLES, TEST, TRAIN, VALIDATION, Conditions
from perturbdiff_jax.errors import RequestError, shorten, unknown

ABOUT = ("name", "what", "description", "source")
HOLDOUT_KEYS = (
    "holdout_cell_types",
    "holdout_batches",
    "holdout_perturbations",
    "dataset",
    "pert_col",
    "batch_col",
    "cell_type_col",
    "control",
    *ABOUT,
)
CONDITION_KEYS = (
    "columns",
    "validation",
    "test",
    "task",
    "file",
    "perturbation_key",
    "cell_type_key",
    "batch_key",
    "control",
    "total_key",
    "genes",
    *ABOUT,
)


def from_json(conditions: Conditions, content: object, where: str, note: Callable[[str], None]) -> np.ndarray:
    """Split codes int8 [groups] from the parsed file; its shape decides which of the two kinds it is.

    The names of columns and control in the file are remarks: the data's own, given to `prepare`, count.
    """
    if not isinstance(content, dict):
        raise RequestError(f"{where}: a JSON object is needed, not a {type(content).__name__}.")
    listed = "columns" in content
    for key in content:
        if key not in (CONDITION_KEYS if listed else HOLDOUT_KEYS):
            raise unknown("key", key, CONDITION_KEYS if listed else HOLDOUT_KEYS, where)
    return _conditions(conditions, content, where) if listed else _holdout(conditions, content, where, note)


def _names(content: Mapping, key: str, where: str) -> list[str]:
    names = content.get(key, [])
    if not isinstance(names, list) or not all(isinstance(name, str | int | float) for name in names):
        raise RequestError(f"{where}: {key!r} must be a list of names.")
    return [str(name) for name in names]


def _holdout(conditions: Conditions, content: Mapping, where: str, note: Callable[[str], None]) -> np.ndarray:
    """Held out: cell type in its list AND batch in its list AND perturbation listed; an empty list means any.

    With both perturbation lists empty every perturbation of the held-out contexts is test.
    """
    inside = np.ones(len(conditions.perturbation), dtype=bool)
    for role, key in (("cell_type", "holdout_cell_types"), ("batch", "holdout_batches")):
        names = _names(content, key, where)
        if names:
            inside &= conditions.selects(role, names, f"{where}, {key}")
    lists = content.get("holdout_perturbations", {})
    if not isinstance(lists, dict):
        raise RequestError(f"{where}: 'holdout_perturbations' must have the lists 'validation' and 'test'.")
    for key in lists:
        if key not in ("validation", "test"):
            raise unknown("key of holdout_perturbations", key, ("validation", "test"), where)
    named = {key: _names(lists, key, where) for key in ("validation", "test")}
    for key, names in named.items():
        if len(set(names)) < len(names):
            note(f"{where}: {key} lists {len(names)} perturbations, {len(set(names))} of them different.")
    both = sorted(set(named["validation"]) & set(named["test"]))
    if both:
        raise RequestError(
            f"{where}: {len(both)} perturbation(s) in both validation and test: {shorten(both, 5)}."
        )
    if not named["validation"] and not named["test"]:
        if inside.all():
            raise RequestError(f"{where}: holds out nothing: all its lists are empty.")
        note(f"{where}: no perturbations listed, so all of the held-out contexts are test.")
        return np.where(inside, TEST, TRAIN).astype(np.int8)
    codes = np.full(len(inside), TRAIN, dtype=np.int8)
    for key, code in (("validation", VALIDATION), ("test", TEST)):
        hit = conditions.selects("perturbation", named[key], f"{where}, {key}")
        codes[hit & inside] = code
        if named[key] and not (hit & inside).any():
            raise RequestError(
                f"{where}: none of the {key} perturbations has cells in the held-out contexts."
            )
    return codes


def _conditions(conditions: Conditions, content: Mapping, where: str) -> np.ndarray:
    columns = content["columns"]
    known = {role: role for role in ROLES}
    known.update({column: role for role, column in conditions.columns.items()})
    known.update({str(content[f"{role}_key"]): role for role in ROLES if content.get(f"{role}_key")})
    if not isinstance(columns, list) or not columns:
        raise RequestError(f"{where}: 'columns' must list what the rows hold, of {shorten(known)}.")
    for column in columns:
        if column not in known:
            raise unknown("column", column, known, where)
    roles = [known[column] for column in columns]
    if len(set(roles)) != len(roles) or "perturbation" not in roles:
        raise RequestError(
            f"{where}: 'columns' {columns} must name the perturbation column, and no column twice."
        )
    codes = np.full(len(conditions.perturbation), TRAIN, dtype=np.int8)
    for key, code in (("validation", VALIDATION), ("test", TEST)):
        rows = content.get(key, [])
        if not isinstance(rows, list):
            raise RequestError(f"{where}: {key!r} must be a list of rows.")
        for number, row in enumerate(rows):
            place = f"{where}, {key} row {number + 1}"
            if not isinstance(row, list) or len(row) != len(roles):
                raise RequestError(f"{place}: {row!r} does not have the {len(roles)} columns {columns}.")
            hit = np.ones(len(codes), dtype=bool)
            for role, name in zip(roles, row, strict=True):
                hit &= conditions.selects(role, [str(name)], place)
            if not hit.any():
                raise RequestError(f"{place}: no cell has {dict(zip(columns, row, strict=True))}.")
            if (codes[hit] == VALIDATION).any() and code == TEST:
                raise RequestError(f"{place}: {row!r} is in validation too; allowed is one of the two.")
            codes[hit] = code
    return codes

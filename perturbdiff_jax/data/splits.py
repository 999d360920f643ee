"""Which groups train, validate and test: one rule per group (cell type, batch, perturbation), strictly read.

Four sources: a holdout JSON (cell types, batches, perturbations), a JSON with explicit lists of conditions
(split_json.py), a STATE / cell-load TOML (split_toml.py), or a drawn fraction of the perturbations of a
context. Controls are in every split. A name that the data do not have is an error, never ignored.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from perturbdiff_jax.data import split_json, split_toml
from perturbdiff_jax.data.conditions import CONTROL, ROLES, SPLITS, TEST, TRAIN, VALIDATION, Conditions
from perturbdiff_jax.errors import RequestError, shorten, unknown


@dataclasses.dataclass(frozen=True)
class Assignment:
    """`codes` int8 [groups], positions in SPLITS; `info` for the manifest (name, source, sha256); `notes` to
    show."""

    codes: np.ndarray
    info: dict[str, str | None]
    notes: tuple[str, ...] = ()


def assign(
    conditions: Conditions, *, split: str | pathlib.Path | None = None, holdout: Mapping | None = None
) -> Assignment:
    """Gives every group its split from the file `split` (.json or .toml) or the rule `holdout`; neither: all
    train.

    `holdout`: {"fraction": 0.3, "context": {"batch": "B4"}, "validation_fraction": 0.1, "seed": 0}; see
    `hold_out`. Raises RequestError for anything unknown, for a hold-out that holds out nothing and for one
    that leaves no training group; also when a condition would be both trained and tested.
    """
    if split is not None and holdout is not None:
        raise RequestError("a split file and a holdout rule were both given; allowed is one of them.")
    held, notes = np.full(len(conditions.perturbation), TRAIN, dtype=np.int8), []
    info: dict[str, str | None] = {"name": "none", "source": None, "sha256": None}
    if holdout is not None:
        held = hold_out(conditions, **_checked_rule(holdout))
        text = json.dumps(dict(holdout), sort_keys=True)
        info = {"name": "holdout", "source": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    elif split is not None:
        path = pathlib.Path(split)
        readers = {".json": _from_json, ".toml": split_toml.from_toml}
        if path.suffix.lower() not in readers:
            raise RequestError(f"{split}: a split file ends in .json or .toml.")
        if not path.is_file():
            raise RequestError(f"{split}: no such file (--split).")
        content = path.read_bytes()
        held = readers[path.suffix.lower()](conditions, _decode(content, split), str(split), notes.append)
        info = {"name": path.stem, "source": str(split), "sha256": hashlib.sha256(content).hexdigest()}
    control = np.array([name == conditions.control for name in conditions.perturbation], dtype=bool)
    codes = np.where(control, CONTROL, held).astype(np.int8)
    where = str(split) if split is not None else "holdout"
    if info["source"] is not None and not np.isin(codes, (VALIDATION, TEST)).any():
        raise RequestError(f"{where}: holds out nothing: no group of the data is validation or test.")
    if not ((codes == TRAIN).any() or control.all()):
        raise RequestError(
            f"{where}: leaves no group for training; all {int((~control).sum())} are held out."
        )
    check_no_leak(conditions, codes)
    return Assignment(codes, info, tuple(notes))


def check_no_leak(conditions: Conditions, codes: np.ndarray) -> None:
    """Raises RequestError when one (cell type, batch, perturbation) is in more than one split."""
    seen: dict[tuple, int] = {}
    for triple, code in zip(
        zip(conditions.cell_type, conditions.batch, conditions.perturbation, strict=True),
        codes.tolist(),
        strict=True,
    ):
        if seen.setdefault(triple, code) != code:
            raise RequestError(
                f"split leak: condition {triple} is in {SPLITS[seen[triple]]} and {SPLITS[code]}."
            )


def _decode(content: bytes, path: object) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: not a text file in UTF-8.") from error


def _checked_rule(rule: Mapping) -> dict:
    allowed = ("fraction", "context", "validation_fraction", "seed")
    for name in rule:
        if name not in allowed:
            raise unknown("holdout setting", name, allowed)
    if "fraction" not in rule:
        raise RequestError(f"holdout: 'fraction' is missing. Allowed: {shorten(allowed)}.")
    return dict(rule)


def hold_out(
    conditions: Conditions,
    *,
    fraction: float,
    context: Mapping[str, str | Sequence[str]] | None = None,
    validation_fraction: float = 0.0,
    seed: int = 0,
) -> np.ndarray:
    """Draws `fraction` of the perturbations of the matching contexts as test, int8 codes [groups].

    `context` names a batch and/or cell type (a name or a list each); without it every context matches. The
    same perturbations are held out in all matching contexts; `validation_fraction` more of them are
    validation. The draw ranks sha256(seed, name), so it depends on nothing but the names.
    """
    context = dict(context or {})
    for role in context:
        if role not in ROLES[1:]:
            raise unknown("holdout context", role, ROLES[1:])
    for name, value in (("fraction", fraction), ("validation_fraction", validation_fraction)):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value <= 1 or (name == "fraction" and value == 0):
            raise RequestError(
                f"holdout {name} = {value!r}: allowed is a share of the perturbations, 0 to 1."
            )
    inside = np.ones(len(conditions.perturbation), dtype=bool)
    for role, names in context.items():
        names = [names] if isinstance(names, str) else list(names)
        inside &= conditions.selects(role, [str(name) for name in names], "holdout context")
    present = {name for name, hit in zip(conditions.perturbation, inside, strict=True) if hit}
    present.discard(conditions.control)
    if not present:
        raise RequestError(f"holdout: context {context} has no perturbed cells.")
    ranked = sorted(present, key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest())
    tests = max(1, round(fraction * len(ranked)))
    validations = max(1, round(validation_fraction * len(ranked))) if validation_fraction else 0
    if tests + validations > len(ranked):
        raise RequestError(
            f"holdout: fraction {fraction:g} + validation_fraction {validation_fraction:g} ask for "
            f"{tests + validations} of {len(ranked)} perturbations in context {context}."
        )
    place = dict.fromkeys(ranked[:tests], TEST)
    place.update(dict.fromkeys(ranked[tests : tests + validations], VALIDATION))
    return np.array(
        [
            place.get(name, TRAIN) if hit else TRAIN
            for name, hit in zip(conditions.perturbation, inside, strict=True)
        ],
        dtype=np.int8,
    )


def _from_json(conditions: Conditions, text: str, where: str, note: Callable[[str], None]) -> np.ndarray:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise RequestError(f"{where}: not valid JSON ({error}).") from error
    return split_json.from_json(conditions, content, where, note)

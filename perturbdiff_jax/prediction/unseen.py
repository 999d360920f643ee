"""Perturbations that training never saw: told by their vectors (or parts), predicted, and flagged with what is nearest.

A name outside the vocabulary is appended to it for the request: its vector comes from the bundle's embedding files,
the learned part of a combination from its parts. What nothing tells apart stays unknown and is refused.
"""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
import pandas as pd

from perturbdiff_jax.bundle import Bundle, build_model
from perturbdiff_jax.covariate_tables import stored_encoding
from perturbdiff_jax.data.embeddings.labels import Label, read_label
from perturbdiff_jax.data.embeddings.rows import nearest, vector_of
from perturbdiff_jax.errors import RequestError, shorten
from perturbdiff_jax.models.covariates import FROZEN

if TYPE_CHECKING:
    from perturbdiff_jax.prediction.predictor import Predictor


@dataclasses.dataclass(frozen=True)
class Unseen:
    """A perturbation without a training cell: the nearest trained one and its cosine distance, by the frozen table.

    Without a vector there is no distance: `nearest` is "" and `distance` NaN. `parts`: trained learned parts tell it.
    """

    name: str
    nearest: str
    distance: float
    parts: bool

    @property
    def words(self) -> str:
        """For people."""
        if not self.nearest and self.parts:
            return f"{self.name} was never trained: told as the sum of its parts."
        if not self.nearest:
            return (
                f"{self.name} was never trained, and nothing tells it from others (covariates.allow_unknown)."
            )
        return (
            f"{self.name} was never trained: told by its vector, nearest to {self.nearest} "
            f"(cosine distance {self.distance:.3f})."
        )


def extended(model: "Predictor", design: pd.DataFrame) -> "Predictor":
    """The model with the perturbations of a design appended that its vocabulary lacks and that it can be told.

    Raises:
      RequestError: a dose that the learned table does not have; a damaged embedding file.
    """
    asked = design["perturbation"].dropna().astype(str) if "perturbation" in design else ()
    new = [name for name in dict.fromkeys(asked) if name not in set(model.bundle.perturbations)]
    if new and ignores_perturbations(model.bundle):
        # Whatever it is called, no row of the network is asked for it.
        bundle = dataclasses.replace(model.bundle, perturbations=[*model.bundle.perturbations, *new])
        return dataclasses.replace(model, bundle=bundle)
    if not new or "perturbation" not in model.bundle.tables:
        return model
    bundle, params = _appended(model.bundle, model.params, model.path, new)
    network = build_model(bundle, model.options.model)
    return dataclasses.replace(model, bundle=bundle, params=params, model=network)


def ignores_perturbations(bundle: Bundle) -> bool:
    """Whether the network was never told a perturbation (marginal pretraining)."""
    return bundle.settings.get("model", {}).get("use_perturbation") == "no"


def _appended(bundle: Bundle, params: dict, path: Path, new: list[str]) -> tuple[Bundle, dict]:
    facts = bundle.tables["perturbation"]
    encoding = stored_encoding(path, bundle, "perturbation")
    whole = {name for _, vectors in encoding.tables for name in vectors.names}
    units = _units(bundle) if facts.get("added_up") else {}
    added, vectors, learned, doses = [], [], [], []
    for name in new:
        label = read_label(name, bundle.control, whole)
        vector = vector_of(encoding, label)
        rows = [units.get(part) for part in label.parts]
        rows = () if None in rows or label.dose is not None else tuple(rows)
        if vector is None and not rows:
            continue
        if bundle.doses:
            doses.append(_dose_code(bundle, name, label))
        elif label.dose is not None:
            continue
        if vector is None and "shape" in facts:
            vector = np.zeros(facts["shape"][1], np.float32)
        added.append(name)
        vectors.append(vector)
        learned.append(list(rows))
    facts = dict(facts)
    if facts.get("learned"):
        facts["learned"] = [*facts["learned"], *learned]
    if "shape" in facts and added:
        # Released tables may have rows behind those of the vocabulary: the new names take their places.
        own, known = params["covariates"], 1 + len(bundle.perturbations)
        table = jnp.concatenate([own[FROZEN + "perturbation"][:known], jnp.asarray(np.stack(vectors))])
        facts["shape"] = list(table.shape)
        params = {**params, "covariates": {**own, FROZEN + "perturbation": table}}
    told = {**bundle.doses, "codes": [*bundle.doses["codes"], *doses]} if bundle.doses else {}
    bundle = dataclasses.replace(
        bundle,
        perturbations=[*bundle.perturbations, *added],
        tables={**bundle.tables, "perturbation": facts},
        doses=told,
    )
    return bundle, params


def unseen(model: "Predictor", names: Iterable[str], echo: Callable[[str], None]) -> list[Unseen]:
    """Which of `names` (all in the vocabulary) have no training cell, with the nearest that has; says so.

    Raises:
      RequestError: one that nothing tells what it is.
    """
    found = _strangers(model.bundle, model.params, names)
    _refuse_untold(model.bundle, found)
    for one in found:
        echo(one.words)
    return found


def _strangers(bundle: Bundle, params: dict, names: Iterable[str]) -> list[Unseen]:
    trained = sorted({name for name, _, _ in bundle.trained} - {bundle.control})
    new = [name for name in dict.fromkeys(names) if name not in set(trained) | {bundle.control}]
    table = params["covariates"].get(FROZEN + "perturbation")
    if not trained or not new:
        return []
    places = {name: code + 1 for code, name in enumerate(bundle.perturbations)}
    learned = bundle.tables.get("perturbation", {}).get("learned")
    table = None if table is None else np.asarray(table)
    found = []
    for name in new:
        parts = bool(learned and learned[places[name]])
        found.append(Unseen(name, "", float("nan"), parts))
        # A row of zeros is no vector: the tables lack the name.
        if table is not None and table[places[name]].any():
            known = table[[places[other] for other in trained]]
            row, distance = nearest(known, table[places[name]])
            found[-1] = Unseen(name, trained[row], distance, parts)
    return found


def facts_of(found: list[Unseen]) -> dict[str, Any]:
    """For `uns`: parallel lists; {} when every perturbation was trained."""
    if not found:
        return {}
    return {
        "unseen": {
            "perturbation": np.array([one.name for one in found], dtype=object),
            "nearest": np.array([one.nearest for one in found], dtype=object),
            "distance": np.array([one.distance for one in found]),
        }
    }


def _refuse_untold(bundle: Bundle, found: list[Unseen]) -> None:
    """Refuses what was never trained and has neither a vector nor trained parts."""
    allowed = bundle.settings.get("covariates", {}).get("allow_unknown", False)
    if allowed or ignores_perturbations(bundle):
        return
    lost = [one.name for one in found if not one.nearest and not one.parts]
    if lost:
        trained = sorted({name for name, _, _ in bundle.trained} - {bundle.control})
        more = f" ({len(lost)} such)" if len(lost) > 1 else ""
        raise RequestError(
            f"perturbation {lost[0]!r} has no training cell and nothing else tells what it is{more}.\n"
            f"Trained are {shorten(trained)}; others need a table (config.covariates.perturbation)."
        )


def _units(bundle: Bundle) -> dict[str, int]:
    """Part of a label -> its learned row."""
    found: dict[str, int] = {}
    for name, rows in zip(bundle.perturbations, bundle.tables["perturbation"]["learned"][1:]):
        parts = read_label(name, bundle.control).parts
        if len(parts) == len(rows):
            found |= dict(zip(parts, rows))
    return found


def _dose_code(bundle: Bundle, name: str, label: Label) -> int:
    values = bundle.doses["values"]
    if label.dose not in values:
        raise RequestError(
            f"perturbation {name!r}: its dose {label.dose} was never trained; allowed are "
            f"{shorten([value for value in values if value is not None])}."
        )
    return values.index(label.dose)

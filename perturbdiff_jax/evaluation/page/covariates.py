"""How a run told perturbations, cell types and batches to its network, in a sentence for the facts of the run.

What the run noted (run.json) says it all; of older runs the settings (config.json) say most.
"""

from collections.abc import Mapping
from typing import Any

from perturbdiff_jax.data.embeddings.registry import ONEHOT, parts_of
from perturbdiff_jax.data.embeddings.row_names import MARK
from perturbdiff_jax.errors import RequestError

ROLES = {"perturbation": "perturbations", "cell_type": "cell types"}


def told(run: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """The sentence, None where neither file says anything."""
    noted = run.get("covariates")
    try:
        return _noted(noted) if isinstance(noted, Mapping) else _asked(config)
    except (KeyError, TypeError, AttributeError):  # a file of somebody else's
        return None


def _noted(noted: Mapping[str, Any]) -> str:
    parts = []
    for role, what in ROLES.items():
        own = noted[role]
        if own is None:
            parts.append(f"{what}: not told")
            continue
        tables = [f"{one['name']} ({one['file']}, {one['width']:,} wide)" for one in own["tables"]]
        words = " + ".join(["one-hot"] * own["onehot"] + tables)
        if role == "perturbation" and noted["combinations_as_sums"]:
            words += ", combinations as sums of their parts"
        if role == "perturbation" and (count := len(noted["doses"])):
            words += f", {count} doses learned" if count > 1 else ", 1 dose learned"
        parts.append(f"{what}: {words}")
    return "; ".join([*parts, f"batches: {'one-hot' if noted['batch'] else 'not told'}"])


def _asked(config: Mapping[str, Any]) -> str | None:
    covariates, model = config.get("covariates"), config.get("model") or {}
    if not isinstance(covariates, Mapping):
        return None
    parts = []
    for role, what in ROLES.items():
        used = model.get(f"use_{role}", "yes")
        if used in ("yes", "no"):  # "auto" was settled later
            parts.append(f"{what}: {_encoding(covariates[role], role) if used == 'yes' else 'not told'}")
    return "; ".join(parts) or None


def _encoding(text: str, role: str) -> str:
    """ "onehot + genept=/data/GenePT.pkl" as "one-hot + genept (GenePT.pkl)"."""
    try:
        found = parts_of(text, role, role)
    except RequestError:
        return text
    files = [(name, MARK.join(part.rsplit("/", 1)[-1] for part in path.split(MARK))) for name, path in found]
    return " + ".join("one-hot" if name == ONEHOT else f"{name} ({file})" for name, file in files)

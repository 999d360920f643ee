"""The checkpoint bundle: a directory that is enough to predict and to resume. Here are its facts.

BUNDLE/bundle.json          genes, normalisation, vocabularies, model and diffusion settings, split, versions
BUNDLE/checkpoints/<step>/  states; see checkpoint.py
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import numpy as np

from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.models.covariates import FROZEN
from perturbdiff_jax.models.mmdit import Denoiser, ModelOptions

FORMAT = "perturbdiff-bundle"
# 1 had none of the facts with a default below; up to 2 model.remat was a switch, up to 3 model.scan. All are read.
VERSION = 4
FILE = "bundle.json"
PACKAGES = ("perturbdiff_jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy", "anndata", "cell-eval")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundle:
    """The facts of bundle.json; every name that a prediction may need."""

    genes: list[str]
    perturbations: list[str]
    cell_types: list[str]
    batches: list[str]
    control: str
    keys: dict[str, str | None]  # obs column names: perturbation, cell_type, batch, dose
    values: dict[str, Any]  # target_sum, log, divisor; measured: the genes that training measured, if not all
    trained: list[list[str]]  # [perturbation, cell type, batch] triples that training saw
    split: dict[str, Any]
    settings: dict[str, Any]  # the run's settings, see settings.Settings
    best_metric: dict[str, str]  # {"name": ..., "mode": "min" | "max"}
    versions: dict[str, str]
    # Facts that most runs have no use for.
    # With an input layer each; none = one shared.
    sources: list[str] = dataclasses.field(default_factory=list)
    # Data set -> source; prefixes of batches.
    datasets: dict[str, str] = dataclasses.field(default_factory=dict)
    # Covariate -> name; shape, sha256 and parts of its frozen table; learned rows (models/covariates.py).
    tables: dict[str, Any] = dataclasses.field(default_factory=dict)
    # Values; codes: a row for each perturbation.
    doses: dict[str, list] = dataclasses.field(default_factory=dict)
    covariate_genes: int = 0  # width of the covariate encoder; 0 = number of genes
    # Of converted weights: file, kind of weights.
    origin: dict[str, Any] = dataclasses.field(default_factory=dict)


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide numbers; absent ones are left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_bundle(path: str | Path, bundle: Bundle) -> None:
    """Writes bundle.json aside and renames it."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    partial = path / (FILE + ".partial")
    partial.write_text(
        json.dumps({"format": FORMAT, "version": VERSION, **dataclasses.asdict(bundle)}, indent=1)
    )
    os.replace(partial, path / FILE)


def read_bundle(path: str | Path) -> Bundle:
    """Reads and checks bundle.json.

    Raises:
      RequestError: not a bundle, an incomplete one, or one of another version; names what is wrong.
    """
    file = Path(path) / FILE
    if not file.is_file():
        nested = Path(path) / "bundle" / FILE
        hint = f" Did you mean {nested.parent}?" if nested.is_file() else ""
        raise RequestError(f"{path}: not a checkpoint bundle ({FILE} is missing).{hint}")
    try:
        content = json.loads(file.read_text())
    except ValueError as error:  # not JSON, or not text
        raise RequestError(f"{file}: damaged ({error}).") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise RequestError(f"{file}: not a {FORMAT} file.")
    version = content.pop("version", None)
    if version not in range(1, VERSION + 1) or isinstance(version, bool):
        raise RequestError(f"{file}: bundle version {version!r}; this release reads versions 1 to {VERSION}.")
    kinds = {name: get_origin(hint) or hint for name, hint in get_type_hints(Bundle).items()}
    if version == 1:
        fields = dataclasses.fields(Bundle)
        later = {f.name: f.default_factory for f in fields if f.default_factory is not dataclasses.MISSING}
        content = {"covariate_genes": 0, **{name: make() for name, make in later.items()}, **content}
    if version < 4 and isinstance(content.get("settings"), dict):
        model = content["settings"].get("model", {})
        model["scan"] = "auto"
        if version < 3:
            model["remat"] = "full" if model.get("remat") is True else "none"
    if set(content) != set(kinds):
        wrong = sorted(set(content) ^ set(kinds))
        raise RequestError(f"{file}: damaged, keys missing or unknown: {', '.join(wrong)}.")
    for name, kind in kinds.items():
        if not isinstance(content[name], kind):
            raise RequestError(f"{file}: damaged, {name} must be a {kind.__name__}.")
    return Bundle(**content)


def build_model(bundle: Bundle, options: ModelOptions) -> Denoiser:
    """The network of a bundle."""

    def table(covariate: str) -> tuple[int, int] | None:
        shape = bundle.tables.get(covariate, {}).get("shape")
        return tuple(shape) if shape else None

    def learned(covariate: str) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(own) for own in bundle.tables.get(covariate, {}).get("learned", ()))

    return Denoiser(
        options,
        genes=len(bundle.genes),
        perturbations=len(bundle.perturbations),
        cell_types=len(bundle.cell_types),
        batches=len(bundle.batches),
        sources=len(bundle.sources),
        perturbation_table=table("perturbation"),
        cell_type_table=table("cell_type"),
        perturbation_rows=learned("perturbation"),
        cell_type_rows=learned("cell_type"),
        dose_codes=tuple(bundle.doses.get("codes", ())),
        covariate_genes=bundle.covariate_genes,
    )


def table_hashes(params: dict) -> dict[str, str]:
    """SHA-256 of every frozen embedding table among the parameters, by covariate."""
    return {
        name.removeprefix(FROZEN): hashlib.sha256(np.ascontiguousarray(table, np.float32)).hexdigest()
        for name, table in params["covariates"].items()
        if name.startswith(FROZEN)
    }

"""What a released checkpoint says about itself: `hyper_parameters`, as plain values and then as typed facts.

The file holds OmegaConf containers; the reader returns them as inert records, whose content is unwrapped here.
"""

import ast
import dataclasses
from collections.abc import Mapping
from typing import Any

from perturbdiff_jax.errors import RequestError, shorten
from perturbdiff_jax.pickles import Record

# Labels of unperturbed cells in the three screens of the paper, and the obs columns of each screen.
CONTROLS = {
    "PBS": {"perturbation": "cytokine", "cell_type": "cell_type", "batch": "donor"},
    "non-targeting": {"perturbation": "gene", "cell_type": "cell_line", "batch": "gem_group"},
    "[('DMSO_TF', 0.0, 'uM')]": {
        "perturbation": "drugname_drugconc",
        "cell_type": "cell_line",
        "batch": "plate",
    },
}
# How the released code names the input layer of a data set under separate_embedder=by_name; the first match counts.
SHORT_NAMES = {"tahoe": "tahoe100m", "pbmc": "pbmc", "replogle": "replogle", "cellxgene": "cellxgene"}
# Settings whose other values change the network in ways that no released weights were trained with.
FIXED = {
    "model_type": ("Cross_DiT",),
    "Block_type": ("MM_DiT",),
    "use_gene_embedding": (False,),
    "use_class_silu": (False,),
    "learn_sigma": (False,),
    "predict_xstart": (True,),
}


def plain(value: Any) -> Any:
    """OmegaConf records as dicts, lists and values, at any depth; other records stay what they are."""
    if isinstance(value, Record) and isinstance(value.state, dict):
        if "_content" in value.state:
            return plain(value.state["_content"])
        if "_val" in value.state:
            return plain(value.state["_val"])
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What the converter needs to know besides the tensors."""

    perturbations: list[str]
    cell_types: list[str]
    batches: list[str]
    datasets: list[str]
    encodings: dict[str, str]  # perturbation, drug, gene, cell_type, batch -> how each is encoded
    by_name: bool  # input layers go by the short names of data sets
    heads: int | None
    schedule: dict[str, Any]  # name, steps, power
    cutoff: float
    small_variance: bool
    drop_condition: float
    drop_control: float
    optimizer: dict[str, Any]


def read_facts(hyper_parameters: Any, where: str) -> Facts:
    """Reads `hyper_parameters` of a checkpoint.

    Raises:
      RequestError: a part that is missing, a vocabulary that does not number its names, a setting that no released
        weights were trained with.
    """
    content = plain(hyper_parameters)
    if not isinstance(content, dict):
        raise RequestError(f"{where}: hyper_parameters are missing; not a checkpoint of the released code.")
    covariates, model = (_section(content, name, where) for name in ("cov_encoding_cfg", "model_cfg"))
    for name, allowed in FIXED.items():
        if model.get(name, allowed[0]) not in allowed:
            raise RequestError(f"{where}: model_cfg.{name}={model[name]!r}; known is {allowed[0]!r} only.")
    steps = int(_number(model, "steps", 1000, where))
    if model.get("rescale_timesteps") and steps != 1000:
        raise RequestError(f"{where}: model_cfg.rescale_timesteps with {steps} steps is not known; 1000 are.")
    encodings = {
        role: str(covariates.get(key))
        for role, key in (
            ("perturbation", "pert_encoding"),
            ("drug", "drug_encoding"),
            ("gene", "replogle_gene_encoding"),
            ("cell_type", "celltype_encoding"),
            ("batch", "batch_encoding"),
        )
    }
    heads = model.get("dit_num_heads")
    optimizer = content.get("optimizer_cfg")
    return Facts(
        perturbations=_vocabulary(covariates, "pert_dict", "num_pert", where),
        cell_types=_vocabulary(covariates, "cell_type_dict", "num_celltype", where),
        batches=_vocabulary(covariates, "batch_dict", "num_batch", where),
        datasets=[str(name) for name in model.get("dataset_dict") or []],
        encodings=encodings,
        by_name=model.get("separate_embedder") == "by_name",
        heads=heads if isinstance(heads, int) else None,
        schedule={
            "name": str(model.get("noise_schedule", "linear")),
            "steps": steps,
            "power": _number(model, "noise_schedule_gamma", 0.3, where),
        },
        cutoff=_number(model, "cutoff", 1e-4, where),
        small_variance=bool(model.get("sigma_small", False)),
        drop_condition=_number(model, "p_drop_cond", 0.0, where),
        drop_control=_number(model, "p_drop_control", 0.0, where),
        optimizer=optimizer if isinstance(optimizer, dict) else {},
    )


def short_name(dataset: str) -> str:
    """The released short name of a data set, or the name itself where there is none."""
    return next((short for part, short in SHORT_NAMES.items() if part in dataset.lower()), dataset)


def dose_of(label: str) -> float | None:
    """The dose in a label such as "[('Abemaciclib', 0.5, 'uM')]"; None where there is none."""
    try:
        (_, dose, _), *_ = ast.literal_eval(label)
        return float(dose)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _section(content: dict, name: str, where: str) -> dict:
    if not isinstance(content.get(name), dict):
        raise RequestError(f"{where}: hyper_parameters.{name} is missing; it has {shorten(content)}.")
    return content[name]


def _number(section: dict, name: str, default: float, where: str) -> float:
    value = section.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"{where}: hyper_parameters {name}={value!r} is not a number.")
    return value


def _vocabulary(section: dict, name: str, count: str, where: str) -> list[str]:
    """The names in the order of their codes."""
    codes = section.get(name)
    if not isinstance(codes, dict) or not codes:
        raise RequestError(f"{where}: the vocabulary hyper_parameters.cov_encoding_cfg.{name} is missing.")
    if not all(isinstance(code, int) for code in codes.values()):
        raise RequestError(f"{where}: the vocabulary {name} has codes that are not whole numbers.")
    if sorted(codes.values()) != list(range(len(codes))):
        raise RequestError(f"{where}: the vocabulary {name} does not number its {len(codes)} names from 0.")
    said = section.get(count)
    if isinstance(said, int) and said != len(codes):
        raise RequestError(f"{where}: {count}={said}, but the vocabulary {name} has {len(codes)} names.")
    return sorted(codes, key=codes.get)

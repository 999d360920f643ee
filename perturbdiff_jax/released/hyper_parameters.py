"""What a released checkpoint says about itself: `hyper_parameters`, as plain values and then as typed facts.

The file holds OmegaConf containers; the reader returns them as inert records, whose content is unwrapped here.
"""

import ast
import dataclasses
import math
import reprlib
from typing import Any

from perturbdiff_jax.diffusion.schedule import SCHEDULES
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
    "model_type": "Cross_DiT",
    "Block_type": "MM_DiT",
    "use_gene_embedding": False,
    "use_class_silu": False,
    "learn_sigma": False,
    "predict_xstart": True,
}

MOST_STEPS = 100_000
LONGEST = 160  # characters of a value in a message
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 80


def shown(value: Any) -> str:
    """A value in a message or a table: what is nested without end stays short."""
    text = SHORT.repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def plain(value: Any, where: str = "hyper_parameters") -> Any:
    """OmegaConf records as dicts, lists and values, at any depth; other records stay what they are.

    Raises:
      RequestError: containers that hold themselves.
    """
    done: dict[int, Any] = {}  # by identity: a file may mention one container any number of times

    def unwrap(value: Any, above: frozenset[int]) -> Any:
        if not isinstance(value, Record | dict | list | tuple):
            return value
        if id(value) in above:
            raise RequestError(f"{where}: damaged, a part of hyper_parameters holds itself.")
        if id(value) not in done:
            done[id(value)] = opened(value, above | {id(value)})
        return done[id(value)]

    def opened(value: Any, above: frozenset[int]) -> Any:
        if isinstance(value, dict):
            return {str(key): unwrap(item, above) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [unwrap(item, above) for item in value]
        for inside in ("_content", "_val"):
            if isinstance(value.state, dict) and inside in value.state:
                return unwrap(value.state[inside], above)
        return value

    return unwrap(value, frozenset())


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
    drop_control: float  # 1: never saw control cells
    learning_rate: float
    cells_per_batch: int


def read_facts(hyper_parameters: Any, where: str) -> Facts:
    """Reads `hyper_parameters` of a checkpoint.

    Raises:
      RequestError: a part that is missing, a vocabulary that does not number its names, a setting that no released
        weights were trained with.
    """
    content = plain(hyper_parameters, where)
    if not isinstance(content, dict):
        raise RequestError(f"{where}: hyper_parameters are missing; not a checkpoint of the released code.")
    covariates, model = (_section(content, name, where) for name in ("cov_encoding_cfg", "model_cfg"))
    for name, known in FIXED.items():
        value = model.get(name, known)
        same = str(value).lower() == known.lower() if isinstance(known, str) else value is known
        if not same:
            raise RequestError(f"{where}: model_cfg.{name}={shown(value)}; known is {known!r} only.")
    steps = int(_number(model, "steps", 1000, where))
    if model.get("rescale_timesteps") not in (None, False) and steps != 1000:
        raise RequestError(f"{where}: model_cfg.rescale_timesteps with {steps} steps is not known; 1000 are.")
    datasets = model.get("dataset_dict") or []
    if not isinstance(datasets, list) or not all(isinstance(name, str) for name in datasets):
        raise RequestError(f"{where}: model_cfg.dataset_dict={shown(datasets)} is not a list of data sets.")
    if not 1 <= steps <= MOST_STEPS:
        raise RequestError(f"{where}: model_cfg.steps={steps}; allowed are 1 to {MOST_STEPS:,}.")
    schedule = {"name": model.get("noise_schedule", "linear"), "steps": steps}
    if schedule["name"] not in list(SCHEDULES):
        raise RequestError(
            f"{where}: model_cfg.noise_schedule={shown(schedule['name'])}; known are {', '.join(SCHEDULES)}."
        )
    if schedule["name"] == "power_cosine":
        schedule["power"] = _number(model, "noise_schedule_gamma", 0.3, where)
    encodings = {
        role: name if isinstance(name := covariates.get(key), str) else shown(name)
        for role, key in (
            ("perturbation", "pert_encoding"),
            ("drug", "drug_encoding"),
            ("gene", "replogle_gene_encoding"),
            ("cell_type", "celltype_encoding"),
            ("batch", "batch_encoding"),
        )
    }
    heads, small = model.get("dit_num_heads"), model.get("sigma_small", False)
    training = content.get("optimizer_cfg")
    training = training if isinstance(training, dict) else {}
    optimizer = training.get("optimizer")
    return Facts(
        perturbations=_vocabulary(covariates, "pert_dict", "num_pert", where),
        cell_types=_vocabulary(covariates, "cell_type_dict", "num_celltype", where),
        batches=_vocabulary(covariates, "batch_dict", "num_batch", where),
        datasets=datasets,
        encodings=encodings,
        by_name=model.get("separate_embedder") == "by_name",
        heads=heads if type(heads) is int else None,
        schedule=schedule,
        cutoff=_number(model, "cutoff", 1e-4, where),
        small_variance=small is True,
        drop_condition=_positive(model, "p_drop_cond", 0.0),
        drop_control=_number(model, "p_drop_control", 0.0, where),
        learning_rate=_positive(optimizer if isinstance(optimizer, dict) else {}, "lr", 2e-4),
        cells_per_batch=int(_positive(training, "micro_batch_size", 2048)),
    )


def short_name(dataset: str) -> str:
    """The released short name of a data set, or the name itself where there is none."""
    return next((short for part, short in SHORT_NAMES.items() if part in dataset.lower()), dataset)


def dose_of(label: str) -> float | None:
    """The dose in a label such as "[('Abemaciclib', 0.5, 'uM')]"; None where there is none."""
    try:
        (_, dose, _), *_ = ast.literal_eval(label)
        return float(dose)
    except (ValueError, SyntaxError, TypeError, OverflowError, MemoryError, RecursionError):
        return None


def _section(content: dict, name: str, where: str) -> dict:
    if not isinstance(content.get(name), dict):
        raise RequestError(f"{where}: hyper_parameters.{name} is missing; it has {shorten(content)}.")
    return content[name]


def _number(section: dict, name: str, default: float, where: str) -> float:
    """A setting that predictions depend on."""
    value = section.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
        raise RequestError(f"{where}: hyper_parameters {name}={shown(value)} is not a number.")
    return value


def _positive(section: dict, name: str, default: float) -> float:
    """A setting that only training has a use for: the default where it is unresolved ("${...}") or no number."""
    value = section.get(name)
    usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
    return value if usable else default


def _vocabulary(section: dict, name: str, count: str, where: str) -> list[str]:
    """The names in the order of their codes."""
    codes = section.get(name)
    if not isinstance(codes, dict) or not codes:
        raise RequestError(f"{where}: the vocabulary hyper_parameters.cov_encoding_cfg.{name} is missing.")
    for label, code in codes.items():
        if type(code) is not int:
            raise RequestError(
                f"{where}: the vocabulary {name} gives {label!r} the code {shown(code)}, no whole number."
            )
    names = sorted(codes, key=codes.get)
    for wanted, label in enumerate(names):
        if codes[label] != wanted:
            raise RequestError(
                f"{where}: the vocabulary {name} does not number its {len(codes)} names from 0 to {len(codes) - 1}: "
                f"{label!r} has {codes[label]} in place of {wanted}."
            )
    said = section.get(count)
    if type(said) is int and said != len(codes):
        raise RequestError(f"{where}: {count}={said}, but the vocabulary {name} has {len(codes)} names.")
    return names

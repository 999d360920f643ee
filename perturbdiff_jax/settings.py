"""From an ml_collections config to typed, frozen settings; the only place where a ConfigDict is read.

Each section of a config is one dataclass; below this file everything receives the dataclass. A misspelt section
or key is refused with the valid ones, whether it stands in a config file, in a saved run or on the command line.
"""

import dataclasses
import math
import numbers
import types
import typing
from typing import Any

import ml_collections
from ml_collections import config_dict

from perturbdiff_jax.data.loader import GROUPINGS
from perturbdiff_jax.data.loading.set_stream import FORMS
from perturbdiff_jax.data.loading.tiers import TIERS
from perturbdiff_jax.data.prepare import PrepareOptions
from perturbdiff_jax.data.simulate import SimulateOptions
from perturbdiff_jax.diffusion.objective import ObjectiveOptions
from perturbdiff_jax.diffusion.samplers import SamplerOptions, timesteps
from perturbdiff_jax.diffusion.schedule import Schedule
from perturbdiff_jax.errors import RequestError, unknown
from perturbdiff_jax.models.mmdit import USES, ModelOptions
from perturbdiff_jax.optim import EmaOptions, OptimOptions

BEST_METRICS = {"energy": min, "r2": max, "pearson_delta": max}
DENSIFY = ("auto", *FORMS)


def checked_seed(seed: int) -> int:
    """The seed itself; RequestError when it is not a whole number that every generator takes."""
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or not 0 <= seed < 2**32:
        raise RequestError(f"seed {seed!r}: allowed are whole numbers from 0 to {2**32 - 1}.")
    return int(seed)


def _at_least_one(section: str, options: Any, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(options, name) < 1:
            raise RequestError(f"config.{section}.{name}={getattr(options, name)}: must be at least 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where cells come from: a prepared store, or h5ad files to prepare, or (neither given) the simulator.

    The remaining keys are those of `perturbdiff prepare`; see data/prepare.py.
    """

    store: str = ""  # a prepared store
    input: str = ""  # one h5ad, or several separated by commas
    perturbation_key: str = "perturbation"
    control: str = "control"
    cell_type_key: str | None = None
    batch_key: str | None = None
    dose_key: str | None = None
    layer: str | None = None
    value_kind: str = "auto"  # auto | counts | lognorm: what X or the layer holds
    total_key: str | None = None
    target_sum: float = 1e4
    hvg: int | None = 2000
    genes: str | None = None
    all_genes: bool = False
    split: str | None = None  # a .json or .toml file; without one, the hold-out below

    def prepare_options(self, holdout: "HoldoutOptions", *, seed: int, cells_per_set: int) -> PrepareOptions:
        """The options of `prepare` for this section."""
        own = {f.name for f in dataclasses.fields(PrepareOptions)}
        values = {k: v for k, v in dataclasses.asdict(self).items() if k in own}
        return PrepareOptions(
            **values,
            values=self.value_kind,
            holdout=None if self.split else holdout.rule(),
            seed=seed,
            cells_per_set=cells_per_set,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class HoldoutOptions:
    """Hold out `fraction` of the perturbations of the contexts named here (names separated by commas)."""

    fraction: float = 0.0  # 0 = nothing is held out
    validation_fraction: float = 0.0
    cell_type: str | None = None
    batch: str | None = None
    seed: int = 0

    def rule(self) -> dict[str, Any] | None:
        """The rule for data/splits.py, None when nothing is held out."""
        if not self.fraction and not self.validation_fraction:
            return None
        named = {"cell_type": self.cell_type, "batch": self.batch}
        context = {role: name.split(",") for role, name in named.items() if name}
        return {
            "fraction": self.fraction,
            "validation_fraction": self.validation_fraction,
            "context": context,
            "seed": self.seed,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """How cells become sets. Released: 8 sets of 256 (PBMC, Tahoe), 4 sets of 32 (Replogle), divisor 10."""

    cells_per_set: int = 256
    sets_per_batch: int = 8
    divisor: float = 10.0
    pairing: str = "random"
    # Control cells are targets as well: "yes", "no", or "auto" = where the hold-out has a cell type or batch without
    # any perturbed training cell, which then would not be seen at all.
    train_on_controls: str = "no"
    min_cells: int = 1  # smaller groups are left out of training
    # Cells of a set share perturbation, cell type and batch ("context"), perturbation and cell type ("cell_type"), or
    # the cell type alone ("pretraining").
    group_by: str = "context"
    tier: str = "auto"  # "resident" (all cells in memory) or "streamed"; auto: resident if they fit `memory`
    memory: float = 4.0  # GiB of cells
    control_memory: float = 1.0  # GiB of control cells held by the streamed tier
    densify: str = "auto"  # where stored values become matrices; auto: on the host when it trains itself

    def __post_init__(self):
        """Refuses sets without cells and unknown choices."""
        _at_least_one("loader", self, ("cells_per_set", "sets_per_batch", "min_cells"))
        for name in ("divisor", "memory", "control_memory"):
            if getattr(self, name) <= 0:
                raise RequestError(f"config.loader.{name}={getattr(self, name)}: must be above 0.")
        if self.train_on_controls not in USES:
            raise unknown("loader.train_on_controls", self.train_on_controls, USES)
        for name, allowed in (("group_by", GROUPINGS), ("tier", TIERS), ("densify", DENSIFY)):
            if getattr(self, name) not in allowed:
                raise unknown(f"config.loader.{name}", getattr(self, name), allowed)

    def source_options(self, backend: str) -> dict[str, Any]:
        """The arguments of data.loader.SetSource, once `auto` is settled; `backend` is the one that trains."""
        densify = self.densify
        if densify == "auto":
            densify = "host" if backend == "cpu" else "device"
        return dataclasses.asdict(self) | {
            "train_on_controls": self.train_on_controls == "yes",
            "densify": densify,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Length of a run and its rhythm."""

    steps: int = 20_000
    max_epochs: float | None = None  # passes over the cells; ends a run before `steps` if that is sooner
    log_every: int = 100
    validate_every: int = 2_000  # sampled validation and a checkpoint
    validation_cells: int = 64  # cells sampled per validation condition
    validation_conditions: int = 64  # at most so many conditions
    keep: int = 2  # best checkpoints kept, besides the latest
    best_metric: str = "pearson_delta"  # energy hardly moves where effects are weak

    def __post_init__(self):
        """Refuses runs without a rhythm."""
        counts = ("steps", "log_every", "validate_every", "validation_cells", "validation_conditions", "keep")
        _at_least_one("train", self, counts)
        if self.best_metric not in BEST_METRICS:
            raise unknown("config.train.best_metric", self.best_metric, BEST_METRICS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What the main job predicts after training: the whole test split."""

    draws: int = 1
    sets_per_batch: int = 16

    def __post_init__(self):
        """Refuses to predict nothing."""
        _at_least_one("predict", self, ("draws", "sets_per_batch"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """A whole run."""

    seed: int = 0
    data: DataOptions = DataOptions()
    holdout: HoldoutOptions = HoldoutOptions()
    simulate: SimulateOptions = SimulateOptions()
    loader: LoaderOptions = LoaderOptions()
    model: ModelOptions = ModelOptions()
    schedule: Schedule = Schedule()
    objective: ObjectiveOptions = ObjectiveOptions()
    optim: OptimOptions = OptimOptions()
    ema: EmaOptions = EmaOptions()
    sampler: SamplerOptions = SamplerOptions()
    train: TrainOptions = TrainOptions()
    predict: PredictOptions = PredictOptions()

    def __post_init__(self):
        """Refuses what would only come to light after hours: a walk that the schedule has no timesteps for."""
        checked_seed(self.seed)
        timesteps(self.schedule, self.sampler)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict, ready for JSON."""
        return dataclasses.asdict(self)


def _fields(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def default_config() -> ml_collections.ConfigDict:
    """A config with every key of a run at its default (the released full-size recipe), ready to be edited."""

    def build(value: Any) -> ml_collections.ConfigDict:
        config = ml_collections.ConfigDict()
        for name, hint in _fields(type(value)).items():
            item = getattr(value, name)
            if dataclasses.is_dataclass(item):
                config[name] = build(item)
            elif item is None or isinstance(hint, types.UnionType):
                kind = next(k for k in typing.get_args(hint) if k is not types.NoneType)
                config[name] = config_dict.placeholder(kind)
                if item is not None:
                    config[name] = item
            else:
                config[name] = item
        return config

    return build(Settings())


def _checked(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type that the setting `name` has; RequestError otherwise."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if types.NoneType in kinds and value in ("None", "none", ""):
        value = None  # as a command line spells it
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        allowed = " or ".join("none" if k is types.NoneType else k.__name__ for k in kinds)
        raise RequestError(f"config.{name}={value!r}: must be {allowed}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise RequestError(f"config.{name}={value}: must be a finite number.")
    return value


def _unpack(cls: type, given: dict[str, Any], path: str) -> Any:
    hints = _fields(cls)
    for key in given:
        if key not in hints:
            raise unknown("config key", f"{path}{key}", [f"{path}{name}" for name in hints], "config")
    values = {}
    for name, value in given.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, dict):
                raise RequestError(f"config.{path}{name}={value!r}: must be a section with keys.")
            values[name] = _unpack(hint, value, f"{path}{name}.")
        else:
            values[name] = _checked(f"{path}{name}", value, hint)
    return cls(**values)


def key_kinds(name: str) -> tuple[type, ...]:
    """The types that the dotted key `name` takes; RequestError with the closest and the valid ones for no key."""
    cls, parts = Settings, name.split(".")
    for depth, part in enumerate(parts):
        hints = _fields(cls) if dataclasses.is_dataclass(cls) else {}
        if part not in hints:
            prefix = "".join(f"{p}." for p in parts[:depth])
            raise unknown("config key", name, [prefix + key for key in hints] or [prefix[:-1]], "config")
        cls = hints[part]
    if dataclasses.is_dataclass(cls):
        keys = ", ".join(f"{name}.{key}" for key in _fields(cls))
        raise RequestError(f"config.{name} is a section; set one of its keys: {keys}.")
    return typing.get_args(cls) or (cls,)


def from_config(config: ml_collections.ConfigDict | dict[str, Any]) -> Settings:
    """Unpacks a config; keys that are absent keep their defaults.

    Raises:
      RequestError: an unknown key (naming the valid ones) or a value of the wrong type or range.
    """
    plain = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    return _unpack(Settings, plain, "")

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

from perturbdiff_jax.data.simulate import SimulateOptions
from perturbdiff_jax.data_options import DataOptions, HoldoutOptions
from perturbdiff_jax.diffusion.objective import ObjectiveOptions
from perturbdiff_jax.diffusion.samplers import SamplerOptions, timesteps
from perturbdiff_jax.diffusion.schedule import Schedule
from perturbdiff_jax.errors import RequestError, unknown
from perturbdiff_jax.models.mmdit import ModelOptions
from perturbdiff_jax.optim import EmaOptions, OptimOptions
from perturbdiff_jax.run_options import (
    CovariateOptions,
    LoaderOptions,
    PredictOptions,
    ProfileSpan,
    TrainOptions,
)
from perturbdiff_jax.sharding import MeshOptions

INIT_LAYERS = ("keep", "fresh", "hvg")


def checked_seed(seed: int) -> int:
    """The seed itself; RequestError when it is not a whole number that every generator takes."""
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or not 0 <= seed < 2**32:
        raise RequestError(f"seed {seed!r}: allowed are whole numbers from 0 to {2**32 - 1}.")
    return int(seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """A whole run."""

    seed: int = 0
    data: DataOptions = DataOptions()
    holdout: HoldoutOptions = HoldoutOptions()
    simulate: SimulateOptions = SimulateOptions()
    covariates: CovariateOptions = CovariateOptions()
    loader: LoaderOptions = LoaderOptions()
    model: ModelOptions = ModelOptions()
    schedule: Schedule = Schedule()
    objective: ObjectiveOptions = ObjectiveOptions()
    optim: OptimOptions = OptimOptions()
    ema: EmaOptions = EmaOptions()
    sampler: SamplerOptions = SamplerOptions()
    train: TrainOptions = TrainOptions()
    predict: PredictOptions = PredictOptions()
    mesh: MeshOptions = MeshOptions()
    profile: str = ""  # START:STOP, the steps to record a trace of
    # Finetuning (finetuning/start.py): a bundle whose weights are the first ones; which of its layers for genes are
    # taken; of which source's input layer, where it has several.
    init_from: str = ""
    init_layers: str = "keep"
    init_source: str = ""

    def __post_init__(self):
        """Refuses what would only come to light after hours: a walk that the schedule has no timesteps for, say."""
        checked_seed(self.seed)
        timesteps(self.schedule, self.sampler)
        if self.init_layers not in INIT_LAYERS:
            raise unknown("config.init_layers", self.init_layers, INIT_LAYERS)
        ProfileSpan.read(self.profile)
        self._check_pretraining()
        if self.loader.sets_per_batch % self.train.accumulate:
            raise RequestError(
                f"config.train.accumulate={self.train.accumulate}: must divide config.loader.sets_per_batch="
                f"{self.loader.sets_per_batch}."
            )

    @property
    def has_several_sources(self) -> bool:
        """Whether the run trains on several stores, named or simulated."""
        simulated = self.simulate.form == "sources" and not (self.data.store or self.data.input)
        return bool(self.data.sources) or simulated

    def _check_pretraining(self) -> None:
        """Several sources are for marginal pretraining, which has no use for what needs perturbations."""
        if not self.has_several_sources:
            return
        if self.model.use_perturbation != "no":
            raise RequestError(
                "Several sources (config.data.sources, simulate.form=sources) are for marginal pretraining: set "
                "config.model.use_perturbation='no'.\n"
                "One screen in several files or stores: config.data.input=A,B, or `perturbdiff prepare --merge`."
            )
        if self.train.best_metric == "pearson_delta":
            raise RequestError(
                "config.train.best_metric='pearson_delta': pretraining predicts no change; allowed are energy, r2."
            )

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

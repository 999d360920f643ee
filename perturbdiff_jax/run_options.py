"""The sections of a run's settings that belong to no single module: covariates, loader, rhythm, prediction.

One frozen dataclass each, checked as it is made. settings.py puts them together and reads them from a config.
"""

import dataclasses
import re
from typing import Any

from perturbdiff_jax.data.embeddings.registry import parts_of
from perturbdiff_jax.data.loader import GROUPINGS
from perturbdiff_jax.data.loading.set_stream import FORMS
from perturbdiff_jax.data.loading.tiers import TIERS
from perturbdiff_jax.errors import RequestError, unknown
from perturbdiff_jax.models.mmdit import USES

BEST_METRICS = {"energy": min, "r2": max, "pearson_delta": max}
COMBINATIONS = ("auto", "own", "sum")
DENSIFY = ("auto", *FORMS)


def _at_least_one(section: str, options: Any, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(options, name) < 1:
            raise RequestError(f"config.{section}.{name}={getattr(options, name)}: must be at least 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CovariateOptions:
    """How the network is told perturbations and cell types: see data/embeddings/registry.py."""

    perturbation: str = "onehot"  # onehot, NAME=FILE, or a sum of these: "onehot + genept=GenePT.pkl"
    cell_type: str = "onehot"
    # Of drugs that a table tells: "auto" = a learned table of doses beside it, if labels have doses.
    dose: str = "auto"
    # "A+B" is "own" = a perturbation like any other, or the "sum" of A and B; "auto" = sum where a held-out one has no
    # training cell. Vectors of tables are always added up.
    combinations: str = "auto"
    allow_unknown: bool = False  # test conditions that nothing tells apart

    def __post_init__(self):
        """Refuses unknown choices and encodings that name no file; opens nothing."""
        for name, allowed in (("dose", USES), ("combinations", COMBINATIONS)):
            if getattr(self, name) not in allowed:
                raise unknown(f"config.covariates.{name}", getattr(self, name), allowed)
        for role in ("perturbation", "cell_type"):
            parts_of(getattr(self, role), f"config.covariates.{role}", role)


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
    # A checkpoint without validation as well, every so many steps; 0 = at validations only.
    save_every: int = 0
    keep: int = 2  # best checkpoints kept, besides the latest
    best_metric: str = "pearson_delta"  # energy hardly moves where effects are weak
    patience: int = 0  # ends a run after so many validations without a better one; 0 = never
    # Parts that a batch is cut into, one after the other: memory of a part, step of the whole.
    accumulate: int = 1

    def __post_init__(self):
        """Refuses runs without a rhythm."""
        counts = ("steps", "log_every", "validate_every", "validation_cells", "validation_conditions", "keep")
        _at_least_one("train", self, (*counts, "accumulate"))
        for name in ("save_every", "patience"):
            if getattr(self, name) < 0:
                raise RequestError(f"config.train.{name}={getattr(self, name)}: must not be negative.")
        if self.best_metric not in BEST_METRICS:
            raise unknown("config.train.best_metric", self.best_metric, BEST_METRICS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What the main job predicts after training: the whole test split."""

    draws: int = 1
    # Batch covariate of draws: the condition's own, or in turn "all" that were seen.
    draw_batches: str = "own"
    sets_per_batch: int = 16  # that a device walks at a time, at most
    calibration_draws: int = 8  # of validation conditions, to learn the model error; 0 = it is not learned

    def __post_init__(self):
        """Refuses to predict nothing."""
        _at_least_one("predict", self, ("draws", "sets_per_batch"))
        if self.draw_batches not in ("own", "all"):
            raise RequestError(f"predict.draw_batches={self.draw_batches!r}: allowed are own, all.")
        if self.calibration_draws < 0:
            raise RequestError(f"predict.calibration_draws={self.calibration_draws}: must not be negative.")


@dataclasses.dataclass(frozen=True)
class ProfileSpan:
    """The steps [start, stop) that a trace is recorded of."""

    start: int
    stop: int

    @classmethod
    def read(cls, text: str) -> "ProfileSpan | None":
        """From "START:STOP", two step numbers counted from 0; "" is None. RequestError for anything else."""
        found = re.fullmatch(r"(\d+):(\d+)", text)
        if text and not (found and int(found[1]) < int(found[2])):
            raise RequestError(f"config.profile={text!r}: must be START:STOP, two steps, START below STOP.")
        return cls(int(found[1]), int(found[2])) if text else None

"""How much a model errs on conditions that it was not trained on, learned once and kept in its bundle.

BUNDLE/model_error.json     the error of evaluation/spread.py, and what it was learned from

Every prediction of the bundle's checkpoint takes it along, so that intervals are those of the model's mistakes as well,
not of its draws alone.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from perturbdiff_jax.data.store import Store
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.evaluation import spread
from perturbdiff_jax.evaluation.calibration import expressed
from perturbdiff_jax.evaluation.metrics import mean_of
from perturbdiff_jax.prediction.controls import check_store, from_store
from perturbdiff_jax.prediction.design import split_design
from perturbdiff_jax.run_record import write_json
from perturbdiff_jax.telemetry.progress import Progress

FILE = "model_error.json"
FORMAT = "perturbdiff-model-error"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelError:
    """What is in model_error.json.

    `before`, `after`: shares of genes that intervals of 50, 80 and 95 % hold without and with the error, on the
    conditions that it was learned from.
    """

    value: spread.Error
    checkpoint_step: int
    store: str
    split: str
    conditions: int
    draws: int
    draw_batches: str
    sampler: dict[str, Any]
    before: list[float]
    after: list[float]

    def told(self) -> str:
        """A sentence for people."""
        return (
            f"model error: it errs {self.value.told()}; learned on {self.conditions} {self.split} conditions, where "
            f"80 % intervals hold {100 * self.after[1]:.0f} % of the genes, without it {100 * self.before[1]:.0f} %"
        )


def learn(
    model: Any,
    store: Store,
    *,
    split: str = "validation",
    conditions: int = 64,
    cells: int | None = 64,
    draws: int = 8,
    draw_batches: str = "own",
    seed: int = 0,
    sets_per_batch: int = 16,
    echo: Callable[[str], None] = print,
) -> ModelError:
    """Predicts conditions that were held out and compares with their real cells.

    Args:
      model: a Predictor.
      store: real cells, in the bundle's genes and unit.
      split: of the store; one that training did not see.
      conditions, cells: at most so many conditions, and cells of each draw (None: as many as the real ones).
      draws, draw_batches, seed, sets_per_batch: as of Predictor.job.

    Raises:
      RequestError: another store's genes, an unknown split or one without conditions, no gene that is expressed.
    """
    check_store(store, model.bundle)
    design = split_design(store, split, most=conditions, most_cells=cells)
    controls = from_store(store, model.bundle, named=False)
    asked = {"draws": draws, "draw_batches": draw_batches, "seed": seed, "sets_per_batch": sets_per_batch}
    job = model.job(design.drop(columns="group"), controls, echo=echo, **asked)
    progress = Progress(job.walker.plan(job.requests).sets, "model error: sets", every=10.0)
    known, found = [], []
    for request, part, _ in job.walker(job.params, job.requests, progress=progress.show):
        found.append(part)
        if len(found) == draws:
            known.append(_compared(store, int(design["group"].iloc[len(known)]), found, request.controls))
            found = []
    value = spread.model_error(known)
    if value is None:
        raise RequestError(f"{store.path}: no gene is expressed in the {split} split; nothing to learn from.")
    return ModelError(
        value=value,
        checkpoint_step=model.step,
        store=str(store.path),
        split=split,
        conditions=len(known),
        draws=draws,
        draw_batches=draw_batches,
        sampler=dataclasses.asdict(model.options.sampler),
        before=_shares(known, spread.TRUSTED),
        after=_shares(known, value),
    )


def _compared(store: Store, group: int, found: list, controls) -> tuple[spread.Drawn, np.ndarray, float]:
    start, size = int(store.groups.start[group]), int(store.groups.size[group])
    truth, base = mean_of(store.read(start, start + size)), mean_of(controls)
    kept = expressed(base, truth)
    return spread.drawn(found, base).at(kept), (truth - base)[kept], size


def _shares(known: list, error: spread.Error) -> list[float]:
    def share(level: float) -> float:
        inside = [spread.coverage(draws, truth, level, error=error, cells=n) for draws, truth, n in known]
        return float(np.mean([np.nanmean(one) for one in inside if np.isfinite(one).any()]))

    return [share(level) for level in spread.LEVELS]


def write(bundle: str | Path, found: ModelError) -> Path:
    """Writes model_error.json aside and renames it."""
    path = Path(bundle) / FILE
    write_json(path, {"format": FORMAT, **dataclasses.asdict(found)})
    return path


def read(bundle: str | Path, step: int) -> ModelError | None:
    """That of the checkpoint of `step`; None when it was not learned, or for another checkpoint.

    Raises:
      RequestError: a file that is not one of these.
    """
    path = Path(bundle) / FILE
    if not path.exists():
        return None
    try:
        facts = json.loads(path.read_text())
        if facts.pop("format") != FORMAT:
            raise ValueError("another format")
        value = spread.Error.read(facts.pop("value"))
        if value is None:
            raise ValueError("no error of cells and of change")
        found = ModelError(value=value, **facts)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RequestError(
            f"{path}: cannot be read ({error}); `perturbdiff calibrate` writes it anew."
        ) from None
    return found if found.checkpoint_step == step else None

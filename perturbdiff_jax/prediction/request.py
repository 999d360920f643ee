"""A request checked, with its control cells read, and made a job: everything but the walk itself."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import jax
import pandas as pd

from perturbdiff_jax import settings as run_settings
from perturbdiff_jax.diffusion import samplers
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.prediction.control_file import from_anndata
from perturbdiff_jax.prediction.controls import ControlCells
from perturbdiff_jax.prediction.design import check_design, full_design, requests_of
from perturbdiff_jax.prediction.job import PredictionJob
from perturbdiff_jax.prediction.population import Walker
from perturbdiff_jax.prediction.table import facts
from perturbdiff_jax.prediction.unseen import extended, facts_of, unseen

if TYPE_CHECKING:
    from perturbdiff_jax.prediction.predictor import Predictor

READING = ("cell_type_key", "batch_key", "total_key", "gene_key", "map", "map_to", "min_gene_overlap")


def read_request(
    model: "Predictor",
    adata: anndata.AnnData | str | Path,
    perturbations: Sequence[str] | None,
    design: pd.DataFrame | None,
    reading: dict[str, Any],
    *,
    cells_per_condition: int | None,
    draws: int,
    source: str | None,
    echo: Callable[[str], None],
) -> tuple[pd.DataFrame, ControlCells]:
    """The design of what is asked for, and its control cells.

    Args:
      model, adata, perturbations, design, cells_per_condition, draws, source, echo: as of `Predictor.predict`.
      reading: its other words about the file, those of READING.

    Raises:
      RequestError: as `Predictor.predict`.
    """
    if (design is None) == (perturbations is None):
        raise RequestError("predict: give either perturbations or a design, not both.")
    perturbations = [perturbations] if isinstance(perturbations, str) else perturbations
    contexts = [(model.cell_types[0], model.batches[0])]  # names are checked before a large file is read
    asked = full_design(perturbations, contexts) if design is None else design
    check_design(asked, extended(model, asked).bundle, cells_per_condition, draws, source)
    controls = from_anndata(adata, model.bundle, dataset=source, echo=echo, **reading)
    if design is None:
        design = full_design(perturbations, list(controls.cells))
    return design, controls


def job(
    model: "Predictor",
    design: pd.DataFrame,
    controls: ControlCells,
    *,
    source: str | None = None,
    cells_per_condition: int | None = None,
    draws: int = 1,
    draw_batches: str = "own",
    sampler: samplers.SamplerOptions | None = None,
    sets_per_batch: int = 16,
    seed: int = 0,
    devices: Sequence[jax.Device] | None = None,
    echo: Callable[[str], None] = print,
) -> PredictionJob:
    """Checks a request, and everything that its walk needs; walks nothing yet.

    Args:
      model: the trained model.
      design, controls: conditions, and the control cells of their contexts.
      source, cells_per_condition, draws, draw_batches, sampler, seed, echo: as of `Predictor.predict`.
      sets_per_batch: sets that a device walks at a time, at most.
      devices: that walk; by default all of this process.

    Raises:
      RequestError: as `Predictor.predict`.
    """
    sampler = sampler or model.options.sampler
    samplers.timesteps(model.options.schedule, sampler)  # refuses an impossible walk before any work
    seed = run_settings.checked_seed(seed)
    known = extended(model, design)
    design = check_design(design, known.bundle, cells_per_condition, draws, source)
    strangers = unseen(known, design["perturbation"], echo)
    if model.options.model.use_perturbation == "no":
        echo("This network was trained without looking at perturbations: all get the same population.")
    if model.zero_control:
        echo("This network was trained without control cells: they tell the context and enter as zeros.")
    requests, contexts = requests_of(design, controls, known.bundle, source, echo, draw_batches)
    walker = Walker(
        known.model,
        schedule=model.options.schedule,
        sampler=sampler,
        cells_per_set=model.options.loader.cells_per_set,
        sets_per_batch=sets_per_batch,
        divisor=model.bundle.values["divisor"],
        seed=seed,
        zero_control=model.zero_control,
        feeds_back=model.feeds_back,
        devices=devices,
    )
    told = facts(model.bundle, str(model.path), model.step, model.error, sampler=sampler, seed=seed)
    return PredictionJob(
        walker=walker,
        params=known.params,
        requests=requests,
        contexts=contexts,
        controls=controls,
        bundle=known.bundle,
        uns=told | facts_of(strangers),
        echo=echo,
    )

"""The main job, in reading order: cells, training, prediction of the hold-out, evaluation, report.

`train_and_evaluate(config, workdir)` is the whole story; run again with the same config it goes on where it was
broken off. What a step is, how batches are made, what a checkpoint holds and what the loop does is told elsewhere.
"""

import contextlib
import dataclasses
from pathlib import Path

import jax
import numpy as np

from perturbdiff_jax import processes, sharding
from perturbdiff_jax.bundle import build_model, write_bundle
from perturbdiff_jax.checkpoint import Checkpoints
from perturbdiff_jax.checkpoint_folder import last_good
from perturbdiff_jax.covariate_setup import encodings_of, tell
from perturbdiff_jax.data.conditions import VALIDATION
from perturbdiff_jax.data.loader import SetSource
from perturbdiff_jax.data.loading.mixture import Mixture
from perturbdiff_jax.data.storage.joined import JoinedStores
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.errors import full_disk_told, shorten
from perturbdiff_jax.finetuning.start import Start, covariate_genes
from perturbdiff_jax.history import Recall
from perturbdiff_jax.holdout import predict_and_evaluate
from perturbdiff_jax.interruption import Interruption
from perturbdiff_jax.loop import TrainingLoop
from perturbdiff_jax.optim import learning_rate, optimizer
from perturbdiff_jax.placement import gathered, placed
from perturbdiff_jax.prediction.population import Walker
from perturbdiff_jax.run_lock import RunLock
from perturbdiff_jax.run_options import ProfileSpan
from perturbdiff_jax.run_record import RunRecord, check_same_run, taken_back_if_refused
from perturbdiff_jax.run_setup import describe, settle
from perturbdiff_jax.run_store import MADE_BEFORE, open_store, store_facts, training_share
from perturbdiff_jax.settings import Settings, from_config
from perturbdiff_jax.state import count_parameters
from perturbdiff_jax.step import StepParts, compile_step, initial_state
from perturbdiff_jax.telemetry.flops import step_flops
from perturbdiff_jax.telemetry.meter import Meter
from perturbdiff_jax.telemetry.peaks import peak_flops
from perturbdiff_jax.telemetry.run_log import RunLog
from perturbdiff_jax.telemetry.trace import Trace
from perturbdiff_jax.training_sets import training_sets
from perturbdiff_jax.validation import SampledValidation, of_contexts, of_split


def train_and_evaluate(config, workdir: str | Path) -> Path:
    """Runs the whole job below `workdir` and returns the path of the report.

    Args:
      config: ConfigDict (see settings.default_config) or plain nested dict.
      workdir: gets store/, bundle/, logs/, predictions.h5ad, metrics.csv, summary.json, report.html.

    Raises:
      RequestError: wrong config or data, a work directory that holds another run, or in which one is at work.
      Stopped: SIGTERM; what is done stays.
      RunError: a loss that is not finite, a full disk.
    """
    settings = from_config(config)
    workdir = Path(workdir)
    with Interruption() as stop, contextlib.ExitStack() as held:
        held.enter_context(full_disk_told(workdir, lambda: last_good(workdir / "bundle")))

        def begin() -> None:
            with taken_back_if_refused(workdir, ".lock", "config.json", *MADE_BEFORE):
                held.enter_context(RunLock(workdir))
                check_same_run(workdir, settings)
                # A file that will not do is refused before hours are spent on a store.
                encodings_of(settings)
                covariate_genes(settings, workdir / "bundle")
                with RunRecord(workdir).stage("prepare"):
                    training_share(settings, open_store(settings, workdir))

        processes.lead(begin)
        store = open_store(settings, workdir)
        share, kept = training_share(settings, store)
        settings = settle(settings, share)
        record = RunRecord(workdir)
        record.note(store=store_facts(store))
        if kept is not None:
            print(kept.told(), flush=True)
            record.note(training_cells=dataclasses.asdict(kept) | {"told": kept.told()})
        stop.check()
        with record.stage("train"):
            record.note(**train(settings, share, workdir, stop))
        return processes.lead(lambda: predict_and_evaluate(settings, store, workdir, record))


def train(
    settings: Settings, store: Store | JoinedStores, workdir: Path, stop: Interruption | None = None
) -> dict:
    """Trains up to `train.steps`, from the latest checkpoint if there is one; returns facts for the record.

    `store` has the cells to train on (see run_setup.training_share).
    """
    stop = stop or Interruption()
    mesh = sharding.make_mesh(settings.mesh)
    sharding.check_divisible(settings.loader.sets_per_batch, mesh, settings.train.accumulate)
    source = training_sets(settings, store, mesh)
    told = tell(settings, store)
    inherited = covariate_genes(settings, workdir / "bundle")
    bundle = describe(settings, store, told, covariate_genes=inherited)
    model = build_model(bundle, settings.model)
    parts = StepParts(
        model=model,
        tx=optimizer(settings.optim, settings.train.steps),
        schedule=settings.schedule,
        objective=settings.objective,
        ema=settings.ema,
        seed=settings.seed,
        divisor=settings.loader.divisor,
        accumulate=settings.train.accumulate,
    )
    state = told.put_into(initial_state(parts, mesh))

    def write() -> None:
        told.refuse_others(workdir / "bundle")
        write_bundle(workdir / "bundle", bundle)
        told.write(workdir / "bundle")

    processes.lead(write)
    best, options = bundle.best_metric, settings.train
    facts = {"parameters": count_parameters(state.params), "n_sets": source.n_sets}
    facts["covariates"] = told.account(settings, store)
    with (
        stop.deferred(),
        Checkpoints(
            workdir / "bundle", metric=best["name"], mode=best["mode"], keep=options.keep
        ) as checkpoints,
    ):
        found = checkpoints.newest(state)
        if found is None and (start := Start.of(settings)):
            state, account = start.put_into(state, bundle, settings)
            facts["finetuning"] = account.facts()
            print("\n".join(account.lines()), flush=True)
        state, recall = found or (state, Recall())
        done = first = int(state.step)
        if first:
            print(f"Resuming at step {first:,} of {options.steps:,}.", flush=True)
        if first < options.steps and not recall.is_over(checkpoints.best_metric, options.patience):
            validation = make_validation(settings, store, model)
            per_cell = source.batcher.mixes_batches and settings.model.use_batch != "no"
            meter = make_meter(settings, model, mesh, facts, codes_per_cell=per_cell)
            log = RunLog(workdir / "logs", first_step=first, writes=processes.leads())
            trace = Trace(ProfileSpan.read(settings.profile), workdir / "logs" / "profile")
            batches = placed(source, mesh, first, options.steps)
            loop = TrainingLoop(
                options=options,
                step_of=compile_step(parts, mesh),
                learning_rate=learning_rate(settings.optim, options.steps),
                validate=lambda ema: validated(validation, gathered(ema, mesh)),
                validation_name=f"{validation.split} ({len(validation)} conditions)",
                groups_of=lambda step: groups_of(source, store, step),
                checkpoints=checkpoints,
                log=log,
                meter=meter,
                trace=trace,
                stop=stop,
            )
            with contextlib.closing(log), contextlib.closing(trace), contextlib.closing(batches):
                done, state = loop.fit(state, batches, first=first, recall=recall)
            facts |= {name: float(f"{value:.4g}") for name, value in meter.totals().items()}
    return {"steps": done, **facts, "best_step": checkpoints.best_step()}


def make_meter(
    settings: Settings, model, mesh: jax.sharding.Mesh, facts: dict, *, codes_per_cell: bool
) -> Meter:
    """Measures speed against the devices' peak, which goes into `facts` with its source."""
    sets, cells = settings.loader.sets_per_batch, settings.loader.cells_per_set
    shape = {"sets": sets, "cells": cells, "codes_per_cell": codes_per_cell}
    flops = step_flops(model, settings.objective, **shape)
    peak, source = peak_flops(mesh.devices.flat, settings.model.dtype) or (None, "not known")
    facts["peak_flops"] = source
    return Meter(cells_per_step=sets * cells, flops_per_step=flops, peak_flops=peak)


def validated(validation: SampledValidation, weights: dict) -> dict[str, float]:
    """Scores of weights that every process has; process 0 samples, and all hear the same scores."""
    return processes.told(lambda: validation(weights))


def groups_of(source: SetSource | Mixture, store: Store | JoinedStores, step: int) -> str:
    """Perturbation / cell type / batch of the sets of a step's batch, those of this process, for people."""
    batch = source[step]
    names = []
    for row in range(len(batch.perturbation)):
        batches = [store.batches[code] for code in np.unique(batch.batch[row])]
        kinds = store.perturbations[batch.perturbation[row]], store.cell_types[batch.cell_type[row]]
        names.append(" / ".join([*kinds, "+".join(batches[:3])]))
    return shorten(dict.fromkeys(names), most=4)


def make_validation(settings: Settings, store: Store | JoinedStores, model) -> SampledValidation:
    """Sampled validation on the validation split; on training conditions, said aloud, when there is none.

    Marginal pretraining of several sources is compared with contexts.
    """
    walker = Walker(
        model,
        schedule=settings.schedule,
        sampler=settings.sampler,
        cells_per_set=settings.loader.cells_per_set,
        sets_per_batch=settings.predict.sets_per_batch,
        divisor=settings.loader.divisor,
        seed=settings.seed,
        zero_control=settings.objective.drop_control == 1,
        feeds_back=settings.objective.self_condition > 0,
    )
    most = {"conditions": settings.train.validation_conditions, "cells": settings.train.validation_cells}
    if isinstance(store, JoinedStores):
        return of_contexts(store, walker, **most)
    split = "validation"
    if not (store.groups.split == VALIDATION).any():
        split = "train"
        print("No validation split: checkpoints are compared on training conditions.", flush=True)
    return of_split(store, walker, split=split, **most)

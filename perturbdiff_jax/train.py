"""The main job, in reading order: cells, training, prediction of the hold-out, evaluation, report.

`train_and_evaluate(config, workdir)` is the whole story; run again with the same config it goes on where it was
broken off. What a step is, how batches are made and what a checkpoint holds is told elsewhere.
"""

import math
import time
from pathlib import Path

import jax
import numpy as np

from perturbdiff_jax import rng, sharding
from perturbdiff_jax.checkpoint import Checkpoints, build_model, write_bundle
from perturbdiff_jax.controls import from_store
from perturbdiff_jax.data.conditions import TEST, VALIDATION
from perturbdiff_jax.data.loader import SetSource, prefetch
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.design import split_design
from perturbdiff_jax.evaluation.evaluate import evaluate
from perturbdiff_jax.evaluation.report import write_report
from perturbdiff_jax.optim import learning_rate, optimizer
from perturbdiff_jax.population import Walker
from perturbdiff_jax.predict import load
from perturbdiff_jax.predictions import write_predictions
from perturbdiff_jax.run_record import RunRecord, check_same_run, taken_back_if_refused
from perturbdiff_jax.run_setup import describe, open_store, settle, store_facts
from perturbdiff_jax.settings import Settings, from_config
from perturbdiff_jax.state import count_parameters, create_state, init_params
from perturbdiff_jax.step import StepParts, compile_step
from perturbdiff_jax.telemetry import Progress, RunLog
from perturbdiff_jax.validation import SampledValidation


def train_and_evaluate(config, workdir: str | Path) -> Path:
    """Runs the whole job below `workdir` and returns the path of the report.

    Args:
      config: ConfigDict (see settings.default_config) or plain nested dict.
      workdir: gets store/, bundle/, logs/, predictions.h5ad, metrics.csv, summary.json, report.html.

    Raises:
      RequestError: wrong config or data, or a work directory that holds another run.
    """
    settings = from_config(config)
    workdir = Path(workdir)
    record = RunRecord(workdir)
    with taken_back_if_refused(workdir, "config.json", "simulated.h5ad"):
        check_same_run(workdir, settings)
        with record.stage("prepare"):
            store = open_store(settings, workdir)
    settings = settle(settings, store)
    record.note(store=store_facts(store))
    with record.stage("train"):
        record.note(**train(settings, store, workdir))
    if not (store.groups.split == TEST).any():
        print("No condition is held out for testing: nothing to predict and score (see config.holdout).")
        return write_report(workdir)
    with record.stage("predict"):
        predictions = predict_test(settings, store, workdir)
    with record.stage("evaluate"):
        keys = store.manifest["keys"]
        evaluate(
            predictions,
            store.path,
            workdir,
            perturbation_key=keys["perturbation"],
            control=store.control,
            cell_type_key=keys["cell_type"],
            batch_key=keys["batch"],
            store=store,
            seed=settings.seed,
        )
    record.finish()
    report = write_report(workdir)
    print(f"bundle       {workdir / 'bundle'}\npredictions  {predictions}\nreport       {report}")
    return report


def train(settings: Settings, store: Store, workdir: Path) -> dict:
    """Trains up to `train.steps`, from the latest checkpoint if there is one; returns facts for the record."""
    mesh = sharding.make_mesh(settings.mesh)
    sharding.check_divisible(settings.loader.sets_per_batch, mesh, settings.train.accumulate)
    source = SetSource(
        store,
        split="train",
        seed=settings.seed,
        blocks=mesh.size,
        **settings.loader.source_options(jax.default_backend()),
    )
    bundle = describe(settings, store)
    model = build_model(bundle, settings.model)
    tx = optimizer(settings.optim, settings.train.steps)
    state = create_state(init_params(model, rng.key_for(settings.seed, "init")), tx)
    state = jax.device_put(state, sharding.replicated(mesh))
    parts = StepParts(
        model=model,
        tx=tx,
        schedule=settings.schedule,
        objective=settings.objective,
        ema=settings.ema,
        seed=settings.seed,
        divisor=settings.loader.divisor,
    )
    write_bundle(workdir / "bundle", bundle)
    best = bundle.best_metric
    checkpoints = Checkpoints(
        workdir / "bundle", metric=best["name"], mode=best["mode"], keep=settings.train.keep
    )
    first = checkpoints.latest_step() or 0
    if first:
        state = checkpoints.restore(first, state)
        print(f"Resuming at step {first:,} of {settings.train.steps:,}.", flush=True)
    log = RunLog(workdir / "logs", first_step=first)
    speed = 0.0
    try:
        if first < settings.train.steps:
            validation = make_validation(settings, store, model)
            speed = _loop(settings, parts, mesh, source, state, first, validation, checkpoints, log)
    finally:
        checkpoints.close()
        log.close()
    facts = {"steps": settings.train.steps, "parameters": count_parameters(state.params)}
    facts["best_step"] = checkpoints.best_step()
    facts |= {"devices": f"{mesh.size} x {jax.devices()[0].device_kind}", "n_sets": source.n_sets}
    return facts | ({"cells_per_second": round(speed)} if speed else {})


def _loop(settings, parts, mesh, source, state, first, validation, checkpoints, log) -> float:
    options, loader = settings.train, settings.loader
    step_of = compile_step(parts, mesh)
    rate = learning_rate(settings.optim, options.steps)
    progress = Progress(options.steps, "step", start=first)
    place = sharding.batch_sharding(mesh)
    pending, since, spent, done = [], time.monotonic(), 0.0, 0
    for k, batch in prefetch(source, first, stop_step=options.steps):
        state, metrics = step_of(state, jax.device_put(batch, place))
        pending.append(metrics)
        step = k + 1
        if step % options.log_every and step % options.validate_every and step != options.steps:
            continue
        # Fetching waits for the device; in between the host only dispatches.
        fetched = jax.device_get(pending)
        means = {name: float(np.mean([m[name] for m in fetched])) for name in fetched[0]}
        if not math.isfinite(means["loss/total"]):
            bad = (
                step
                - len(fetched)
                + next(i for i, m in enumerate(fetched) if not math.isfinite(m["loss/total"]))
            )
            raise FloatingPointError(
                f"loss is not finite in the steps up to {step} (first after step {bad}); "
                f"the last good checkpoint is {checkpoints.latest_step()}"
            )
        seconds = time.monotonic() - since
        cells = len(pending) * loader.sets_per_batch * loader.cells_per_set
        spent, done, pending = spent + seconds, done + cells, []
        means |= {"cells_per_second": cells / seconds, "learning_rate": float(rate(k))}
        log.write(step, "train", means)
        parts_text = f"mse {means['loss/mse']:.4f} energy {means['loss/energy']:.4f}"
        progress.show(step, f"loss {means['loss/total']:.4f} ({parts_text})  {cells / seconds:,.0f} cells/s")
        if step % options.validate_every == 0 or step == options.steps:
            scores = validation(state.ema)
            log.write(step, "validation", scores)
            checkpoints.save(state, scores)
            shown = "  ".join(f"{name.split('/')[1]} {value:.4f}" for name, value in scores.items())
            print(
                f"  {validation.split} ({len(validation)} conditions) at step {step:,}: {shown}", flush=True
            )
        since = time.monotonic()
    return done / max(spent, 1e-9)


def make_validation(settings: Settings, store: Store, model) -> SampledValidation:
    """Sampled validation on the validation split; on training conditions, said aloud, when there is none."""
    split = "validation"
    if not (store.groups.split == VALIDATION).any():
        split = "train"
        print("No validation split: checkpoints are compared on training conditions.", flush=True)
    walker = Walker(
        model,
        schedule=settings.schedule,
        sampler=settings.sampler,
        cells_per_set=settings.loader.cells_per_set,
        sets_per_batch=settings.predict.sets_per_batch,
        divisor=settings.loader.divisor,
        seed=settings.seed,
        zero_control=settings.objective.drop_control == 1,
    )
    options = settings.train
    return SampledValidation(
        store, walker, split=split, conditions=options.validation_conditions, cells=options.validation_cells
    )


def predict_test(settings: Settings, store: Store, workdir: Path) -> Path:
    """Predicts the test split with the best checkpoint, as many cells as the real data have."""
    model = load(workdir / "bundle")
    print(f"Predicting the held-out conditions with the checkpoint of step {model.step:,}.", flush=True)
    predicted = model.predict_design(
        split_design(store, "test"),
        from_store(store),
        draws=settings.predict.draws,
        sets_per_batch=settings.predict.sets_per_batch,
        seed=settings.seed,
    )
    return write_predictions(predicted, workdir / "predictions.h5ad")

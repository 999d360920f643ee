"""What comes after training, on one process: the model's error, predictions of the hold-out, scores, report."""

from pathlib import Path

from perturbdiff_jax.data.conditions import TEST, VALIDATION
from perturbdiff_jax.data.storage.joined import JoinedStores
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.evaluation.evaluate import evaluate
from perturbdiff_jax.evaluation.page.report import write_report
from perturbdiff_jax.predict import load
from perturbdiff_jax.prediction import model_error
from perturbdiff_jax.prediction.controls import from_store
from perturbdiff_jax.prediction.design import split_design
from perturbdiff_jax.prediction.zero_shot import in_words_of
from perturbdiff_jax.run_record import RunRecord
from perturbdiff_jax.settings import Settings


def predict_and_evaluate(settings: Settings, store: Store, workdir: Path, record: RunRecord) -> Path:
    """What comes after training, on one process: model error, predictions of the test split, scores, report.

    `store` has all cells; of a low-data run the rivals are fitted on the cells that the model was trained on.
    """
    if isinstance(store, JoinedStores):
        return zero_shot(settings, store, workdir, record)
    with record.stage("calibrate"):
        calibrate(settings, store, workdir)
    if not (store.groups.split == TEST).any():
        print("No condition is held out for testing: nothing to predict and score (see config.holdout).")
        return write_report(workdir)
    with record.stage("predict"):
        predictions = predict_test(settings, store, workdir, workdir / "predictions.h5ad")
    with record.stage("evaluate"):
        score(settings, store, predictions, workdir)
    record.finish()
    report = write_report(workdir)
    print(f"bundle       {workdir / 'bundle'}\npredictions  {predictions}\nreport       {report}")
    return report


def zero_shot(settings: Settings, store: JoinedStores, workdir: Path, record: RunRecord) -> Path:
    """What comes after pretraining: each screen's test split, predicted by a network that was told no perturbation.

    Every screen has a folder below WORKDIR/zero_shot with predictions, scores and a report of its own.
    """
    pages = []
    for name, screen in zip(store.names, store.stores):
        if not (screen.groups.split == TEST).any():
            continue
        folder = workdir / "zero_shot" / name
        folder.mkdir(parents=True, exist_ok=True)
        print(f"Zero-shot: the held-out conditions of {name}.", flush=True)
        with record.stage(f"zero-shot {name}"):
            predictions = predict_test(settings, screen, workdir, folder / "predictions.h5ad", source=name)
            score(settings, screen, predictions, folder)
            pages.append(write_report(folder))
    if not pages:
        print("No condition of any source is held out for testing: nothing to predict and score.")
    record.finish()
    report = write_report(workdir)
    print(f"bundle       {workdir / 'bundle'}\nreport       {report}")
    for page in pages:
        print(f"zero-shot    {page}")
    return report


def score(settings: Settings, store: Store, predictions: Path, output: Path) -> None:
    """Scores predictions of the test split beside the rivals; the results go into the folder `output`."""
    keys = store.manifest["keys"]
    evaluate(
        predictions,
        store.path,
        output,
        perturbation_key=keys["perturbation"],
        control=store.control,
        cell_type_key=keys["cell_type"],
        batch_key=keys["batch"],
        store=store,
        fraction=settings.data.fraction,
        fraction_seed=settings.data.fraction_seed,
        seed=settings.seed,
    )


def calibrate(settings: Settings, store: Store, workdir: Path) -> None:
    """Learns the model error of the best checkpoint on the validation split, unless it is known or there is none."""
    draws = settings.predict.calibration_draws
    if not draws or not (store.groups.split == VALIDATION).any():
        return
    model = load(workdir / "bundle")
    if model.error is None:
        found = model_error.learn(
            model,
            store,
            conditions=settings.train.validation_conditions,
            cells=settings.train.validation_cells,
            draws=draws,
            draw_batches=settings.predict.draw_batches,
            seed=settings.seed,
            sets_per_batch=settings.predict.sets_per_batch,
        )
        model_error.write(workdir / "bundle", found)
        print(found.told(), flush=True)


def predict_test(
    settings: Settings, store: Store, workdir: Path, output: Path, *, source: str | None = None
) -> Path:
    """Predicts the test split with the best checkpoint, as many cells as the real data have, into `output`.

    `source`: of several, the one that `store` is.
    """
    model = in_words_of(load(workdir / "bundle"), store)
    print(f"Predicting the held-out conditions with the checkpoint of step {model.step:,}.", flush=True)
    return model.predict_design_to(
        output,
        split_design(store, "test"),
        from_store(store, model.bundle, source=source),
        source=source,
        draws=settings.predict.draws,
        draw_batches=settings.predict.draw_batches,
        sets_per_batch=settings.predict.sets_per_batch,
        seed=settings.seed,
        anew=True,  # its parts are this run's own, from before its sampler or its weights were changed
    )

"""From a checkpoint bundle to predicted cells: `load(path)` gives a Predictor, whose one path is enough.

model = perturbdiff_jax.load("runs/quickstart")
predicted = model.predict(adata, perturbations=["P05"], cell_type_key="cell_type", batch_key="batch")
model.predict_to("predicted.h5ad", adata, perturbations=["P05"], cell_type_key="cell_type", batch_key="batch")
"""

import dataclasses
from pathlib import Path

import jax

from perturbdiff_jax import settings as run_settings
from perturbdiff_jax.bundle import FILE, Bundle, build_model, read_bundle, table_hashes
from perturbdiff_jax.checkpoint import WHICH, Checkpoints
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.prediction import model_error
from perturbdiff_jax.prediction.predictor import Predictor
from perturbdiff_jax.state import init_params


@dataclasses.dataclass(frozen=True)
class Opened:
    """A bundle whose facts were read and checked; its weights lie still on the disk."""

    path: Path
    bundle: Bundle
    options: run_settings.Settings
    checkpoints: Checkpoints


def open_bundle(path: str | Path) -> Opened:
    """Opens a bundle (or the work directory that holds one) without its weights.

    Raises:
      RequestError: not a bundle, of another version, or without any checkpoint.
    """
    path = Path(path)
    if not (path / FILE).exists() and (path / "bundle" / FILE).exists():
        path = path / "bundle"
    bundle = read_bundle(path)
    try:
        options = run_settings.from_config(bundle.settings)
    except RequestError as error:
        raise RequestError(f"{path / FILE}: {error}") from None
    best = bundle.best_metric
    checkpoints = Checkpoints(
        path, metric=best["name"], mode=best["mode"], keep=options.train.keep, read_only=True
    )
    return Opened(path, bundle, options, checkpoints)


def load(path: str | Path, *, which: str = "best") -> Predictor:
    """Opens a bundle (or the work directory that holds one) with its averaged weights.

    Args:
      path: bundle directory.
      which: "best" checkpoint by the validation metric, or the "latest". One that is damaged is passed over, with a
        warning, for the next best or the next older.

    Raises:
      RequestError: not a bundle, incomplete, damaged, or of another version.
    """
    if which not in WHICH:
        raise RequestError(f"which={which!r}: allowed are {', '.join(WHICH)}.")
    return with_weights(open_bundle(path), which=which)


def with_weights(opened: Opened, *, which: str = "best") -> Predictor:
    """The averaged weights of an opened bundle; arguments and errors as of `load`."""
    path, bundle, options = opened.path, opened.bundle, opened.options
    model = build_model(bundle, options.model)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    step, params = opened.checkpoints.weights(which, shapes)
    for covariate, found in table_hashes(params).items():
        if bundle.tables[covariate].get("sha256", found) != found:
            raise RequestError(
                f"{path}: the {covariate} table is not the one that bundle.json names (sha256 {found[:12]}...)."
            )
    facts = {"path": path, "bundle": bundle, "options": options, "model": model, "params": params}
    return Predictor(**facts, step=step, error=model_error.read(path, step))

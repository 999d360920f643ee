"""From a checkpoint bundle to predicted cells: `load(path)` gives a Predictor, whose one path is enough.

model = perturbdiff_jax.load("runs/quickstart")
predicted = model.predict(adata, perturbations=["P05"], cell_type_key="cell_type", batch_key="batch")
model.predict_to("predicted.h5ad", adata, perturbations=["P05"], cell_type_key="cell_type", batch_key="batch")
"""

from pathlib import Path

import jax

from perturbdiff_jax import settings as run_settings
from perturbdiff_jax.bundle import build_model, read_bundle, table_hashes
from perturbdiff_jax.checkpoint import WHICH, Checkpoints
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.prediction import model_error
from perturbdiff_jax.prediction.predictor import Predictor
from perturbdiff_jax.state import init_params


def load(path: str | Path, *, which: str = "best") -> Predictor:
    """Opens a bundle (or the work directory that holds one) with its averaged weights.

    Args:
      path: bundle directory.
      which: "best" checkpoint by the validation metric, or the "latest". One that is damaged is passed over, with a
        warning, for the next best or the next older.

    Raises:
      RequestError: not a bundle, incomplete, damaged, or of another version.
    """
    path = Path(path)
    if not (path / "bundle.json").exists() and (path / "bundle" / "bundle.json").exists():
        path = path / "bundle"
    if which not in WHICH:
        raise RequestError(f"which={which!r}: allowed are {', '.join(WHICH)}.")
    bundle = read_bundle(path)
    try:
        options = run_settings.from_config(bundle.settings)
    except RequestError as error:
        raise RequestError(f"{path / 'bundle.json'}: {error}") from None
    model = build_model(bundle, options.model)
    best = bundle.best_metric
    checkpoints = Checkpoints(
        path, metric=best["name"], mode=best["mode"], keep=options.train.keep, read_only=True
    )
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    step, params = checkpoints.weights(which, shapes)
    for covariate, found in table_hashes(params).items():
        if bundle.tables[covariate].get("sha256", found) != found:
            raise RequestError(
                f"{path}: the {covariate} table is not the one that bundle.json names (sha256 {found[:12]}...)."
            )
    opened = {"path": path, "bundle": bundle, "options": options, "model": model, "params": params}
    return Predictor(**opened, step=step, error=model_error.read(path, step))

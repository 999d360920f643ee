"""Stores whose hold-out is whole perturbations, and networks that are told of them by tables; nothing is trained."""

import jax
import numpy as np
from tiny_run import tiny_config

from perturbdiff_jax.bundle import build_model, write_bundle
from perturbdiff_jax.covariate_setup import tell
from perturbdiff_jax.models.covariates import FROZEN
from perturbdiff_jax.prediction.predictor import Predictor
from perturbdiff_jax.run_setup import describe, settle
from perturbdiff_jax.settings import from_config
from perturbdiff_jax.state import init_params

# P02 and P04 have no training cell.
WHOLE = {"holdout__batch": None, "holdout__fraction": 0.4, "holdout__validation_fraction": 0.0}
NAMES = ["P01", "P02", "P03", "P04", "P06", "NEW", "NEAR3"]  # P05 is not there


def vectors():
    """[7, 5]: the last is almost that of P03."""
    table = np.random.default_rng(3).normal(size=(len(NAMES), 5)).astype(np.float32)
    table[-1] = 2 * table[2] + 0.01
    return table


def write_table(path, names=NAMES, table=None):
    table = vectors() if table is None else table
    np.savez(path, names=np.array(names), vectors=table)
    return path


def settled(store, **changes):
    """Settings of a tiny run on `store`."""
    return settle(from_config(tiny_config(**WHOLE | changes)), store)


def untrained(store, path, seed=0, **changes):
    """A Predictor with drawn weights that is told as the settings say; its bundle lies at `path`."""
    settings = settled(store, **changes)
    told = tell(settings, store)
    bundle = describe(settings, store, told)
    model = build_model(bundle, settings.model)
    params = init_params(model, jax.random.key(seed))
    # Drawn weights give zeros for every covariate, because modulations and the head begin with zeros.
    params = jax.tree.map(
        lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params
    )
    own = {FROZEN + role: rows.frozen for role, rows in told.rows.items() if rows.frozen is not None}
    params = {**params, "covariates": {**params["covariates"], **own}}
    write_bundle(path, bundle)
    told.write(path)
    return Predictor(path=path, bundle=bundle, options=settings, model=model, params=params, step=1)

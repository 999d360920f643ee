"""The first state of a finetuned run and the bundle that it begins with; nothing is trained."""

import jax
import numpy as np
from tiny_run import tiny_config

from perturbdiff_jax import sharding
from perturbdiff_jax.bundle import build_model
from perturbdiff_jax.checkpoint import Checkpoints
from perturbdiff_jax.finetuning.start import Start, covariate_genes
from perturbdiff_jax.optim import optimizer
from perturbdiff_jax.run_setup import describe, settle
from perturbdiff_jax.settings import from_config
from perturbdiff_jax.state import as_stored
from perturbdiff_jax.step import StepParts, initial_state

SEEN = {"holdout__batch": "B2", "holdout__fraction": 0.5, "holdout__validation_fraction": 0.2}


def saved(model):
    with Checkpoints(model.path, metric="energy", mode="min", keep=2) as checkpoints:
        checkpoints.save_weights(1, model.params)
    return model


def begun(store, source, tmp_path, seed=1, **changes):
    """(arrays of the first state by path, account, settings, bundle) of a run that begins with `source`."""
    changes = SEEN | {"init_from": str(source.path)} | changes
    settings = settle(from_config(tiny_config(**changes)), store)
    bundle = describe(settings, store, covariate_genes=covariate_genes(settings, tmp_path / "none"))
    parts = StepParts(
        model=build_model(bundle, settings.model),
        tx=optimizer(settings.optim, 6),
        schedule=settings.schedule,
        objective=settings.objective,
        ema=settings.ema,
        seed=seed,
    )
    drawn = initial_state(parts, sharding.make_mesh(settings.mesh))
    state, account = Start.of(settings).put_into(drawn, bundle, settings)
    same = jax.tree.map(lambda a, b: a.shape == b.shape and a.sharding == b.sharding, drawn, state)
    assert all(jax.tree.leaves(same))
    for one, other in zip(jax.tree.leaves(state.params), jax.tree.leaves(state.ema), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one is not other
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state.opt_state))
    return flat(as_stored(state).params), flat(as_stored(drawn).params), account, bundle


def flat(tree):
    return {"/".join(k.key for k in path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


class Renamed:
    """A store with other vocabularies: what `describe` and `tell` read of one."""

    def __init__(self, store, **names):
        self.__dict__.update(store.__dict__)
        self.path, self.groups, self.manifest, self.control = (
            store.path,
            store.groups,
            store.manifest,
            store.control,
        )
        self.genes, self.perturbations = store.genes, store.perturbations
        self.cell_types, self.batches, self.is_counts = store.cell_types, store.batches, store.is_counts
        self.__dict__.update(names)
        self.measured = np.ones((1, len(self.genes)), bool)

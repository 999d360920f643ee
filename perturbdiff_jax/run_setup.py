"""What a run is made of before its first step: the settled settings, the facts of its bundle."""

import dataclasses
import math

import numpy as np

from perturbdiff_jax.bundle import Bundle, package_versions
from perturbdiff_jax.covariate_setup import Told, tell
from perturbdiff_jax.data.conditions import TEST, TRAIN, VALIDATION
from perturbdiff_jax.data.embeddings.registry import ONEHOT, parts_of
from perturbdiff_jax.data.loading.index import index_sets
from perturbdiff_jax.data.storage.joined import JoinedStores
from perturbdiff_jax.data.storage.measured import mask_text
from perturbdiff_jax.data.storage.view import regroup
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.data.training_cells import grouping_of, targets_of
from perturbdiff_jax.errors import RequestError, shorten
from perturbdiff_jax.run_options import BEST_METRICS, TrainOptions
from perturbdiff_jax.settings import Settings

LARGEST_LOGNORM = 14.0  # cap of predictions where the total of a cell is not known


def settle(settings: Settings, store: Store) -> Settings:
    """Decides what is `auto`: a held-out cell type or batch without any perturbed training cell.

    A table row for it would never be trained: the covariate is left out and read off the control cells, which then
    are training targets as well.
    """
    groups, unseen = store.groups, {}
    targets = _targets(settings, store)
    for role, vocabulary in (("cell_type", store.cell_types), ("batch", store.batches)):
        codes = getattr(groups, role)
        trained = set(codes[targets].tolist())
        held = set(codes[(groups.split == VALIDATION) | (groups.split == TEST)].tolist())
        unseen[role] = [vocabulary[code] for code in sorted(held - trained)]
    model, loader = settings.model, settings.loader
    if any(name != ONEHOT for name, _ in parts_of(settings.covariates.cell_type, "", "cell_type")):
        unseen["cell_type"] = []  # a table tells them
    for role, names in unseen.items():
        if getattr(model, f"use_{role}") != "auto":
            continue
        model = dataclasses.replace(model, **{f"use_{role}": "no" if names else "yes"})
        if names:
            print(
                f"No perturbed cell of {shorten(names)} in training: its {role} is read off the control cells."
            )
    if loader.train_on_controls == "auto":
        loader = dataclasses.replace(loader, train_on_controls="yes" if any(unseen.values()) else "no")
    settings = dataclasses.replace(settings, model=model, loader=loader)
    return dataclasses.replace(settings, train=_limited(settings, store))


def _targets(settings: Settings, store: Store, *, with_controls: bool = False) -> np.ndarray:
    loader = settings.loader
    rule = {"group_by": loader.group_by, "min_cells": loader.min_cells}
    return targets_of(store, **rule, with_controls=with_controls)


def _limited(settings: Settings, store: Store) -> TrainOptions:
    """The training options with `max_epochs` turned into steps: a small screen is learned by heart otherwise."""
    train, loader = settings.train, settings.loader
    if train.max_epochs is None:
        return train
    views = (
        [regroup(store, loader.group_by)]
        if not isinstance(store, JoinedStores)
        else [regroup(one, grouping_of(one, loader.group_by)) for one in store.stores]
    )
    rule = {"cells_per_set": loader.cells_per_set, "min_cells": loader.min_cells}
    rule |= {"split": "train", "with_controls": loader.train_on_controls == "yes"}
    sets = sum(index_sets(view.groups, **rule, name=view.path).n_sets for view in views)
    limit = max(1, math.ceil(train.max_epochs * sets / loader.sets_per_batch))
    if limit >= train.steps:
        return train
    print(
        f"Training takes {limit:,} steps: {train.max_epochs:g} passes over {sets:,} sets (train.max_epochs)."
    )
    return dataclasses.replace(train, steps=limit)


def describe(
    settings: Settings, store: Store, told: Told | None = None, *, covariate_genes: int = 0
) -> Bundle:
    """The bundle's facts: everything that a prediction needs besides weights and embedding files.

    `told` is what covariate_setup.tell says of the same settings and store; it is asked when None. `covariate_genes`
    is the width of an inherited covariate encoder, 0 = that of a drawn one.
    """
    told = told or tell(settings, store)
    groups, joined = store.groups, isinstance(store, JoinedStores)
    with_controls = settings.loader.train_on_controls == "yes"
    seen = np.flatnonzero(_targets(settings, store, with_controls=with_controls))
    if not (groups.split == TRAIN).any() and not (joined and len(seen)):
        raise RequestError(f"{store.path}: no perturbed cell is left for training; hold out less.")
    triples = zip(groups.perturbation[seen], groups.cell_type[seen], groups.batch[seen])
    # Of joined stores many groups differ in the perturbation alone, which is not told.
    named = dict.fromkeys((int(p), int(c), int(b)) for p, c, b in triples)
    best = settings.train.best_metric
    values = store.manifest["values"]
    # Counts that were recovered from log1p values: the file's own target sum may be another one.
    known_total = store.is_counts and not values.get("recovered")
    return Bundle(
        genes=store.genes,
        perturbations=store.perturbations,
        cell_types=store.cell_types,
        batches=store.batches,
        control=store.control,
        keys=store.manifest["keys"],
        values={
            "target_sum": values["target_sum"],
            "log": "log1p",
            "divisor": settings.loader.divisor,
            "largest": math.log1p(values["target_sum"]) if known_total else LARGEST_LOGNORM,
            **({} if (known := store.measured.any(axis=0)).all() else {"measured": mask_text(known)}),
        },
        trained=[[store.perturbations[p], store.cell_types[c], store.batches[b]] for p, c, b in named],
        split=store.manifest["split"],
        settings=settings.to_dict(),
        best_metric={"name": best, "mode": BEST_METRICS[best].__name__},
        versions=package_versions(),
        tables=told.facts(),
        doses=told.doses,
        covariate_genes=0 if covariate_genes == len(store.genes) else covariate_genes,
        sources=store.names if joined else [],
        datasets={name: name for name in store.names} if joined else {},
    )

"""The cells of a run: a store that is named, or prepared from files or simulation; or several sources side by side."""

import dataclasses
from pathlib import Path

from perturbdiff_jax.data.low_data import low_data
from perturbdiff_jax.data.prepare import PrepareOptions, prepare
from perturbdiff_jax.data.simulated.forms import FORMS, keys_of, write_form, write_split
from perturbdiff_jax.data.simulated.sources import SimulatedSource, write_sources
from perturbdiff_jax.data.storage.joined import JoinedStores
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.data.training_cells import KeptCells, kept_cells_of
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.settings import Settings

# What a run makes below its work directory before it has a store; of no use to a request that was refused.
MADE_BEFORE = ("simulated.h5ad", "simulated_split.json", "simulated")


def open_store(settings: Settings, workdir: Path) -> Store | JoinedStores:
    """The store of a run: the one named, or one prepared below the work directory from h5ad files or simulation.

    Of several sources (config.data.sources, config.simulate.form=sources), all side by side.
    """
    data = settings.data
    if data.sources:
        return JoinedStores({name: Store.open(path) for name, path in data.source_stores().items()})
    if data.store:
        return Store.open(data.store)
    inputs = [name.strip() for name in data.input.split(",") if name.strip()]
    if not inputs and settings.simulate.form == "sources":
        return _simulated_sources(settings, workdir)
    path = workdir / "store"
    if path.exists():
        return Store.open(path)
    if not inputs:
        simulated = workdir / "simulated.h5ad"
        # Drawn anew even if a file is there: it may be from a run with other settings that got no further.
        form, split = settings.simulate.form, workdir / "simulated_split.json"
        what = f"{FORMS[form].source} in small" if form in FORMS else "a perturbation screen"
        print(f"Simulating {what} (no config.data.input was given).", flush=True)
        write_form(settings.simulate, simulated)
        inputs = [str(simulated)]
        data = dataclasses.replace(data, **keys_of(form))
        if form in FORMS and data.split:
            data = dataclasses.replace(
                data, split=str(write_split(data.split, settings.simulate, form, split))
            )
    return prepare(inputs, path, _options(settings, data))


def _options(settings: Settings, data) -> PrepareOptions:
    return data.prepare_options(
        settings.holdout, seed=settings.seed, cells_per_set=settings.loader.cells_per_set
    )


def _simulated_sources(settings: Settings, workdir: Path) -> JoinedStores:
    """A store for each of the simulated data sets, WORKDIR/stores/NAME, in the genes that any of them measures."""
    folder, stores = workdir / "simulated", workdir / "stores"
    names = [form.source for form in FORMS.values()]
    if not all((stores / name).exists() for name in names):
        print(f"Simulating {', '.join(names)} in small (no config.data.sources were given).", flush=True)
        sources = write_sources(settings.simulate, folder)
        genes = folder / "genes.txt"
        genes.write_text("\n".join(_genes(sources)) + "\n")
        for source in sources:
            if not (stores / source.name).exists():
                prepare([source.path], stores / source.name, _options_of(settings, source, genes))
    return JoinedStores({name: Store.open(stores / name) for name in names})


def _options_of(settings: Settings, source: SimulatedSource, genes: Path) -> PrepareOptions:
    data = dataclasses.replace(
        settings.data,
        perturbation_key=source.perturbation_key or "",
        control=source.control or "control",
        unperturbed=source.perturbation_key is None,
        cell_type_key=source.cell_type_key,
        batch_key=source.batch_key,
        split=None if source.split is None else str(source.split),
        genes=str(genes),
        absent_genes="zero",
    )
    options = _options(settings, data)
    return dataclasses.replace(options, holdout=None) if data.unperturbed else options


def _genes(sources: list[SimulatedSource]) -> list[str]:
    """The genes of all files, in the order of their names."""
    import anndata

    found: set[str] = set()
    for source in sources:
        file = anndata.read_h5ad(source.path, backed="r")
        found |= set(file.var_names)
        file.file.close()
    return sorted(found)


def training_share(settings: Settings, store: Store | JoinedStores) -> tuple[Store, KeptCells | None]:
    """The store with the training cells that `data.fraction` leaves, and an account of them (None: all).

    Raises RequestError when a perturbation is left without cells that can be used.
    """
    data, loader = settings.data, settings.loader
    if data.fraction == 1:
        return store, None
    if isinstance(store, JoinedStores):
        raise RequestError("config.data.fraction: is for training on one store, not for several sources.")
    share = low_data(store, fraction=data.fraction, seed=data.fraction_seed)
    rule = {"group_by": loader.group_by, "min_cells": loader.min_cells}
    return share, kept_cells_of(store, share, fraction=data.fraction, **rule)


def store_facts(store: Store | JoinedStores) -> dict:
    """What the run record and the report say about the cells."""
    manifest = store.manifest
    return {
        "name": ", ".join(Path(s["path"]).name for s in manifest["sources"]),
        "path": str(store.path),
        "cells": store.n_cells,
        "genes": len(store.genes),
        "perturbations": len(store.perturbations) - 1,
        "cell_types": len(store.cell_types),
        "batches": len(store.batches),
        "split": manifest["split"],
    }

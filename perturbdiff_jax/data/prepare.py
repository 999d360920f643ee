"""`perturbdiff prepare`: h5ad files -> checked, normalised, grouped, split -> a store.

The story in order: read who the cells are, name the groups, split them; look at every number and choose genes on
training and control cells only; scatter the rows into parts in the store's order and gather them, shard by shard; print
a table. Memory is bounded, whatever the number of cells. A refusal leaves nothing behind, a killed run leaves
what the next one can use.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from perturbdiff_jax.data import genes as gene_choice
from perturbdiff_jax.data.conditions import CONTROL, TRAIN, Conditions
from perturbdiff_jax.data.groups import Groups, group_cells
from perturbdiff_jax.data.preparation.checksums import EarlyChecksums
from perturbdiff_jax.data.preparation.gather import gather, scatter
from perturbdiff_jax.data.preparation.gene_columns import GeneColumns, gene_columns
from perturbdiff_jax.data.preparation.gene_names import name_genes
from perturbdiff_jax.data.preparation.journal import Workplace, fingerprint
from perturbdiff_jax.data.preparation.labels import ROLES, Labels, read_labels, store_obs
from perturbdiff_jax.data.preparation.options import UNSEEN, check_options
from perturbdiff_jax.data.preparation.options import PrepareOptions as PrepareOptions
from perturbdiff_jax.data.preparation.scan import TASK, Crew, Survey, stretches, survey
from perturbdiff_jax.data.preparation.table import table
from perturbdiff_jax.data.preparation.workers import Workers
from perturbdiff_jax.data.splits import Assignment, assign
from perturbdiff_jax.data.storage import measured
from perturbdiff_jax.data.storage.writer import check_output
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.errors import RequestError

PARALLEL = 16 * 1024 * 1024  # numbers from which on starting processes pays
WORKER_BYTES = 320 * 1024 * 1024  # memory that a worker needs
HELD_BYTES = 12  # memory for each number when all cells are held at once
SPILLED_BYTES = 10  # room on the disk for each number, at most: its part and its place in the store
CELL_BYTES = 120  # memory for each cell all the time: labels, orders and pointers


def prepare(
    inputs: Sequence[str | pathlib.Path],
    output: str | pathlib.Path,
    options: PrepareOptions,
    *,
    echo: Callable[[str], None] = print,
) -> Store:
    """Writes the store `output` (a folder or URL) from h5ad files, and opens it.

    Counts are stored as they are with a float32 scale, target_sum / total, where total is obs[total_key] or the cell's
    sum over ALL genes of its file. Log1p values are stored as the counts they were made from, with the scale that gives
    them back, if every cell allows it, otherwise as float32. Files may differ in their genes
    (preparation/gene_columns.py). `echo` gets progress and the closing table. Raises RequestError for wrong input; then
    nothing is written.
    """
    check_options(inputs, options)
    if "://" in str(output):
        return _prepare_remote(inputs, str(output), options, echo)
    output = pathlib.Path(output)
    check_output(output, overwrite=options.overwrite)
    early = EarlyChecksums([str(path) for path in inputs] if _pays(inputs, options) else [])
    labels = read_labels(inputs, options)
    _check_memory(len(labels), options)
    order, groups, assignment = _group(labels, options)
    for note in assignment.notes:
        echo(note)
    labels, naming = name_genes(labels, options, echo)
    columns = gene_columns(labels, options, echo)
    parts, matrices, numbers = stretches(labels, options)
    processes = min(options.workers, len(parts), max(1, options.memory // WORKER_BYTES))
    processes = processes if numbers >= PARALLEL else 1
    keeping = processes > 1 or numbers * HELD_BYTES + len(labels) * CELL_BYTES > options.memory
    with (
        Workplace(output, needed=numbers * SPILLED_BYTES, echo=echo) as place,
        Workers(processes, lock=place.lock) as workers,
    ):
        place.begin(_plan(labels, order, groups, columns, naming, options))
        if not place.is_written:
            crew = Crew(workers, place, keeping or place.holds_results, echo)
            counted = _counted(order, groups, columns)
            seen = survey(parts, matrices, labels, columns, counted, options, crew, early)
            if columns.origin is None:
                columns = _variable(columns, seen, options, echo)
            ordered = scatter(parts, labels, columns, seen, order, options, crew)
            obs = store_obs(labels, order, options)
            writer = gather(ordered, place.new_store(), columns, obs, seen, options, crew)
            facts = _facts(labels, groups, assignment, seen, columns, options)
            writer.finish({**facts, "gene_names": naming, "sources": _sources(labels, seen)})
        place.finish(overwrite=options.overwrite)
    store = Store.open(output)
    for line in table(store, cells_per_set=options.cells_per_set, genes_from=store.manifest["genes_from"]):
        echo(line)
    return store


def _pays(inputs: Sequence[str | pathlib.Path], options: PrepareOptions) -> bool:
    """Whether there is enough to read for two CPUs."""
    if options.workers < 2:
        return False
    return sum(os.path.getsize(path) for path in inputs if os.path.isfile(path)) >= PARALLEL


def _counted(order: np.ndarray, groups: Groups, columns: GeneColumns) -> np.ndarray | None:
    """The cells that highly variable genes are chosen by, bool [cells in the files' order]; None: no choice."""
    if columns.origin is not None:
        return None
    counted = np.empty(len(order), dtype=bool)
    counted[order] = np.repeat(np.isin(groups.split, (TRAIN, CONTROL)), groups.size)
    return counted


def _prepare_remote(
    inputs: Sequence[str | pathlib.Path], url: str, options: PrepareOptions, echo: Callable[[str], None]
) -> Store:
    """Prepares in a folder of this machine, the same for the same URL so that a killed run goes on, and copies."""
    from perturbdiff_jax.data.storage.copy import check_target, copy_store

    check_target(url, overwrite=options.overwrite)
    scratch = pathlib.Path(options.scratch or tempfile.gettempdir())
    folder = scratch / f"perturbdiff-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    prepare(inputs, folder / "store", dataclasses.replace(options, overwrite=True), echo=echo)
    try:
        copy_store(folder / "store", url, overwrite=options.overwrite, echo=echo)
    except BaseException:
        echo(f"{url}: not copied; the whole store is in {folder / 'store'}.")
        raise
    shutil.rmtree(folder, ignore_errors=True)
    return Store.open(url)


def _check_memory(cells: int, options: PrepareOptions) -> None:
    if cells * CELL_BYTES > options.memory:
        raise RequestError(
            f"--memory {options.memory / 2**30:.1f} GiB: the labels of {cells:,} cells alone take "
            f"{cells * CELL_BYTES / 2**30:.1f} GiB.\nGive more, or prepare some files at a time and --merge the stores."
        )


def _group(labels: Labels, options: PrepareOptions) -> tuple[np.ndarray, Groups, Assignment]:
    # The control's name comes first among the perturbations: its code is 0.
    coded = {role: getattr(labels, role) for role in ROLES}
    order, groups = group_cells(*(coded[role].codes for role in ROLES), control=0, seed=options.seed)
    named = {role: [coded[role].names[code] for code in getattr(groups, role)] for role in ROLES}
    columns = {role: getattr(options, f"{role}_key") for role in ROLES if getattr(options, f"{role}_key")}
    conditions = Conditions(**named, control=options.control, columns=columns)
    assignment = assign(conditions, split=options.split, holdout=options.holdout)
    return order, dataclasses.replace(groups, split=assignment.codes), assignment


def _plan(
    labels: Labels,
    order: np.ndarray,
    groups: Groups,
    columns: GeneColumns,
    naming: dict[str, Any] | None,
    options: PrepareOptions,
) -> dict[str, Any]:
    """All that the working folder's contents depend on."""
    wishes = {name: value for name, value in dataclasses.asdict(options).items() if name not in UNSEEN}
    wishes["map"] = None if options.map is None else str(options.map)
    digest = hashlib.sha256("\n".join(columns.names).encode())
    for array in (order, groups.split, groups.size, *columns.places):
        digest.update(np.ascontiguousarray(array).view(np.uint8))
    if labels.total is not None:
        digest.update(labels.total.view(np.uint8))
    return {
        "version": 1,
        "options": wishes,
        "sources": labels.prints,
        "gene_names": naming,
        "task": TASK,
        "cells": digest.hexdigest(),
    }


def _variable(
    columns: GeneColumns, seen: Survey, options: PrepareOptions, echo: Callable[[str], None]
) -> GeneColumns:
    """Highly variable genes only."""
    chosen = np.flatnonzero(gene_choice.highly_variable(seen.moments, options.hvg))
    if len(chosen) < options.hvg:
        echo(
            f"{options.hvg:,} highly variable genes asked for, {len(chosen):,} vary over the training cells."
        )
    if len(chosen) > options.hvg:
        echo(f"{options.hvg:,} highly variable genes asked for, {len(chosen):,} kept: some tie at the cut.")
    return columns.keep(chosen, f"highly variable, over {seen.moments.cells:,} training and control cells")


def _sources(labels: Labels, seen: Survey) -> list[dict]:
    """What the manifest says about the files; RequestError for one that is no longer what was read."""
    sources = []
    for number, (path, was) in enumerate(zip(labels.files, labels.prints, strict=True)):
        if fingerprint(path) != was:
            raise RequestError(f"{path}: has changed while it was read. Run prepare again.")
        own = labels.of_file(number)
        facts = {"path": path, "cells": own.stop - own.start, "bytes": was["bytes"]}
        sources.append({**facts, "sha256": seen.sha256[number], "matrix": seen.matrices[number]})
    return sources


def _facts(
    labels: Labels,
    groups: Groups,
    assignment: Assignment,
    seen: Survey,
    columns: GeneColumns,
    options: PrepareOptions,
) -> dict[str, Any]:
    """The manifest, but for what the writer knows."""
    return {
        "n_cells": len(labels),
        "keys": {role: getattr(options, f"{role}_key") for role in (*ROLES, "dose")},
        "control": options.control,
        "perturbations": labels.perturbation.names,
        "cell_types": labels.cell_type.names,
        "batches": labels.batch.names,
        "groups": groups.to_json(),
        "split": assignment.info,
        "genes_from": columns.origin,
        "gene_list": _gene_list(columns, options),
        "measured": measured.written(columns.measured),
        "seed": options.seed,
        "values": {
            "encoding": seen.stored_as,
            "recovered": seen.recovered,
            "target_sum": options.target_sum,
            "total_key": options.total_key,
            "log": "log1p",
        },
    }


def _gene_list(columns: GeneColumns, options: PrepareOptions) -> dict[str, Any] | None:
    if columns.listed is None:
        return None
    return {"path": str(options.genes), "listed": columns.listed, "absent": options.absent_genes}

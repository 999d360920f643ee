"""What `prepare` is asked for, and which wishes are refused before anything is read."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from perturbdiff_jax.data.gene_naming.source_names import check_map
from perturbdiff_jax.data.storage.shards import CODECS
from perturbdiff_jax.data.values import ENCODINGS
from perturbdiff_jax.errors import RequestError, unknown

ABSENT = ("drop", "zero")
LEAST_MEMORY = 1024 * 1024
MOST_WORKERS = 8  # by default: more rarely find enough to read


def processors() -> int:
    """Processes that may read by default: one for each CPU that this one may use, at most MOST_WORKERS."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, count)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """What `prepare` is asked for; the command line's options under the same names.

    `unperturbed`: no cell is perturbed (RNA-seq to pretrain on); there is no perturbation key, and all cells are
    control cells, under the label `control`. `holdout` is splits.hold_out's rule,
    {"fraction", "context", "validation_fraction", "seed"}. Of hvg, genes
    and all_genes the later ones win: `all_genes`, then `genes`, then `hvg`. hvg None means all genes. `absent_genes`
    says what becomes of listed genes that no file has: "drop" leaves them out, "zero" keeps the whole list in its
    order, with empty columns that the manifest marks as not measured. `gene_key` is the column of var with the gene
    names (None: its index), `map` a table of two names for each gene, `map_to` its column whose names are wanted (None:
    the second); a list is not turned. `seed` orders the cells inside groups.
    `cells_per_set` only serves the table. `memory` (bytes) bounds the cells and labels held at once, `workers` the
    processes that read, `codec` packs the arrays; a store for a URL is made in the folder `scratch` (None: the
    system's) first. Memory and workers do not change the store.
    """

    perturbation_key: str | None = None
    control: str = "control"
    unperturbed: bool = False
    cell_type_key: str | None = None
    batch_key: str | None = None
    dose_key: str | None = None
    layer: str | None = None
    gene_key: str | None = None
    map: str | pathlib.Path | None = None
    map_to: str | None = None
    values: str = "auto"
    total_key: str | None = None
    target_sum: float = 1e4
    hvg: int | None = 2000
    genes: str | None = None
    absent_genes: str = "drop"
    all_genes: bool = False
    split: str | None = None
    holdout: dict | None = None
    seed: int = 0
    cells_per_set: int = 32
    overwrite: bool = False
    memory: int = 2 * 1024**3
    workers: int = dataclasses.field(default_factory=processors)
    codec: str = "lz4"
    scratch: str | None = None


UNSEEN = (
    "cells_per_set",
    "overwrite",
    "memory",
    "workers",
    "scratch",
)  # options that leave the store as it is


def check_reading(inputs: Sequence[str | pathlib.Path], options: Any) -> None:
    """Raises RequestError for wrong files, or values, target_sum, hvg, workers or memory of `options`."""
    if not inputs:
        raise RequestError("--input: no file given.")
    paths = [pathlib.Path(path).resolve() for path in inputs]
    again = [str(path) for path in paths if paths.count(path) > 1]
    if again:
        raise RequestError(f"--input: {again[0]} is given twice; its cells would count twice.")
    if options.values not in ("auto", *ENCODINGS):
        raise unknown("--values", options.values, ("auto", *ENCODINGS))
    if not (np.isfinite(options.target_sum) and options.target_sum > 0):
        raise RequestError(f"--target-sum {options.target_sum}: allowed is a number above 0.")
    if options.hvg is not None and options.hvg < 1:
        raise RequestError(f"--hvg {options.hvg}: allowed are 1 or more genes.")
    if options.workers < 1:
        raise RequestError(f"--workers {options.workers}: allowed is 1 or more.")
    if options.memory < LEAST_MEMORY:
        raise RequestError(f"--memory {options.memory} bytes: allowed is 1MiB or more.")


def check_options(inputs: Sequence[str | pathlib.Path], options: PrepareOptions) -> None:
    """Raises RequestError for anything that is wrong whatever the files hold."""
    check_reading(inputs, options)
    if options.codec not in CODECS:
        raise unknown("--codec", options.codec, CODECS)
    if options.cells_per_set < 1:
        raise RequestError(f"cells per set {options.cells_per_set}: allowed is 1 or more.")
    check_map(options.map, options.map_to)
    if options.absent_genes not in ABSENT:
        raise unknown("--absent-genes", options.absent_genes, ABSENT)
    if options.absent_genes == "zero" and (options.genes is None or options.all_genes):
        raise RequestError(
            "--absent-genes zero is about the genes of a list: give --genes LIST (no --all-genes)."
        )
    if options.unperturbed == (options.perturbation_key is not None):
        raise RequestError(
            "--perturbation-key and --unperturbed: give one of them, the obs column of the perturbation, or that no "
            "cell is perturbed."
        )
    if options.unperturbed and (options.dose_key or options.split or options.holdout):
        raise RequestError("--unperturbed: cells without perturbations have no doses, and none is held out.")
    if options.seed < 0:
        raise RequestError(f"seed {options.seed}: allowed is 0 or more.")
    keys = [options.perturbation_key, options.cell_type_key, options.batch_key, options.dose_key]
    given = [key for key in keys if key]
    twice = {key for key in given if given.count(key) > 1}
    if twice:
        raise RequestError(f"column {twice.pop()!r} was given for two keys; allowed is one obs column each.")
    taken = [key for key in given if key in ("source", "source_row")]
    if taken:
        raise RequestError(
            f"column {taken[0]!r}: the store uses this name itself. Rename the column in the file."
        )

"""`perturbdiff prepare`: h5ad files -> checked, normalised, grouped, split -> a store.

The story in order: read and check every file, name the groups, split them, choose genes on training and
control cells only, write the store in group order, print a table. Nothing is left behind when a step refuses.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from perturbdiff_jax.data import genes as gene_choice
from perturbdiff_jax.data.cells import Cells, read_cells, select_columns
from perturbdiff_jax.data.conditions import CONTROL, TRAIN, Conditions
from perturbdiff_jax.data.groups import Groups, group_cells
from perturbdiff_jax.data.labels import Labels, read_labels
from perturbdiff_jax.data.prepare_table import table
from perturbdiff_jax.data.splits import Assignment, assign
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.data.store_writer import StoreWriter, check_output, new_directory
from perturbdiff_jax.data.values import ENCODINGS
from perturbdiff_jax.errors import RequestError, shorten, unknown

BLOCK_ROWS = 8192  # cells gathered at once for statistics and for writing


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """What `prepare` is asked for; the command line's options under the same names.

    `holdout` is splits.hold_out's rule, {"fraction", "context", "validation_fraction", "seed"}. Of hvg, genes
    and all_genes the later ones win: `all_genes`, then `genes`, then `hvg`. hvg None means all genes. `seed`
    orders the cells inside groups. `cells_per_set` only serves the table.
    """

    perturbation_key: str
    control: str
    cell_type_key: str | None = None
    batch_key: str | None = None
    dose_key: str | None = None
    layer: str | None = None
    values: str = "auto"
    total_key: str | None = None
    target_sum: float = 1e4
    hvg: int | None = 2000
    genes: str | None = None
    all_genes: bool = False
    split: str | None = None
    holdout: dict | None = None
    seed: int = 0
    cells_per_set: int = 32
    overwrite: bool = False


def prepare(
    inputs: Sequence[str | pathlib.Path],
    output: str | pathlib.Path,
    options: PrepareOptions,
    *,
    echo: Callable[[str], None] = print,
) -> Store:
    """Writes the store `output` from h5ad files with one and the same set of genes, and opens it.

    Counts are stored as they are with a float32 scale, target_sum / total, where total is obs[total_key] or
    the cell's sum over ALL genes of its file; log1p values are stored as float32. `echo` gets progress and
    the closing table. Raises RequestError for wrong input; then nothing is written.
    """
    output = pathlib.Path(output)
    _check_options(inputs, options)
    check_output(output, overwrite=options.overwrite)
    labels = read_labels(inputs, options)
    vocabularies, order, groups, assignment = _group(labels, options)
    for note in assignment.notes:
        echo(note)
    listed = _listed_genes(labels, options, echo)
    cells = read_cells(inputs, labels.genes, options, echo=echo)
    columns, origin = listed or _variable_genes(cells, order, groups, options, echo)
    obs = labels.obs(order, vocabularies, options)
    facts = {
        "keys": {
            "perturbation": options.perturbation_key,
            "cell_type": options.cell_type_key,
            "batch": options.batch_key,
            "dose": options.dose_key,
        },
        "control": options.control,
        "perturbations": vocabularies["perturbation"],
        "cell_types": vocabularies["cell_type"],
        "batches": vocabularies["batch"],
        "groups": groups.to_json(),
        "split": assignment.info,
        "sources": cells.sources,
        "seed": options.seed,
        "values": {
            "encoding": cells.encoding,
            "target_sum": options.target_sum,
            "total_key": options.total_key,
            "log": "log1p",
        },
    }
    with new_directory(output, overwrite=options.overwrite) as folder:
        _write(folder, cells, order, columns, labels.genes[columns].tolist(), obs, facts)
    store = Store.open(output)
    for line in table(store, cells_per_set=options.cells_per_set, genes_from=origin):
        echo(line)
    return store


def _check_options(inputs: Sequence, options: PrepareOptions) -> None:
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
    if options.cells_per_set < 1:
        raise RequestError(f"cells per set {options.cells_per_set}: allowed is 1 or more.")
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


def _group(labels: Labels, options: PrepareOptions) -> tuple[dict, np.ndarray, Groups, Assignment]:
    # The control's name comes first among the perturbations: its code is 0.
    perturbed = sorted(set(labels.perturbation) - {options.control})
    vocabularies = {
        "perturbation": [options.control, *perturbed],
        "cell_type": sorted(set(labels.cell_type)),
        "batch": sorted(set(labels.batch)),
    }
    codes = {
        role: pd.Index(names).get_indexer(pd.Index(getattr(labels, role)))
        for role, names in vocabularies.items()
    }
    order, groups = group_cells(
        codes["perturbation"], codes["cell_type"], codes["batch"], control=0, seed=options.seed
    )
    named = {role: [names[code] for code in getattr(groups, role)] for role, names in vocabularies.items()}
    keys = {
        "perturbation": options.perturbation_key,
        "cell_type": options.cell_type_key,
        "batch": options.batch_key,
    }
    columns = {role: key for role, key in keys.items() if key}
    conditions = Conditions(**named, control=options.control, columns=columns)
    assignment = assign(conditions, split=options.split, holdout=options.holdout)
    return vocabularies, order, dataclasses.replace(groups, split=assignment.codes), assignment


def _listed_genes(
    labels: Labels, options: PrepareOptions, echo: Callable[[str], None]
) -> tuple[np.ndarray, str] | None:
    """(columns kept, in order; a phrase for the table) when no expression is needed to tell; None for HVG."""
    present = len(labels.genes)
    if options.genes is not None and not options.all_genes:
        wanted = gene_choice.read_gene_list(options.genes)
        columns = gene_choice.match_genes(
            wanted, labels.genes, source=str(options.genes), file=labels.files[0]
        )
        lost = len(wanted) - len(columns)
        if lost:
            known = set(labels.genes)
            names = shorten([name for name in wanted if name not in known], 5)
            echo(f"{options.genes}: {lost} of {len(wanted)} genes are not in the data, left out: {names}.")
        return columns, f"list {options.genes}"
    if not options.all_genes and options.hvg is not None:
        if options.hvg < present:
            return None
        if options.hvg > present:
            echo(f"{options.hvg:,} highly variable genes asked for, the data have {present:,}: all are kept.")
    return np.arange(present), "all"


def _variable_genes(
    cells: Cells, order: np.ndarray, groups: Groups, options: PrepareOptions, echo: Callable[[str], None]
) -> tuple[np.ndarray, str]:
    """The same for highly variable genes, chosen on training and control cells only."""
    seen = np.repeat(np.isin(groups.split, (TRAIN, CONTROL)), groups.size)
    # In the files' order, not the shuffled one: sums then round as scanpy's do, and ties fall the same way.
    rows = np.sort(order[seen])
    moments = gene_choice.Moments(cells.matrix.shape[1])
    for start in range(0, len(rows), BLOCK_ROWS):
        moments.add(cells.lognorm(rows[start : start + BLOCK_ROWS]))
    columns = np.flatnonzero(gene_choice.highly_variable(moments, options.hvg))
    if len(columns) < options.hvg:
        echo(
            f"{options.hvg:,} highly variable genes asked for, {len(columns):,} vary over the training cells."
        )
    if len(columns) > options.hvg:
        echo(f"{options.hvg:,} highly variable genes asked for, {len(columns):,} kept: some tie at the cut.")
    return columns, f"highly variable, over {len(rows):,} training and control cells"


def _write(
    folder: pathlib.Path,
    cells: Cells,
    order: np.ndarray,
    columns: np.ndarray,
    genes: list[str],
    obs: pd.DataFrame,
    facts: dict,
) -> None:
    chosen = select_columns(cells.matrix, columns)
    counts = cells.encoding == "counts"
    row_nnz = np.diff(chosen.indptr)[order]
    writer = StoreWriter(folder, row_nnz=row_nnz, genes=genes, dtype=chosen.dtype, counts=counts)
    writer.write_frames(obs)
    for start in range(0, len(order), BLOCK_ROWS):
        rows = order[start : start + BLOCK_ROWS]
        writer.append(chosen[rows], cells.scale[rows] if counts else None)
    writer.finish({"n_cells": len(order), **facts})

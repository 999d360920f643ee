"""The real side of an evaluation: exactly the cells that answer the predictions, arranged as Contexts.

From an h5ad or AnnData: the predicted (perturbation, cell type[, batch]) triples and the control cells of
their contexts. From a store: its test groups that were predicted, and the groups that serve them as control.
"""

import pathlib
from collections.abc import Callable

import anndata as ad
import numpy as np
import pandas as pd

from perturbdiff_jax.errors import RequestError, shorten
from perturbdiff_jax.evaluation.contexts import Context, as_cells
from perturbdiff_jax.evaluation.inputs import (
    FIELDS,
    Keys,
    check_names,
    check_scale,
    check_values,
    closing,
    conditions_of,
    normalise,
    open_file,
    rows_of,
    whole_numbers,
)
from perturbdiff_jax.evaluation.stages import stage

DEFAULT_TARGET_SUM = 1e4
Triple = tuple[str, str, str]  # perturbation, cell type, batch


def triples(conditions: pd.DataFrame) -> set[Triple]:
    """Distinct (perturbation, cell_type, batch) of a table of conditions."""
    return set(conditions[list(FIELDS)].drop_duplicates().itertuples(index=False, name=None))


def is_store(source) -> bool:
    """Whether `source` is a prepared store: a directory, or an address such as s3://bucket/store."""
    if isinstance(source, ad.AnnData):
        return False
    return "://" in str(source) or pathlib.Path(source).is_dir()


def from_store(
    path, wanted: set[Triple], keys: Keys, echo: Callable[[str], None]
) -> tuple[object, set[Triple]]:
    """(AnnData of the predicted test groups and their controls, the triples it answers) of a store."""
    from perturbdiff_jax.data.store import Store

    store = Store.open(path)
    groups = store.groups
    test = []
    answered = set()
    for i in np.flatnonzero(groups.split == 2):
        triple = (
            str(store.perturbations[groups.perturbation[i]]),
            "all" if keys.cell_type is None else str(store.cell_types[groups.cell_type[i]]),
            "all" if keys.batch is None else str(store.batches[groups.batch[i]]),
        )
        if triple in wanted:
            test.append(int(i))
            answered.add(triple)
    if not test:
        raise RequestError(
            f"{path}: none of the {len(wanted)} predicted conditions is a test group of this store; "
            "predict its test split or give the real cells as h5ad."
        )
    if len(answered) < len(wanted):
        echo(
            f"{len(wanted) - len(answered)} of {len(wanted)} predicted conditions are not in the store's "
            "test split: left out"
        )
    controls = sorted({int(groups.control[i]) for i in test})
    return store.to_anndata(np.array(controls + test)), answered


@stage("reading")
def read_contexts(
    source,
    keys: Keys,
    wanted: set[Triple],
    genes: tuple[str, ...],
    *,
    target_sum: float | None,
    total_key: str | None,
    echo: Callable[[str], None],
) -> tuple[list[Context], str]:
    """Contexts of the real cells in the order of `genes`, and one line that says how they were normalised."""
    name = None
    if is_store(source):
        name, path = f"store {source}", source
        source, wanted = from_store(path, wanted, keys, echo)
    adata, found = open_file(source, "real")
    name = name or found
    with closing(adata, source):
        check_names(adata, name)
        conditions = conditions_of(adata.obs, keys, name)
        _require(wanted, conditions, keys, name)
        controls = {
            (cell_type, batch): _controls(conditions, keys, cell_type, batch, name, echo)
            for cell_type, batch in sorted({triple[1:] for triple in wanted})
        }
        columns = _columns(genes, adata.var_names.astype(str), name)
        key = pd.MultiIndex.from_frame(conditions[list(FIELDS)])
        chosen = np.asarray(key.isin(list(wanted)))
        chosen[np.concatenate(list(controls.values()))] = True
        rows = np.flatnonzero(chosen)
        cells = rows_of(adata, rows)
        names = adata.obs_names[rows]
        check_values(cells, name, names, adata.var_names)
        if whole_numbers(cells):
            target_sum = DEFAULT_TARGET_SUM if target_sum is None else float(target_sum)
            totals = _totals(adata, rows, cells, total_key, name)
            cells = normalise(cells, totals, target_sum, name, names)
            origin = f"obs column {total_key!r}" if total_key else f"row sums over {adata.n_vars:,} genes"
            said = f"real cells: raw counts, normalised to {target_sum:g} per cell (totals: {origin}), log1p"
        else:
            cells = as_cells(cells)
            said = "real cells: taken as log1p-normalised already"
        check_scale(cells, name, "real cells that are not raw counts")
        cells = as_cells(cells[:, columns])
    position = np.full(len(conditions), -1)
    position[rows] = np.arange(rows.size)
    real = {
        triple: cells[position[at]]
        for triple, at in _rows_by_triple(conditions, rows).items()
        if triple in wanted
    }
    contexts = []
    for cell_type in sorted({triple[1] for triple in wanted}):
        mine = {t: c for t, c in real.items() if t[1] == cell_type}
        contexts.append(
            Context(
                cell_type=cell_type,
                genes=genes,
                control={b: cells[position[at]] for (c, b), at in controls.items() if c == cell_type},
                real={(batch, perturbation): c for (perturbation, _, batch), c in mine.items()},
            )
        )
    return contexts, said


def _rows_by_triple(conditions: pd.DataFrame, rows: np.ndarray) -> dict[Triple, np.ndarray]:
    found = conditions.iloc[rows].groupby(list(FIELDS), sort=True).indices
    return {triple: rows[at] for triple, at in found.items()}


def _require(wanted: set[Triple], conditions: pd.DataFrame, keys: Keys, name: str) -> None:
    missing = sorted(wanted - triples(conditions))
    if not missing:
        return
    known = set(conditions["perturbation"])
    absent = sorted({triple[0] for triple in missing} - known)
    if absent:
        raise RequestError(
            f"{name}: obs column {keys.perturbation!r} lacks predicted perturbations: {shorten(absent)}.\n"
            f"It has: {shorten(sorted(known))}."
        )
    shown = shorten([" / ".join(triple) for triple in missing], most=5)
    raise RequestError(
        f"{name}: no real cells for predicted conditions (perturbation / cell type / batch): {shown}."
    )


def _controls(conditions, keys: Keys, cell_type: str, batch: str, name: str, echo) -> np.ndarray:
    """Rows of the context's control cells; else of its batch, its cell type, any context (as in a store)."""
    control = (conditions["perturbation"] == keys.control).to_numpy()
    same_type = (conditions["cell_type"] == cell_type).to_numpy()
    same_batch = (conditions["batch"] == batch).to_numpy()
    own = np.flatnonzero(control & same_type & same_batch)
    if own.size:
        return own
    for rows, said in (
        (np.flatnonzero(control & same_batch), f"other cell types of batch {batch!r}"),
        (np.flatnonzero(control & same_type), f"other batches of cell type {cell_type!r}"),
        (np.flatnonzero(control), "other contexts"),
    ):
        if rows.size:
            echo(
                f"{name}: no control cells in cell type {cell_type!r}, batch {batch!r}: using those of {said}"
            )
            return rows
    raise AssertionError("conditions_of has made sure that there are control cells")


def _columns(genes: tuple[str, ...], available: pd.Index, name: str) -> np.ndarray:
    columns = available.get_indexer(list(genes))
    if (columns < 0).any():
        missing = [gene for gene, column in zip(genes, columns) if column < 0]
        raise RequestError(
            f"{name}: lacks {len(missing)} of the {len(genes)} predicted genes: {shorten(missing, most=5)}; "
            "all predicted genes must be there."
        )
    return columns


def _totals(adata, rows: np.ndarray, cells, total_key: str | None, name: str) -> np.ndarray:
    if total_key is None:
        return np.asarray(cells.sum(axis=1, dtype=np.float64)).ravel()
    if total_key not in adata.obs.columns:
        raise RequestError(
            f"{name}: no obs column {total_key!r} (total key); it has: {shorten(adata.obs.columns)}."
        )
    return adata.obs[total_key].to_numpy(dtype=np.float64)[rows]

"""Designs: tables that say which conditions to predict, one row per (perturbation, cell type, batch)."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from perturbdiff_jax.bundle import Bundle
from perturbdiff_jax.data.conditions import DOSE_MARK, SPLITS
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.errors import RequestError, shorten, unknown
from perturbdiff_jax.prediction.controls import ControlCells
from perturbdiff_jax.prediction.set_plan import Request
from perturbdiff_jax.vocabulary import batch_names, source_code, unknown_batch

CONDITION = ("perturbation", "cell_type", "batch")
COLUMNS = (*CONDITION, "cells", "draws")
DRAW_BATCHES = ("own", "all")


def read_design(path: str | Path) -> pd.DataFrame:
    """Reads a design from a csv file.

    Raises:
      RequestError: missing file, unknown or missing column.
    """
    if not Path(path).is_file():
        raise RequestError(f"{path}: no such file.")
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(CONDITION, str))
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: cannot be read as csv ({str(error).splitlines()[0]}).") from None
    for column in table.columns:
        if column not in COLUMNS:
            raise unknown("column", column, COLUMNS, str(path))
    if "perturbation" not in table:
        raise RequestError(
            f"{path}: column 'perturbation' is missing; the file has {', '.join(table.columns)}."
        )
    table.attrs["source"] = str(path)
    return table


def full_design(perturbations: Sequence[str], contexts: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Every perturbation in every context (cell type, batch)."""
    rows = [(name, *context) for context in contexts for name in perturbations]
    design = pd.DataFrame(rows, columns=list(CONDITION))
    design.attrs["source"] = "perturbations"
    return design


def split_design(
    store: Store, split: str, *, most: int | None = None, most_cells: int | None = None
) -> pd.DataFrame:
    """The conditions of a store's split, with as many cells as the real data have.

    Args:
      store: the store.
      split: "train", "validation" or "test".
      most: keep at most so many conditions, spread evenly over the table.
      most_cells: at most so many cells of each.

    Raises:
      RequestError: an unknown split, or one without conditions.
    """
    if split not in SPLITS[:3]:
        raise unknown("split", split, SPLITS[:3])
    groups = store.groups
    chosen = np.flatnonzero(groups.split == SPLITS.index(split))
    if not len(chosen):
        raise RequestError(f"{store.path}: no condition is in the {split} split; prepare it with a hold-out.")
    if most is not None and len(chosen) > most:
        chosen = chosen[np.round(np.linspace(0, len(chosen) - 1, most)).astype(int)]
    cells = groups.size[chosen] if most_cells is None else np.minimum(groups.size[chosen], most_cells)
    return pd.DataFrame(
        {
            "perturbation": [store.perturbations[c] for c in groups.perturbation[chosen]],
            "cell_type": [store.cell_types[c] for c in groups.cell_type[chosen]],
            "batch": [store.batches[c] for c in groups.batch[chosen]],
            "cells": cells.astype(np.int64),
            "group": chosen,
        }
    )


def check_design(
    design: pd.DataFrame, bundle: Bundle, cells: int | None, draws: int, source: str | None = None
) -> pd.DataFrame:
    """Fills in what a design leaves open and checks every name against the bundle.

    `source`: whose batches are meant, where those of several are called alike. `cells` 0 afterwards means "as many as
    there are control cells".

    Raises:
      RequestError: unknown name (with the closest), a number below 1, a condition that stands twice.
    """
    where = design.attrs.get("source", "design")
    design = design.copy()
    if not len(design):
        raise RequestError(f"{where}: no condition is asked for.")
    vocabularies = {
        "perturbation": bundle.perturbations,
        "cell_type": bundle.cell_types,
        "batch": bundle.batches,
    }
    for column, names in vocabularies.items():
        if column not in design:
            if column == "perturbation" or len(names) > 1:
                raise RequestError(
                    f"{where}: column {column!r} is missing; the bundle knows {len(names)} {column} names."
                )
            design[column] = names[0]
        if design[column].isna().any():
            row = int(np.argmax(design[column].isna())) + 1
            raise RequestError(f"{where}: column {column!r} has no value in row {row}.")
        design[column] = design[column].astype(str)
        known = batch_names(bundle, source) if column == "batch" else dict.fromkeys(names)
        for name in design[column].unique():
            if name not in known and column == "batch":
                raise unknown_batch(bundle, name, where)
            dosed = [
                label for label in names if column == "perturbation" and label.startswith(name + DOSE_MARK)
            ]
            if name not in known and dosed:
                raise RequestError(
                    f"{where}: perturbation {name!r} has doses here; name one: {shorten(dosed)}."
                )
            if name not in known:
                raise unknown(column.replace("_", " "), name, names, where)
    design["batch"] = design["batch"].map(batch_names(bundle, source))  # from here on as in the vocabulary
    if (design["perturbation"] == bundle.control).any():
        raise RequestError(f"{where}: {bundle.control!r} is the control; it is given, not predicted.")
    design["cells"] = _whole_numbers(design, "cells", cells, 0, where)
    design["draws"] = _whole_numbers(design, "draws", draws, draws, where)
    twice = design.duplicated(list(CONDITION))
    if twice.any():
        named = " / ".join(design.loc[twice, list(CONDITION)].iloc[0])
        raise RequestError(f"{where}: {named} is asked for twice; use the column 'draws'.")
    return design


def requests_of(
    design: pd.DataFrame,
    controls: ControlCells,
    bundle: Bundle,
    source: str | None,
    echo: Callable[[str], None],
    draw_batches: str = "own",
) -> tuple[list[Request], dict[tuple[str, str], tuple[str, str]]]:
    """A request for each draw of each row of a checked design, and the context whose control cells serve each.

    With `draw_batches` "all", draws go through the batch covariates that training saw in the cell type (in any, where
    it saw none in this one), the condition's own first; control cells stay those of the condition's context.

    Raises:
      RequestError: a source of data that is unknown or that a batch does not tell; other `draw_batches`.
    """
    if draw_batches not in DRAW_BATCHES:
        raise RequestError(f"draw_batches={draw_batches!r}: allowed are {', '.join(DRAW_BATCHES)}.")
    requests, contexts = [], {}
    vocabularies = [
        {name: code for code, name in enumerate(names)}
        for names in (bundle.perturbations, bundle.cell_types, bundle.batches)
    ]
    for row in design.itertuples(index=False):
        context = (row.cell_type, row.batch)
        if context not in contexts:
            contexts[context], rule = controls.resolve(*context)
            if contexts[context] != context:
                echo(f"context {context} has no control cells: uses those of {contexts[context]} ({rule}).")
        cells = controls.cells[contexts[context]]
        layer = source_code(bundle, row.batch, source)
        names = (row.perturbation, *context)
        codes = tuple(table[name] for table, name in zip(vocabularies, names))
        wanted = int(row.cells) if row.cells > 0 else cells.shape[0]
        turns = [row.batch]
        if draw_batches == "all":
            turns += _other_batches(bundle, row.cell_type, row.batch, layer, source)
        for draw in range(int(row.draws)):
            batch = turns[draw % len(turns)]
            lent = (*codes[:2], vocabularies[2][batch])
            other = batch if batch != row.batch else ""
            requests.append(Request(*names, lent, wanted, cells, draw, layer, other))
    return requests, contexts


def _other_batches(bundle: Bundle, cell_type: str, own: str, layer: int, source: str | None) -> list[str]:
    """Batches of the same input layer that training saw in the cell type, or else in any, in the bundle's order."""
    anywhere = {batch for _, _, batch in bundle.trained}
    seen = {batch for _, kind, batch in bundle.trained if kind == cell_type} or anywhere
    others = [batch for batch in bundle.batches if batch in seen and batch != own]
    return [batch for batch in others if source_code(bundle, batch, source) == layer]


def _whole_numbers(
    design: pd.DataFrame, column: str, default: int | None, absent: int, where: str
) -> pd.Series:
    """The column as int64; rows without a value get the default, or `absent` when there is none."""
    given = design[column] if column in design else pd.Series(default, index=design.index, dtype=object)
    given = given.astype(object).where(given.notna(), default)
    numbers = pd.to_numeric(given, errors="coerce")
    wrong = given.notna() & ~((numbers >= 1) & (numbers % 1 == 0))
    if wrong.any():
        raise RequestError(
            f"{where}: {column} must be whole numbers from 1 up, got {str(given[wrong].iloc[0])!r}."
        )
    return numbers.fillna(absent).astype(np.int64)

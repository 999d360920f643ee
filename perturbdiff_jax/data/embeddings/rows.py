"""What the network is told of each name of a vocabulary: rows of a frozen table, and learned rows that are added.

A name that a table lacks never gets a silent zero: it gets a learned row of its own, and is reported. What has no
training cell gets no learned row, because nothing would train it; its table has to tell it apart.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from perturbdiff_jax.data.embeddings.labels import Label, read_label
from perturbdiff_jax.data.embeddings.registry import Encoding
from perturbdiff_jax.errors import shorten


@dataclasses.dataclass(frozen=True)
class Rows:
    """One covariate of a vocabulary of N names; perturbations have a row 0 for "none" before them.

    Attributes:
      frozen: [N or N + 1, W] float32, the vectors of all tables side by side; None without tables.
      learned: for each row the learned rows that are added up; () = the row of the same number, or none with a table.
      absent: table -> names that it lacks, in the vocabulary's order.
      unknown: names without a training cell that nothing tells apart from others: no vector, no trained part.
    """

    frozen: np.ndarray | None
    learned: tuple[tuple[int, ...], ...]
    absent: dict[str, list[str]]
    unknown: list[str]


def vector_of(encoding: Encoding, label: Label) -> np.ndarray | None:
    """The tables' vectors side by side [W] float32, summed over the parts of a label.

    A table that lacks a part gives zeros; None when every table lacks one.
    """
    blocks, found = [], False
    for _, vectors in encoding.tables:
        rows = [vectors.rows.get(part) for part in label.parts]
        whole = None not in rows
        found |= whole
        blocks.append(vectors.vectors[rows].sum(axis=0) if whole else np.zeros(vectors.width, np.float32))
    return np.concatenate(blocks) if found else None


def perturbation_rows(
    encoding: Encoding, names: Sequence[str], control: str, trained: set[str], *, add_up: bool
) -> Rows:
    """Rows of perturbations.

    Args:
      encoding: one-hot, tables, or both.
      names: the vocabulary, with the control.
      control: its row is the mean of the other vectors (method 5).
      trained: names with a training cell.
      add_up: the learned embedding of "A+B" is that of A plus that of B, instead of one of its own.
    """
    known = {name for _, vectors in encoding.tables for name in vectors.names}
    labels = [read_label(name, control, known) for name in names]
    units = [label.parts if add_up else (name,) for name, label in zip(names, labels)]
    units = [(name,) if label.dose is not None else own for name, label, own in zip(names, labels, units)]
    seen = {unit for name, own in zip(names, units) for unit in own if name in trained or name == control}
    vectors = [None if name == control else vector_of(encoding, label) for name, label in zip(names, labels)]
    absent = _absent(encoding, [(n, label) for n, label in zip(names, labels) if n != control])
    frozen = None
    if encoding.tables:
        others = [vector for vector in vectors if vector is not None]
        width = sum(one.width for _, one in encoding.tables)
        mean = np.mean(others, axis=0, dtype=np.float64) if others else np.zeros(width)
        filled = [np.zeros(width) if vector is None else vector for vector in vectors]
        filled = [mean if name == control else vector for name, vector in zip(names, filled)]
        frozen = np.stack([np.zeros(width), *filled]).astype(np.float32)
    lacking = {name for missing in absent.values() for name in missing}
    wanted = [encoding.onehot or name in lacking for name in names]
    learned, unknown = [()] if not encoding.onehot else [(0,)], []
    places: dict[str, int] = {}
    for name, own, learns, vector in zip(names, units, wanted, vectors):
        told = learns and all(unit in seen for unit in own)
        rows = [places.setdefault(unit, len(places) + encoding.onehot) for unit in own] if told else []
        learned.append(tuple(rows))
        if not told and vector is None and name != control:
            unknown.append(name)
    return Rows(frozen, _told(learned, encoding), absent, unknown)


def cell_type_rows(encoding: Encoding, names: Sequence[str], trained: set[str]) -> Rows:
    """Rows of cell types; arguments as of `perturbation_rows`."""
    labels = [Label((name,)) for name in names]
    vectors = [vector_of(encoding, label) for label in labels]
    absent = _absent(encoding, list(zip(names, labels)))
    frozen = None
    if encoding.tables:
        width = sum(one.width for _, one in encoding.tables)
        frozen = np.stack([np.zeros(width) if v is None else v for v in vectors]).astype(np.float32)
    lacking = {name for missing in absent.values() for name in missing}
    learned, unknown, count = [], [], 0
    for name, vector in zip(names, vectors):
        told = (encoding.onehot or name in lacking) and name in trained
        learned.append((count,) if told else ())
        count += told
        if not told and vector is None:
            unknown.append(name)
    return Rows(frozen, _told(learned, encoding), absent, unknown)


def nearest(table: np.ndarray, vector: np.ndarray) -> tuple[int, float]:
    """(row, cosine distance) of the row of `table` [N, W] that is nearest to `vector` [W]; the first of several."""
    lengths = np.linalg.norm(table, axis=1) * np.linalg.norm(vector)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = 1.0 - (table @ vector) / lengths
    distance = np.where(np.isfinite(distance), distance, np.inf)
    row = int(distance.argmin())
    return row, float(distance[row])


def absent_words(absent: dict[str, list[str]], what: str) -> list[str]:
    """A line for each table that lacks names."""
    return [
        f"{len(names)} {what}(s) are not in the table {table} and get a learned embedding: {shorten(names)}."
        for table, names in absent.items()
        if names
    ]


def _absent(encoding: Encoding, labels: Sequence[tuple[str, Label]]) -> dict[str, list[str]]:
    return {
        table: [name for name, label in labels if not all(part in vectors.rows for part in label.parts)]
        for table, vectors in encoding.tables
    }


def _told(learned: list[tuple[int, ...]], encoding: Encoding) -> tuple[tuple[int, ...], ...]:
    """() where that says it all: one-hot alone with a row for each name in order, or nothing learned at all."""
    plain = not encoding.tables and learned == [(row,) for row in range(len(learned))]
    return () if plain or not any(learned) else tuple(learned)

"""Who the cells are: the labels of all files given to `prepare`, checked before any long reading begins.

Held compactly (codes, numpy strings): about 60 bytes a cell, so that millions of cells fit.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from perturbdiff_jax.data.conditions import DOSE_MARK
from perturbdiff_jax.data.h5ad import H5ad, check_file
from perturbdiff_jax.data.preparation.journal import fingerprint
from perturbdiff_jax.errors import RequestError, shorten, unknown

if TYPE_CHECKING:
    from perturbdiff_jax.data.prepare import PrepareOptions

ONLY = "all"  # the batch (or cell type) of every cell when no key was given
ROLES = ("perturbation", "cell_type", "batch")


@dataclasses.dataclass(frozen=True)
class Coded:
    """Labels of all cells: int32 codes [cells] and the names they stand for."""

    codes: np.ndarray
    names: list[str]


@dataclasses.dataclass(frozen=True)
class Labels:
    """Cells in the files' order; arrays are [cells]."""

    files: list[str]
    prints: list[dict]  # fingerprint of each file, taken before anything was read
    genes: list[np.ndarray]  # var_names, object [genes of the file], one for each file
    # What genes are known by, None for those left out: see gene_names.py; the same arrays where nothing was asked.
    gene_names: list[np.ndarray]
    names: np.ndarray  # as `packed` makes them; may repeat between files, see `prefixes`
    prefixes: list[str]  # put before the names of a file's cells
    perturbation: Coded  # with a dose, "name @ dose"; the control has code 0
    cell_type: Coded
    batch: Coded
    dose: np.ndarray | None  # float64
    total: np.ndarray | None  # float64, obs[total_key]
    ends: np.ndarray  # int64 [files + 1], the first cell of every file, and the number of cells

    def __len__(self) -> int:
        return len(self.names)

    def of_file(self, number: int) -> slice:
        """The cells of a file."""
        return slice(int(self.ends[number]), int(self.ends[number + 1]))


@dataclasses.dataclass(frozen=True)
class Obs:
    """obs of a store, compact: what StoreWriter.write_frames takes. `index[a:b]` gives some cells' names."""

    columns: list[str]
    values: Mapping[str, pd.Categorical | np.ndarray]
    index: Sequence[str]

    def __getitem__(self, name: str) -> pd.Categorical | np.ndarray:
        return self.values[name]


class OrderedNames:
    """Names of the cells in the store's order, made when they are asked for."""

    def __init__(self, labels: Labels, order: np.ndarray):
        self.labels, self.order = labels, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, some: slice) -> np.ndarray:
        cells = self.order[some]
        names = self.labels.names[cells]
        if names.dtype.kind == "S":
            names = names.astype(f"U{max(1, names.itemsize)}")
        names = names.astype(object)
        if any(self.labels.prefixes):
            source = np.searchsorted(self.labels.ends, cells, side="right") - 1
            names = np.array(self.labels.prefixes, dtype=object)[source] + names
        return names


def store_obs(labels: Labels, order: np.ndarray, options: PrepareOptions) -> Obs:
    """obs in `order`: the keys' own columns, dose, source file (if several) and source row."""
    values: dict[str, pd.Categorical | np.ndarray] = {}
    keys = (options.perturbation_key, options.cell_type_key, options.batch_key)
    for role, key in zip(ROLES, keys, strict=True):
        if key:
            coded: Coded = getattr(labels, role)
            values[key] = _categorical(coded.codes[order], coded.names)
    if labels.dose is not None:
        values[options.dose_key] = labels.dose[order]
    source = np.searchsorted(labels.ends, order, side="right") - 1
    if len(labels.files) > 1:
        values["source"] = _categorical(source, labels.files)
    values["source_row"] = order - labels.ends[source]
    return Obs(list(values), values, OrderedNames(labels, order))


def _categorical(codes: np.ndarray, names: Sequence[str]) -> pd.Categorical:
    # Object categories: pandas' newer string type would be written in a form that older readers lack.
    categories = pd.Index(np.array(names, dtype=object), dtype=object)
    return pd.Categorical.from_codes(codes, categories=categories)


def read_labels(inputs: Sequence[str | pathlib.Path], options: PrepareOptions) -> Labels:
    """Reads names and key columns of every file; raises RequestError naming file, column and value.

    Refused: unknown columns, missing labels, a control that no cell has, a perturbation with one cell.
    """
    parts = [_read_file(path, options) for path in inputs]
    labels = _joined(parts, options)
    if options.unperturbed:
        return labels
    where = f"{shorten(labels.files, 3)}, column {options.perturbation_key!r}"
    names = labels.perturbation.names
    if options.control not in names:
        raise unknown("control label", options.control, names, where)
    if len(names) == 1:
        raise RequestError(
            f"{where}: every cell is a control ({options.control!r}); perturbed cells are needed.\n"
            "Cells to pretrain on, without a screen: --unperturbed."
        )
    counts = np.bincount(labels.perturbation.codes, minlength=len(names))
    single = [name for name, count in zip(names, counts.tolist(), strict=True) if count == 1]
    if single:
        raise RequestError(
            f"{where}: {len(single)} perturbation(s) with one cell: {shorten(single, 5)}.\n"
            "Allowed: 2 or more cells each (a distribution of cells is learnt); remove those cells."
        )
    return labels


def _read_file(path: str | pathlib.Path, options: PrepareOptions) -> dict:
    """What one file says; labels as (codes, names)."""
    check_file(path)
    taken = fingerprint(path)
    with H5ad(path, layer=options.layer) as file:
        only = (np.zeros(len(file.cells), np.int32), [ONLY])
        found = {"file": str(path), "print": taken, "genes": file.genes, "cells": file.cells}
        found["gene_names"] = file.genes
        if options.gene_key is not None:
            found["gene_names"] = file.gene_labels(options.gene_key, flag="--gene-key")
        found["perturbation"] = (only[0], [options.control])
        if options.perturbation_key is not None:
            found["perturbation"] = file.codes(options.perturbation_key, flag="--perturbation-key")
        for role, flag in (("cell_type", "--cell-type-key"), ("batch", "--batch-key")):
            key = getattr(options, f"{role}_key")
            found[role] = file.codes(key, flag=flag) if key else only
        for role, flag in (("total", "--total-key"), ("dose", "--dose-key")):
            key = getattr(options, f"{role}_key")
            found[role] = file.numbers(key, flag=flag) if key else None
        if options.dose_key:
            found["perturbation"] = _dosed(*found["perturbation"], found["dose"], options.control)
        return found


def _dosed(codes: np.ndarray, names: list[str], dose: np.ndarray, control: str) -> tuple:
    """The same with every perturbation's doses told apart: "name @ dose"."""
    amounts, amount = np.unique(dose, return_inverse=True)
    pairs, place = np.unique(codes.astype(np.int64) * len(amounts) + amount, return_inverse=True)
    full = []
    for pair in pairs.tolist():
        name = names[pair // len(amounts)]
        full.append(name if name == control else f"{name}{DOSE_MARK}{amounts[pair % len(amounts)]:g}")
    merged = sorted(set(full))
    positions = {name: code for code, name in enumerate(merged)}
    to = np.array([positions[name] for name in full], dtype=np.int32)
    return to[place], merged


def _joined(parts: list[dict], options: PrepareOptions) -> Labels:
    roles = {}
    for role in ROLES:
        names = sorted({name for part in parts for name in part[role][1]})
        if role == "perturbation" and options.control in names:
            names.remove(options.control)
            names.insert(0, options.control)
        places = {name: code for code, name in enumerate(names)}
        codes = []
        for part in parts:
            own, known = part.pop(role)
            codes.append(np.array([places[name] for name in known], dtype=np.int32)[own])
        roles[role] = Coded(codes[0] if len(codes) == 1 else np.concatenate(codes), names)
    for name in ("dose", "total"):
        given = [part.pop(name) for part in parts]
        roles[name] = None if given[0] is None else np.concatenate(given)
    files = [part["file"] for part in parts]
    cells = [part["cells"] for part in parts]
    return Labels(
        files=files,
        prints=[part["print"] for part in parts],
        genes=[part["genes"] for part in parts],
        gene_names=[part["gene_names"] for part in parts],
        names=packed(cells[0] if len(cells) == 1 else np.concatenate(cells)),
        prefixes=_prefixes(files, cells),
        ends=np.concatenate([[0], np.cumsum([len(some) for some in cells])]).astype(np.int64),
        **roles,
    )


def packed(names: np.ndarray) -> np.ndarray:
    """StringDType names as bytes of one width, in which they are picked many times faster; unless that would be
    larger, or they are not ASCII."""
    lengths = np.strings.str_len(names)
    width = int(lengths.max(initial=1))
    if width > 16 + 2 * lengths.mean():
        return names
    try:
        return names.astype(f"S{width}")
    except UnicodeEncodeError:
        return names


def name_of(name: str | bytes) -> str:
    """One of the names as a string."""
    return name.decode() if isinstance(name, bytes) else str(name)


def _prefixes(files: list[str], cells: list[np.ndarray]) -> list[str]:
    """The same barcode in two files is two cells: then the file's name tells them apart."""
    marks = [np.fromiter(map(hash, some), np.int64, len(some)) for some in cells] if len(cells) > 1 else []
    if not marks or len(np.unique(np.concatenate(marks))) == sum(map(len, marks)):
        return [""] * len(files)
    stems = [pathlib.Path(file).stem for file in files]
    if len(set(stems)) < len(stems):
        stems = [f"{number}:{stem}" for number, stem in enumerate(stems)]
    return [f"{stem}:" for stem in stems]

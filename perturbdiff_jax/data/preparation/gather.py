"""The last long passes of `prepare`: rows are scattered into parts, then gathered into the store shard by shard."""

from __future__ import annotations

import concurrent.futures
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from perturbdiff_jax.data.preparation.gene_columns import GeneColumns
from perturbdiff_jax.data.preparation.labels import Labels, Obs
from perturbdiff_jax.data.preparation.parts import Part, PartFile, Piece
from perturbdiff_jax.data.preparation.progress import Progress
from perturbdiff_jax.data.preparation.scan import Crew, Stretch, Survey
from perturbdiff_jax.data.storage.writer import StoreWriter, is_dense_better
from perturbdiff_jax.data.values import data_dtype

if TYPE_CHECKING:
    from perturbdiff_jax.data.prepare import PrepareOptions


def scatter(
    parts: list[Stretch],
    labels: Labels,
    columns: GeneColumns,
    seen: Survey,
    order: np.ndarray,
    options: PrepareOptions,
    crew: Crew,
) -> list[Part | PartFile]:
    """Takes the chosen genes of every stretch, rows in the store's order."""
    row_of = np.empty(len(order), dtype=np.int64)
    row_of[order] = np.arange(len(order))
    progress = Progress(crew.echo, "sorting", len(labels))
    done: dict[int, Part | PartFile] = {}

    def task(part: Stretch) -> dict[str, Any]:
        cells = slice(int(labels.ends[part.file]) + part.start, int(labels.ends[part.file]) + part.stop)
        return {
            "path": labels.files[part.file],
            "layer": options.layer,
            "start": part.start,
            "stop": part.stop,
            "places": columns.places[part.file],
            "genes": len(columns.names),
            "rows": row_of[cells],
            "encoding": seen.stored_as,
            "recover": seen.recovered,
            "largest": seen.largest,
            "scale": None if seen.scale is None else seen.scale[cells],
            "part": str(crew.place.part(part.number)) if crew.keeping else None,
        }

    missing = []
    for part in parts:
        file = crew.place.part(part.number)
        if crew.keeping:
            done[part.number] = PartFile(file)
        if crew.keeping and file.exists():
            progress.skip(part.stop - part.start)
        else:
            missing.append(part)
    sizes = {part.number: part.stop - part.start for part in missing}
    works = ((part.number, "scatter", task(part)) for part in missing)
    for number, result in crew.workers.do(works):
        if result is not None:
            done[number] = result
        progress.add(sizes[number])
    return [done[part.number] for part in parts]


def gather(
    parts: Sequence[Part | PartFile],
    folder: pathlib.Path,
    columns: GeneColumns,
    obs: Obs,
    seen: Survey,
    options: PrepareOptions,
    crew: Crew,
) -> StoreWriter:
    """Writes the rows of all parts into the store at `folder`; the caller finishes it."""
    cells = len(obs.index)
    row_nnz = np.empty(cells, dtype=np.int32)
    counts = seen.stored_as == "counts"
    scale = np.empty(cells if counts else 0, dtype=np.float32)
    for part in parts:
        head = part.head()
        row_nnz[head.rows] = head.nnz
        if counts:
            scale[head.rows] = head.scale
    writer = StoreWriter(
        folder,
        row_nnz=row_nnz,
        genes=columns.names,
        measured=columns.measured.any(axis=0),
        dtype=data_dtype(seen.stored_as, seen.largest),
        counts=counts,
        dense=_is_dense(parts, int(row_nnz.sum(dtype=np.int64)), cells, len(columns.names), seen),
        codec=options.codec,
    )
    if counts:
        writer.write_scale(scale)
    progress = Progress(crew.echo, "writing", cells)
    ranges = [_rows(writer, *shard) for shard in writer.shards]
    with concurrent.futures.ThreadPoolExecutor(1) as beside:
        frames = beside.submit(writer.write_frames, obs)  # this process has nothing else to do
        works = _works(parts, writer, ranges)
        for number, _ in crew.workers.do(works):
            progress.add(ranges[number][1] - ranges[number][0])
        frames.result()
    return writer


def _rows(writer: StoreWriter, first: int, last: int) -> tuple[int, int]:
    """The rows that a shard has numbers of."""
    if writer.dense:
        return first, last
    low = int(np.searchsorted(writer.pointers, first, side="right")) - 1
    return low, int(np.searchsorted(writer.pointers, last, side="left"))


def _works(
    parts: Sequence[Part | PartFile], writer: StoreWriter, ranges: list[tuple[int, int]]
) -> Iterator[tuple[int, str, dict[str, Any]]]:
    borders = np.array(sorted({row for pair in ranges for row in pair}), dtype=np.int64)
    # Where every part crosses the borders: in rows and in numbers.
    rows = np.empty((len(parts), len(borders)), dtype=np.int64)
    numbers = np.empty_like(rows)
    for part, row, number in zip(parts, rows, numbers, strict=True):
        head = part.head()
        row[:] = np.searchsorted(head.rows, borders)
        number[:] = np.concatenate([[0], np.cumsum(head.nnz, dtype=np.int64)])[row]
    for shard, ((first, last), pair) in enumerate(zip(writer.shards, ranges, strict=True)):
        low, high = np.searchsorted(borders, pair)
        pieces = []
        for part, row, number in zip(parts, rows, numbers, strict=True):
            piece = Piece(int(row[low]), int(row[high]), int(number[low]), int(number[high]))
            if piece.high > piece.low:
                pieces.append((part, piece))
        skip = 0 if writer.dense else int(first - writer.pointers[pair[0]])
        where = {"folder": str(writer.folder), "first": first, "last": last, "skip": skip}
        yield shard, "write", {**where, "dense": writer.dense, "genes": len(writer.genes), "parts": pieces}


def _is_dense(parts: Sequence[Part | PartFile], nnz: int, cells: int, genes: int, seen: Survey) -> bool:
    facts = {"nnz": nnz, "cells": cells, "genes": genes, "counts": seen.stored_as == "counts"}
    if not is_dense_better(**facts, largest=0):
        return False
    # The largest count of the chosen genes may be smaller than that of all.
    for part in parts:
        head = part.head()
        whole = part.piece(Piece(0, len(head.rows), 0, int(head.nnz.sum(dtype=np.int64))))
        if not is_dense_better(**facts, largest=int(whole.data.max(initial=0))):
            return False
    return True

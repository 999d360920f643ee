"""The first long pass of `prepare`: every number of every file is looked at, once.

It decides over all files whether they hold counts, log1p values or log1p values that come back as counts, adds up
what highly variable genes are chosen by, and takes the checksum of every file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from perturbdiff_jax.data.preparation.checks import Findings
from perturbdiff_jax.data.preparation.checksums import EarlyChecksums
from perturbdiff_jax.data.preparation.encoding import decided
from perturbdiff_jax.data.preparation.gene_columns import GeneColumns
from perturbdiff_jax.data.preparation.journal import Workplace
from perturbdiff_jax.data.preparation.labels import Labels
from perturbdiff_jax.data.preparation.matrix import Matrix
from perturbdiff_jax.data.preparation.moments import Moments
from perturbdiff_jax.data.preparation.progress import Progress
from perturbdiff_jax.data.preparation.workers import Workers
from perturbdiff_jax.errors import RequestError

if TYPE_CHECKING:
    from perturbdiff_jax.data.prepare import PrepareOptions

TASK = 4 * 1024 * 1024  # numbers in a stretch
CSC_BYTES = 24  # memory for each number of a CSC matrix while it is turned round


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Rows start..stop-1 of a file: one piece of work of every pass. Independent of memory and workers."""

    number: int
    file: int
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Crew:
    """Who works, and where results are kept if they have to outlive this process."""

    workers: Workers
    place: Workplace
    keeping: bool
    echo: Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Survey:
    """What the files hold. `scale` float32 [cells] is target_sum / total of counts; None for log1p values."""

    encoding: str  # what the files hold
    recovered: bool  # log1p values that are stored as counts
    largest: float  # of what is stored
    scale: np.ndarray | None
    moments: Moments | None
    matrices: list[str]  # which matrix of each file was read
    sha256: list[str]

    @property
    def stored_as(self) -> str:
        return "counts" if self.recovered else self.encoding


def stretches(labels: Labels, options: PrepareOptions) -> tuple[list[Stretch], list[str], int]:
    """(the files cut into stretches, the name of each file's matrix, numbers in all of them).

    Raises RequestError as `cut` does.
    """
    found, names, stored = [], [], 0
    for number, path in enumerate(labels.files):
        with h5py.File(path, "r") as file:
            matrix = Matrix(file, layer=options.layer, label=path)
            for start, stop in cut(matrix, options.memory):
                found.append(Stretch(len(found), number, start, stop))
            names.append(matrix.where)
            stored += matrix.stored
    return found, names, stored


def cut(matrix: Matrix, memory: int) -> list[tuple[int, int]]:
    """Rows start..stop-1 of the pieces of work that a file's matrix is cut into.

    Raises RequestError for damaged row pointers and for a CSC matrix that does not fit into `memory`, bytes.
    """
    needed = matrix.stored * CSC_BYTES
    if matrix.layout == "csc" and needed > memory:
        raise RequestError(
            f"{matrix.label}: {matrix.where} is stored by genes (CSC); to turn it round takes {needed / 2**30:.1f} "
            f"GiB, --memory is {memory / 2**30:.1f} GiB.\nGive more, or write it as CSR first "
            "(adata.X = adata.X.tocsr(); adata.write_h5ad(...))."
        )
    return matrix.pieces(TASK)


def survey(
    parts: list[Stretch],
    matrices: list[str],
    labels: Labels,
    columns: GeneColumns,
    counted: np.ndarray | None,
    options: PrepareOptions,
    crew: Crew,
    early: EarlyChecksums,
) -> Survey:
    """Scans all stretches; `counted` bool [cells]: those that highly variable genes are chosen by, or None.

    Raises RequestError naming file, cell and gene; also when one file holds counts and another log1p values.
    """

    def task(part: Stretch, encoding: str) -> dict[str, Any]:
        cells = slice(int(labels.ends[part.file]) + part.start, int(labels.ends[part.file]) + part.stop)
        moments = None
        if counted is not None:
            moments = {
                "places": columns.places[part.file],
                "genes": len(columns.names),
                "counted": counted[cells],
                "target_sum": options.target_sum,
                "total": None if labels.total is None else labels.total[cells],
            }
        where = {"path": labels.files[part.file], "layer": options.layer}
        rows = {"start": part.start, "stop": part.stop}
        return {**where, **rows, "encoding": encoding, "moments": moments}

    progress = Progress(crew.echo, "checking", len(labels))
    named = {part.number: f"scan-{part.number:06}" for part in parts}
    hashes = [f"hash-{number:06}" for number in range(len(labels.files))]
    begun = early.stop()
    left = list(zip(hashes, labels.files, strict=True))[begun:]
    works = {name: ("hash", {"path": path}, 0) for name, path in left}
    works |= {named[p.number]: ("scan", (p, options.values), p.stop - p.start) for p in parts}
    results = _done(works, task, progress, crew)
    results |= {hashes[number]: result for number, result in early.results().items()}
    seen = [Findings() for _ in labels.files]
    for part in parts:
        seen[part.file].add(results[named[part.number]]["findings"])
    encoding, scale = decided(labels, matrices, seen, options, crew.echo)
    # A stretch may look like counts in a file that holds log1p values: it is looked at again.
    again = {part.number: f"{named[part.number]}-{encoding}" for part in parts}
    wrong = [part for part in parts if results[named[part.number]]["encoding"] != encoding]
    works = {again[p.number]: ("scan", (p, encoding), 0) for p in wrong}
    results |= _done(works, task, progress, crew)
    named |= {part.number: again[part.number] for part in wrong}
    moments = None
    if counted is not None:
        moments = Moments(len(columns.names))
        for part in parts:  # in the files' order, so that rounding does not depend on who was quicker
            result = results[named[part.number]]
            if crew.keeping:
                result = crew.place.saved(named[part.number])
            moments.join(*result["moments"])
    counts = encoding == "lognorm" and all(results[name]["recovered"] for name in named.values())
    return Survey(
        encoding=encoding,
        recovered=counts,
        largest=max(results[name]["largest_count"] for name in named.values())
        if counts
        else max(found.largest for found in seen),
        scale=scale,
        moments=moments,
        matrices=matrices,
        sha256=[results[name]["sha256"] for name in hashes],
    )


def _done(works: dict[str, tuple], task: Callable, progress: Progress, crew: Crew) -> dict[str, dict]:
    """Results by name of works (kind, what the task is made of, cells); kept ones are taken, new ones kept."""
    results = {}
    for name, (_, _, cells) in works.items():
        kept = crew.place.saved(name) if crew.keeping else None
        if kept is not None:
            results[name] = _light(kept)
            progress.skip(cells)
    # Tasks hold slices of large arrays: each is made when a worker wants it.
    missing = (
        (name, kind, about if kind == "hash" else task(*about))
        for name, (kind, about, _) in works.items()
        if name not in results
    )
    found = {}
    for name, result in crew.workers.do(missing):
        if crew.keeping:
            crew.place.save(name, result)
        found[name] = _light(result) if crew.keeping else result
        progress.add(works[name][2])
    return results | found


def _light(result: dict) -> dict:
    """Without the sums over genes: those of many stretches would fill the memory, and they are kept on disk."""
    return {name: value for name, value in result.items() if name != "moments"}

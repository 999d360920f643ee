"""The long pass: every number of a composite's files is looked at once, block by block, and summed gene by gene.

The pieces of work are those of `prepare` (preparation/tasks.py: scan), done by the same workers; what is held is a
block for each worker and sums over the genes. Each file is taken for what it holds, counts or log1p values.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from perturbdiff_jax.data.gene_selection.moments import MeasuredMoments
from perturbdiff_jax.data.gene_selection.notes import VALUES, Notes
from perturbdiff_jax.data.gene_selection.options import VocabularyOptions
from perturbdiff_jax.data.gene_selection.sources import Source
from perturbdiff_jax.data.h5ad import H5ad
from perturbdiff_jax.data.preparation.checks import Findings
from perturbdiff_jax.data.preparation.moments import Moments
from perturbdiff_jax.data.preparation.progress import Progress
from perturbdiff_jax.data.preparation.workers import Workers
from perturbdiff_jax.data.values import complain, decide, scales

ABOVE = 1.5  # times --target-sum: so much in log1p values is not rounding


class _OnComplaint:
    """A file as values.py names it in its messages; it is opened again only when a name is wanted."""

    def __init__(self, source: Source, options: VocabularyOptions, total: np.ndarray | None):
        self.label, self.where, self.layer, self.total = source.path, source.where, options.layer, total

    @functools.cached_property
    def _names(self) -> tuple[np.ndarray, np.ndarray]:
        with H5ad(self.label, layer=self.layer) as file:
            return file.cells, file.genes

    @property
    def cells(self) -> np.ndarray:
        return self._names[0]

    @property
    def genes(self) -> np.ndarray:
        return self._names[1]

    def numbers(self, name: str, *, flag: str = "") -> np.ndarray:
        return self.total


@dataclasses.dataclass
class _Tally:
    """What has been seen of a file so far: sums by what the values were taken for, and results not yet in turn."""

    source: Source
    total: np.ndarray | None = None
    seen: Findings = dataclasses.field(default_factory=Findings)
    sums: dict[str, Moments] = dataclasses.field(default_factory=dict)
    taken: list[str] = dataclasses.field(default_factory=list)
    waiting: dict[int, dict] = dataclasses.field(default_factory=dict)

    def add(self, piece: int, result: dict[str, Any]) -> None:
        """Takes results in any order, and adds them up in the order of the rows."""
        self.waiting[piece] = result
        while len(self.taken) in self.waiting:
            self._take(self.waiting.pop(len(self.taken)))

    def _take(self, result: dict[str, Any]) -> None:
        self.seen.add(result["findings"])
        self.taken.append(result["encoding"])
        if not self.seen.wrong:
            self.sum(result)

    @property
    def is_read(self) -> bool:
        return len(self.taken) == len(self.source.pieces)

    def sum(self, result: dict[str, Any]) -> None:
        sums = self.sums.setdefault(result["encoding"], Moments(len(self.source.own)))
        sums.join(*result["moments"])


def read_composite(
    files: Sequence[Source],
    genes: int,
    options: VocabularyOptions,
    workers: Workers,
    progress: Progress,
    notes: Notes,
) -> tuple[np.ndarray, MeasuredMoments, list[str]]:
    """Sums over the cells of `files`: (numbers of the genes of any of them, ascending; their moments; encodings).

    `genes` is how many numbers there are. The encodings, "counts" or "lognorm", are in the files' order. Raises
    RequestError naming file, cell and gene for wrong values.
    """
    having = np.zeros(genes, dtype=bool)
    for source in files:
        having[source.own] = True
    numbers = np.flatnonzero(having)
    moments, encodings = MeasuredMoments(len(numbers)), []
    tallies = [_Tally(source) for source in files]
    task = functools.partial(_task, options=options)
    for (number, piece), result in workers.do(_works(tallies, task, options)):
        tallies[number].add(piece, result)
        progress.add(len(result["findings"].total))
        # In the files' order, so that rounding does not depend on who was quicker.
        while len(encodings) < len(files) and tallies[len(encodings)].is_read:
            tally = tallies[len(encodings)]
            encodings.append(_decided(tally, options, notes))
            if set(tally.taken) == {encodings[-1]}:
                _join(tally, encodings[-1], numbers, moments, options, notes)
    for tally, encoding in zip(tallies, encodings, strict=True):
        # A piece may look like counts in a file that holds log1p values: it is looked at again.
        again = [piece for piece, taken in enumerate(tally.taken) if taken != encoding]
        works = ((piece, "scan", task(tally, piece, values=encoding)) for piece in again)
        for _, result in sorted(workers.do(works), key=lambda done: done[0]):
            tally.sum(result)
        if again:
            _join(tally, encoding, numbers, moments, options, notes)
    return numbers, moments, encodings


def _join(
    tally: _Tally,
    encoding: str,
    numbers: np.ndarray,
    moments: MeasuredMoments,
    options: VocabularyOptions,
    notes: Notes,
) -> None:
    """A file's sums become part of its composite's, and are forgotten: a composite may have a thousand files."""
    sums = tally.sums[encoding]
    moments.join_file(np.searchsorted(numbers, tally.source.own), sums)
    mean = sums.total.sum() / tally.source.cells
    # log1p values come as they are: a file that was normalised to more than the others weighs more.
    if encoding == "lognorm" and mean > ABOVE * options.target_sum:
        notes.say(
            VALUES,
            f"{tally.source.path}: its log1p values come from {mean:,.0f} per cell, not --target-sum "
            f"{options.target_sum:,.0f}; they are taken as they are.",
        )
    tally.sums = {}


def _works(tallies: Sequence[_Tally], task: Callable, options: VocabularyOptions) -> Iterator[tuple]:
    for number, tally in enumerate(tallies):
        if options.total_key is not None:
            with H5ad(tally.source.path, layer=options.layer) as file:
                tally.total = file.numbers(options.total_key, flag="--total-key")
        for piece in range(len(tally.source.pieces)):
            yield (number, piece), "scan", task(tally, piece, values=options.values)


def _task(tally: _Tally, piece: int, *, values: str, options: VocabularyOptions) -> dict[str, Any]:
    source = tally.source
    start, stop = source.pieces[piece]
    places = np.where(source.genes >= 0, np.cumsum(source.genes >= 0) - 1, -1).astype(np.int32)
    return {
        "path": source.path,
        "layer": options.layer,
        "start": start,
        "stop": stop,
        "encoding": values,
        "recover": False,
        "moments": {
            "places": places,
            "genes": len(source.own),
            "counted": np.ones(stop - start, dtype=bool),
            "target_sum": options.target_sum,
            "total": None if tally.total is None else tally.total[start:stop],
        },
    }


def _decided(tally: _Tally, options: VocabularyOptions, notes: Notes) -> str:
    """What the file holds; RequestError for wrong values."""
    file = _OnComplaint(tally.source, options, tally.total)
    complain(file, tally.seen)
    encoding = decide(file, tally.seen, options.values)
    if options.total_key is not None and encoding == "counts":
        scales(file, tally.seen.total, total_key=options.total_key, target_sum=options.target_sum)
    elif options.total_key is not None:
        notes.say(VALUES, f"{file.label}: holds log1p values: --total-key {options.total_key} is not used.")
    # The totals of a thousand files are not kept.
    tally.seen, tally.total = Findings(), None
    return encoding

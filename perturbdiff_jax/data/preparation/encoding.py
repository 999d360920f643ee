"""What all files of a `prepare` hold together: counts, or log1p values, and the scale of every cell of counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from perturbdiff_jax.data.preparation.checks import Findings
from perturbdiff_jax.data.preparation.labels import Labels, name_of
from perturbdiff_jax.data.values import complain, decide, scales
from perturbdiff_jax.errors import RequestError

if TYPE_CHECKING:
    from perturbdiff_jax.data.prepare import PrepareOptions


@dataclasses.dataclass(frozen=True)
class _Names:
    """Names of a file's cells, a string when one is asked for."""

    packed: np.ndarray

    def __getitem__(self, row: int) -> str:
        return name_of(self.packed[row])


@dataclasses.dataclass(frozen=True)
class _File:
    """A file as values.py names it in its messages."""

    label: str
    where: str
    cells: _Names
    genes: np.ndarray
    total: np.ndarray | None

    def numbers(self, name: str, *, flag: str = "") -> np.ndarray:
        return self.total


def decided(
    labels: Labels,
    matrices: list[str],
    seen: list[Findings],
    options: PrepareOptions,
    echo: Callable[[str], None],
) -> tuple[str, np.ndarray | None]:
    """(encoding of all files, float32 scale of all cells or None: log1p values have none).

    `matrices`, `seen`: by file, the name of its matrix and what the scan found in it. Raises RequestError naming file,
    cell and gene; also when one file holds counts and another log1p values.
    """
    encodings, parts = [], []
    for number, path in enumerate(labels.files):
        own = labels.of_file(number)
        total = None if labels.total is None else labels.total[own]
        file = _File(path, matrices[number], _Names(labels.names[own]), labels.genes[number], total)
        complain(file, seen[number])
        encodings.append(decide(file, seen[number], options.values))
        if encodings[-1] != encodings[0]:
            raise RequestError(
                f"{path}: holds {encodings[-1]}, but {labels.files[0]} holds {encodings[0]}.\n"
                "Allowed: files of one kind (see --layer and --values)."
            )
        if encodings[-1] == "counts":
            totals = seen[number].total
            parts.append(scales(file, totals, total_key=options.total_key, target_sum=options.target_sum))
        elif options.total_key:
            echo(f"{path}: {file.where} holds log1p values: --total-key {options.total_key} is not used.")
    return encodings[0], np.concatenate(parts) if parts else None

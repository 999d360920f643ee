"""The account of a vocabulary: what each source gave, and how much of the vocabulary it measures.

Shared genes and their share are those of the paper's Table 3: genes of the source that are in the vocabulary, and their
number divided by the size of the vocabulary.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from perturbdiff_jax.data.gene_selection.composites import Composite
from perturbdiff_jax.data.gene_selection.selection import Choice
from perturbdiff_jax.data.gene_selection.sources import Source

MOST_FILES = 30  # lines for files; the report has them all
COLUMNS = ("files", "cells", "genes", "chosen", "alone", "shared")


@dataclasses.dataclass(frozen=True)
class Union:
    """`numbers` of the chosen genes, ascending; `times` [numbers]: how many composites and lists chose each."""

    numbers: np.ndarray
    times: np.ndarray


def union(genes: int, choices: Sequence[Choice], lists: Sequence[Source]) -> Union:
    """All genes that a composite or a list has chosen; `genes` is how many numbers there are."""
    times = np.zeros(genes, dtype=np.int64)
    for some in [*(choice.chosen for choice in choices), *(source.own for source in lists)]:
        times[some] += 1
    numbers = np.flatnonzero(times)
    return Union(numbers, times[numbers])


def account(
    whole: Union,
    composites: Sequence[Composite],
    choices: Sequence[Choice],
    files: Sequence[Source],
    lists: Sequence[Source],
    encodings: Mapping[int, str],
) -> dict[str, list[dict[str, Any]]]:
    """{"composites", "include", "files"}: a dict for each, in their order; `encodings` by number of the file.

    "genes" is how many it has, "chosen" how many it gave, "alone" how many of those nobody else gave, "shared" how many
    of the vocabulary it has, "share" that by the size of the vocabulary. Of a composite also "rare", genes left
    out because too few of its cells measure them.
    """
    only = whole.numbers[whole.times == 1]

    def shared(genes: np.ndarray) -> dict[str, Any]:
        count = int(np.isin(genes, whole.numbers).sum())
        return {"shared": count, "share": count / len(whole.numbers)}

    def gave(chosen: np.ndarray) -> dict[str, int]:
        return {"chosen": len(chosen), "alone": int(np.isin(chosen, only).sum())}

    merged, placed = [], {}
    for composite, choice in zip(composites, choices, strict=True):
        placed |= dict.fromkeys(composite.files, composite.name)
        facts = {"name": composite.name, "files": len(composite.files)}
        facts |= {"cells": sum(files[number].cells for number in composite.files), "genes": len(choice.genes)}
        merged.append({**facts, "rare": choice.rare, **gave(choice.chosen), **shared(choice.genes)})
    listed = [
        {"name": source.path, "genes": len(source.own), **gave(source.own), **shared(source.own)}
        for source in lists
    ]
    single = [
        {
            "name": source.path,
            "composite": placed[number],
            "cells": source.cells,
            "genes": len(source.own),
            "matrix": source.where,
            "values": encodings[number],
            **shared(source.own),
        }
        for number, source in enumerate(files)
    ]
    return {"composites": merged, "include": listed, "files": single}


def table(facts: Mapping[str, list[dict[str, Any]]], *, title: str, report: str) -> list[str]:
    """Lines to print: composites and their mean, lists, and files if they are not too many."""
    read = [fact["name"] for fact in (*facts["include"], *facts["files"])]
    short = {path: pathlib.Path(path).name for path in read}
    if len(set(short.values())) < len(read):
        short = {path: path for path in read}
    rows = [(f"composite {fact['name']}", fact) for fact in facts["composites"]]
    if len(rows) > 1:
        mean = {
            name: sum(fact[name] for fact in facts["composites"]) / len(rows) for name in (*COLUMNS, "share")
        }
        rows.append((f"mean of {len(rows)}", mean))
    rows += [(f"list {short[fact['name']]}", fact) for fact in facts["include"]]
    files = facts["files"]
    rows += [(f"file {short[fact['name']]}", fact) for fact in files] if len(files) <= MOST_FILES else []
    width = max(len(name) for name, _ in rows) + 2
    lines = [title, " " * (width + 2) + "".join(f"{name:>12}" for name in COLUMNS) + f"{'share':>9}"]
    for name, fact in rows:
        cells = (f"{fact[column]:,.0f}" if column in fact else "" for column in COLUMNS)
        lines.append(
            f"  {name:<{width}}" + "".join(f"{cell:>12}" for cell in cells) + f"{fact['share']:>9.1%}"
        )
    if len(files) > MOST_FILES:
        lines.append(f"  {len(files):,} files: {report}")
    return lines

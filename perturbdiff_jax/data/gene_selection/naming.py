"""Do sources speak of the same genes? Symbols and Ensembl ids do not match, nor do two organisms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from perturbdiff_jax.data.gene_naming.source_names import IDS, OTHERS
from perturbdiff_jax.data.gene_selection.notes import NAMES, Notes
from perturbdiff_jax.errors import RequestError, shorten

if TYPE_CHECKING:
    from perturbdiff_jax.data.gene_selection.sources import GeneNames, Source


def check_naming(files: Sequence[Source], lists: Sequence[Source], names: GeneNames, notes: Notes) -> None:
    """Says which genes of a list no file has.

    Raises RequestError, naming both sides with examples, where sources have no gene in common.

    That is: Ensembl ids beside symbols, a file that shares no gene with any other file, or a list that shares none
    with all of the files.
    """
    first = {}
    for source in [*files, *lists]:
        first.setdefault(source.kind, source)
    if IDS in first and OTHERS in first:
        one, other = first[IDS], first[OTHERS]
        raise RequestError(
            f"{one.path} has Ensembl ids ({shorten(names.some(one.genes), 3)}), {other.path} has other names "
            f"({shorten(names.some(other.genes), 3)}).\n"
            "Give --map TABLE.csv, whose two columns name each gene both ways (or --gene-key, a column of var)."
        )
    having = np.zeros(len(names.names), dtype=np.int64)
    for source in files:
        having[source.own] += 1
    for source in files if len(files) > 1 else ():
        if having[source.own].max() == 1:
            other = next(file for file in files if file is not source)
            raise _nothing(source, other, "any other file", names)
    for source in lists:
        if not having[source.own].any():
            raise _nothing(source, files[0], "the files of --input", names)
        lost = source.own[having[source.own] == 0]
        if len(lost):
            notes.say(
                NAMES,
                f"{source.path}: {len(lost):,} of its {len(source.own):,} genes are in no file, taken all the same: "
                f"{shorten(names.some(lost), 3)}.",
            )


def _nothing(source: Source, other: Source, whom: str, names: GeneNames) -> RequestError:
    return RequestError(
        f"{source.path}: shares none of its {len(source.own):,} genes ({shorten(names.some(source.genes), 3)}) with "
        f"{whom}; {other.path} has {shorten(names.some(other.genes), 3)}.\n"
        "Allowed: names of one kind and organism; --map TABLE.csv turns one kind into another."
    )

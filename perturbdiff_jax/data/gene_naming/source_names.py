"""The names by which the genes of one source (a file, a list, a store) are known: turned, checked, some left out aloud.

`genes` and `prepare` read names by these rules alike, so that a list made by one fits the files given to the other.
"""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Callable, Sequence

from perturbdiff_jax.data.gene_naming.name_table import NameTable, is_ensembl, read_name_table
from perturbdiff_jax.errors import RequestError, shorten

IDS, OTHERS, BOTH = "Ensembl ids", "symbols", "Ensembl ids and symbols"
MOST_OTHERS = 0.2  # of Ensembl ids among symbols (genes without a symbol), or the other way round


def kind_of(names: Sequence[str]) -> str:
    """IDS, OTHERS (any names that are no Ensembl ids), or BOTH when neither is rare."""
    share = sum(map(is_ensembl, names)) / len(names)
    return IDS if share >= 1 - MOST_OTHERS else OTHERS if share <= MOST_OTHERS else BOTH


def is_writable(name: str) -> bool:
    """Whether the name comes back from a text file with one name a line, and is one at all."""
    return (
        name == name.strip() and name != "nan" and name[:1] not in ("", "#") and len(name.splitlines()) == 1
    )


def check_map(path: str | pathlib.Path | None, column: str | None) -> None:
    """Raises RequestError for --map-to without --map."""
    if column is not None and path is None:
        raise RequestError("--map-to names a column of the table --map: give that, too.")


def open_map(
    path: str | pathlib.Path | None, column: str | None, say: Callable[[str], None]
) -> NameTable | None:
    """The table --map, None if there is none; says which names it cannot turn. Raises as read_name_table does."""
    if path is None:
        return None
    found = read_name_table(path, column)
    if found.ambiguous:
        those = sorted(found.ambiguous)
        say(
            f"{found.path}: {len(those):,} names of {found.other} have several in {found.wanted} and are turned into "
            f"none: {shorten(those, 3)}."
        )
    return found


def usable_names(
    path: str, listed: Sequence[str], table: NameTable | None, say: Callable[[str], None]
) -> list[str | None]:
    """The names `listed` by the source `path`, in the table's naming if there is one; None for those left out.

    Left out are names that the table cannot turn, that a gene list cannot hold, and names of several genes; `say` gets
    a line with count and examples for each reason. Raises RequestError when the table holds no name, or none is left.
    """
    lost: dict[str, list[str]] = {}
    wanted: list[str | None] = list(listed)
    if table is not None:
        turned = table.turn(listed, where=path)
        wanted, lost = turned.names, dict(turned.lost)
        if turned.mapped:
            say(
                f"{path}: {turned.mapped:,} of {len(listed):,} genes turned from {table.other} into {table.wanted}."
            )
        if turned.plain:
            say(f"{path}: {turned.plain:,} ids taken in the table's version, or without one.")
    # A column of var may name two genes alike; a table has made names single.
    counts = collections.Counter(name for name in wanted if name is not None)
    checks = {
        "are no names for a gene list": lambda name: not is_writable(name),
        "are names of several genes": lambda name: counts[name] > 1,
    }
    for why, is_lost in checks.items():
        for position, name in enumerate(wanted):
            if name is not None and is_lost(name):
                lost.setdefault(why, []).append(listed[position])
                wanted[position] = None
    for why, those in lost.items():
        say(f"{path}: {len(those):,} genes {why}, left out: {shorten(map(repr, those), 3)}.")
    if not any(name is not None for name in wanted):
        raise RequestError(f"{path}: none of its {len(listed):,} genes can be used: {shorten(listed, 3)}.")
    return wanted

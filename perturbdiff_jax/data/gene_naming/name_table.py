"""A table of two names for each gene, such as Ensembl id and symbol, and names turned from one into the other.

Versions of Ensembl ids (ENSG00000141510.17) are looked at as written first and without the version then; dots in other
names (AL627309.1) mean nothing. A name with several partners in the table is ambiguous and has none.
"""

import collections
import csv
import dataclasses
import pathlib
import re
from collections.abc import Iterable, Sequence

from perturbdiff_jax.errors import RequestError, shorten, unknown

ENSEMBL = re.compile(r"(ENS[A-Z]{0,6}[EGTP]\d{11})(\.\d+)?(_PAR_Y)?")


def is_ensembl(name: str) -> bool:
    """Whether the name has the form of an Ensembl id, with or without a version."""
    return ENSEMBL.fullmatch(name) is not None


def unversioned(name: str) -> str:
    """An Ensembl id without its version; other names as they are."""
    found = ENSEMBL.fullmatch(name)
    return name if found is None else found[1] + (found[3] or "")


@dataclasses.dataclass(frozen=True)
class Turned:
    """Names of a source turned into those of the table; None where a name is left out.

    `lost` says why: a phrase -> the names that it is about. `mapped` counts names turned into a partner's, `plain`
    those that only lost (or got) a version.
    """

    names: list[str | None]
    lost: dict[str, list[str]]
    mapped: int
    plain: int


class NameTable:
    """Turns names of column `other` into those of column `wanted`; `pairs` are (other, wanted) names.

    Attributes: path, other, wanted, `ambiguous` (names of `other` with several partners).
    """

    def __init__(self, path: str, other: str, wanted: str, pairs: Iterable[tuple[str, str]]):
        self.path, self.other, self.wanted = path, other, wanted
        pairs = list(pairs)
        self.partner, self.ambiguous = _single(pairs)
        plain, unclear = _single((unversioned(name), partner) for name, partner in pairs)
        self.partner = plain | self.partner
        self.ambiguous |= unclear - self.partner.keys()
        written = {partner for _, partner in pairs}
        own, _ = _single((unversioned(partner), partner) for partner in written)
        self.own = own | {partner: partner for partner in written}
        self._has_versions = any(unversioned(partner) != partner for partner in written)

    def turn(self, names: Sequence[str], *, where: str) -> Turned:
        """The names in the naming of `wanted`.

        If more of them are in that column than in the other, they have this naming already: names that the table
        does not hold stay (without a version, if its names have none); otherwise they are left out. Of several
        names that become one, the one that is written like it is taken, or else the first by the alphabet. Raises
        RequestError when the table holds none.
        """
        there = [self._find(name, self.own) for name in names]
        turned = [self._find(name, self.partner) for name in names]
        here, mapped = (sum(name is not None for name in some) for some in (there, turned))
        if not here and not mapped:
            raise RequestError(
                f"{where}: none of its {len(names):,} genes ({shorten(names, 3)}) is in {self.path} ({self.other}: "
                f"{shorten(self.partner, 2)}; {self.wanted}: {shorten(self.own, 2)})."
            )
        kept = here >= mapped
        found: list[str | None] = []
        lost: dict[str, list[str]] = collections.defaultdict(list)
        for name, same, partner in zip(names, there, turned, strict=True):
            new = same or partner
            if new is None and self._is_ambiguous(name):
                lost[f"have several names in {self.wanted}"].append(name)
            elif new is None and kept:
                new = name if self._has_versions else unversioned(name)
            elif new is None:
                lost["are not in the table"].append(name)
            found.append(new)
        for position in _repeated(names, found):
            lost[f"share their {self.wanted} with another gene"].append(names[position])
            found[position] = None
        changed = [
            unversioned(new) == unversioned(name)
            for name, new in zip(names, found, strict=True)
            if new not in (None, name)
        ]
        return Turned(found, dict(lost), mapped=len(changed) - sum(changed), plain=sum(changed))

    @staticmethod
    def _find(name: str, names: dict[str, str]) -> str | None:
        return names.get(name) or names.get(unversioned(name))

    def _is_ambiguous(self, name: str) -> bool:
        return name in self.ambiguous or unversioned(name) in self.ambiguous


def _single(pairs: Iterable[tuple[str, str]]) -> tuple[dict[str, str], set[str]]:
    """(name -> its only partner, names with several)."""
    partners: dict[str, str] = {}
    several = set()
    for name, partner in pairs:
        if partners.setdefault(name, partner) != partner:
            several.add(name)
    return {name: partner for name, partner in partners.items() if name not in several}, several


def _repeated(names: Sequence[str], found: Sequence[str | None]) -> list[int]:
    """Positions of the names that give way to another one with the same new name."""
    same = collections.defaultdict(list)
    for position, new in enumerate(found):
        if new is not None:
            same[new].append(position)
    losers = []
    for new, positions in same.items():
        if len(positions) > 1:
            winner = min(positions, key=lambda position: (names[position] != new, names[position]))
            losers += [position for position in positions if position != winner]
    return sorted(losers)


def read_name_table(path: str | pathlib.Path, wanted: str | None = None) -> NameTable:
    """Reads a .csv or .tsv with a header of two columns; `wanted` is the one to turn into, None: the second.

    Rows with an empty cell are passed over. Raises RequestError naming the file.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise RequestError(
            f"{path}: no such file (--map takes a csv or tsv table with two columns of names)."
        )
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: not a text file (--map takes a csv or tsv table).") from error
    delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines(), delimiter=delimiter)]
    rows = [row for row in rows if any(row)]
    header = rows[0] if rows else []
    if len(header) != 2 or len(set(header)) < 2 or not all(header):
        raise RequestError(
            f"{path}: a header of two columns is needed, such as ensembl_id,symbol; it has {shorten(header) or 'none'}."
        )
    wanted = header[1] if wanted is None else wanted
    if wanted not in header:
        raise unknown("column", wanted, header, f"{path} (--map-to)")
    place = header.index(wanted)
    pairs = [(row[1 - place], row[place]) for row in rows[1:] if len(row) == 2 and all(row)]
    if not pairs:
        raise RequestError(f"{path}: the table holds no pair of names.")
    return NameTable(str(path), header[1 - place], wanted, pairs)

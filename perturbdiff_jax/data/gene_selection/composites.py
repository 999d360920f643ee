"""Which files are merged into which composite: evenly by their cells, or as a table says.

Files come in an order of their own (`in_order`), so that the result does not depend on how they were listed.
"""

import csv
import dataclasses
import heapq
import pathlib
from collections.abc import Sequence

from perturbdiff_jax.errors import RequestError, shorten

COLUMNS = ("file", "composite")


@dataclasses.dataclass(frozen=True)
class Composite:
    """Files merged into one data set: `files` are positions among all files, ascending."""

    name: str
    files: list[int]


def in_order(inputs: Sequence[str | pathlib.Path]) -> list[str]:
    """The files by name, then by path."""
    return sorted(map(str, inputs), key=lambda path: (pathlib.Path(path).name, path))


def balanced(cells: Sequence[int], count: int) -> list[Composite]:
    """`count` composites of about as many cells each; `cells` of each file. Needs count <= number of files.

    The largest file first, each goes where the fewest cells are. So a file that is larger than an even share stays
    alone, and no composite is empty. They are called 1, 2, ... by their first file.
    """
    filled = [(0, number) for number in range(count)]
    files: list[list[int]] = [[] for _ in range(count)]
    for file in sorted(range(len(cells)), key=lambda file: (-cells[file], file)):
        held, number = heapq.heappop(filled)
        files[number].append(file)
        heapq.heappush(filled, (held + cells[file], number))
    merged = sorted(sorted(some) for some in files)
    return [Composite(str(number), some) for number, some in enumerate(merged, start=1)]


def read_composites(path: str | pathlib.Path, files: Sequence[str]) -> list[Composite]:
    """Composites as the .csv or .tsv table at `path` (columns file, composite) says, in the order of their names.

    A file is named by its path (also relative to the table's folder) or by its name if only one file has it. Raises
    RequestError for an unknown file, one in two composites, one that is missing, and a table of another form.
    """
    placed: dict[int, str] = {}
    for line, name, composite in _rows(path):
        found = _named(name, files, pathlib.Path(path).parent)
        if len(found) != 1:
            what = "is none of the files of --input" if not found else "is the name of several files"
            raise RequestError(
                f"{path}, line {line}: {name!r} {what}.\nAllowed: paths as given there ({shorten(files, 3)})."
            )
        if placed.setdefault(found[0], composite) != composite:
            raise RequestError(
                f"{path}, line {line}: {name!r} is in the composites {placed[found[0]]!r} and {composite!r}; "
                "allowed is one."
            )
    missing = [file for number, file in enumerate(files) if number not in placed]
    if missing:
        raise RequestError(
            f"{path}: {len(missing)} of the files of --input are in no composite: {shorten(missing, 3)}."
        )
    merged: dict[str, list[int]] = {}
    for number in sorted(placed):
        merged.setdefault(placed[number], []).append(number)
    return [Composite(name, merged[name]) for name in sorted(merged)]


def _rows(path: str | pathlib.Path) -> list[tuple[int, str, str]]:
    """(line, file, composite) of every row."""
    file = pathlib.Path(path)
    if not file.is_file():
        raise RequestError(
            f"--composites {path}: no number of 1 or more, and no such file.\n"
            "Allowed: how many, or a csv or tsv table with columns file and composite."
        )
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: not a text file (--composites takes a csv or tsv table).") from error
    rows = list(csv.reader(text.splitlines(), delimiter="\t" if file.suffix.lower() == ".tsv" else ","))
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if not set(COLUMNS) <= set(header):
        raise RequestError(
            f"{path}: a header with the columns file and composite is needed; it has {shorten(header) or 'none'}."
        )
    places = [header.index(column) for column in COLUMNS]
    found = []
    for line, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        name, composite = (row[place].strip() if place < len(row) else "" for place in places)
        if not name or not composite:
            raise RequestError(f"{path}, line {line}: file or composite is missing ({','.join(row)!r}).")
        found.append((line, name, composite))
    return found


def _named(name: str, files: Sequence[str], folder: pathlib.Path) -> list[int]:
    """Positions of the files that `name` may mean."""
    paths = {pathlib.Path(name).resolve(), (folder / name).resolve()}
    exact = [number for number, file in enumerate(files) if pathlib.Path(file).resolve() in paths]
    return exact or [number for number, file in enumerate(files) if pathlib.Path(file).name == name]

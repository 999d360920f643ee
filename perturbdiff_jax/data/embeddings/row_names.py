"""Names beside a table that has none: `FILE@NAMES`, where NAMES lists a name for each row in the rows' order.

Tables keyed by the row numbers of somebody's own list (the released ESM2 vectors of cytokines) are read this way, and
so are bare arrays.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from perturbdiff_jax.errors import RequestError, shorten

MARK = "@"


def split_names(path: str) -> tuple[str, str | None]:
    """(table, list of names or None) of "FILE@NAMES".

    A path may hold the mark itself: one that is a file is taken whole, otherwise the last mark counts whose right part
    is a file. Where there is none, but a file stands before a mark, that one counts: its list is missing.
    """
    if MARK not in path or Path(path).is_file():
        return path, None
    marks = [at for at, letter in enumerate(path) if letter == MARK][::-1]
    halves = [(path[:at], path[at + 1 :]) for at in marks]
    listed = [(table, names) for table, names in halves if Path(names).is_file()]
    lacking = [(table, names) for table, names in halves if Path(table).is_file()]
    return next(iter([*listed, *lacking]), (path, None))


def read_row_names(path: str) -> list[str]:
    """The names of a list: one a line, or a JSON list of strings.

    Raises:
      RequestError: no such file, no text, an empty line or name, a name twice.
    """
    file = Path(path)
    if not file.is_file():
        raise RequestError(
            f"{path}: no such file (FILE@NAMES takes a list of names: text, one a line, or JSON)."
        )
    try:
        text = file.read_text(encoding="utf-8-sig")
        names = json.loads(text) if file.suffix.lower() == ".json" else text.rstrip().splitlines()
    except ValueError as error:  # not text, or not JSON
        raise RequestError(f"{path}: cannot be read as a list of names ({error}).") from None
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror}).") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RequestError(f"{path}: a list of names (strings) is needed.")
    names = [name.strip() for name in names]
    if not names or "" in names:
        what = f"name {names.index('') + 1} is empty" if names else "holds no name"
        raise RequestError(f"{path}: {what}.")
    twice = pd.Index(names)[pd.Index(names).duplicated()].unique()
    if len(twice):
        raise RequestError(f"{path}: {len(twice)} name(s) stand there more than once: {shorten(twice, 3)}.")
    return names


def in_rows_order(keys: Sequence[Any], rows: Any, names: Sequence[str], *, table: str, listed: str) -> Any:
    """The rows of a table whose keys are the numbers 0 to N - 1, in that order, so that `names` [N] fit them.

    Raises:
      RequestError: keys that are names already, or other numbers; another number of rows. `table` and `listed` are
        the two files.
    """
    found = [_number(key) for key in keys]
    if None in found:
        name = keys[found.index(None)]
        raise RequestError(f"{table}: has names of its own (such as {name!r}); leave out {MARK}{listed}.")
    if sorted(found) != list(range(len(found))):
        raise RequestError(
            f"{table}: {len(found)} row numbers from {min(found)} to {max(found)}; a list of names needs each of "
            f"0 to {len(found) - 1} once."
        )
    if len(names) != len(found):
        raise RequestError(f"{listed}: {len(names)} names for the {len(found)} vectors of {table}.")
    order = np.argsort(found)
    return rows[order] if isinstance(rows, np.ndarray) else [rows[at] for at in order]


def _number(key: Any) -> int | None:
    if isinstance(key, str):
        return int(key) if key.strip().isdecimal() else None
    return key if isinstance(key, int) and not isinstance(key, bool) else None

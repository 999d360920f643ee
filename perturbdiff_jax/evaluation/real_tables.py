"""Differential expression of the real cells, kept on the disk under a name that says what it was made of.

The rank-sum test of real cells against real controls is the dear part of an evaluation and the same for every
model and every later call. A table is found again by a hash of all that it depends on: values, labels, genes,
settings, the versions of cell-eval and pdex. The file's name ends in a hash of its bytes, so that a damaged file is
noticed and made anew. Files are parquet (numbers and text, nothing that could run). It must not know metrics.
"""

import contextlib
import hashlib
import io
import os
import pathlib
from collections.abc import Callable, Mapping

import scipy.sparse as sp

from perturbdiff_jax.errors import RequestError

FOLDER = "real_de"  # beside the results, when nobody names another directory
_SCHEME = "1"  # to be raised when a table's meaning changes here
_NEEDED = {"target", "feature", "p_value", "fdr", "log2_fold_change"}


def content_key(
    cells: Mapping[str, sp.csr_matrix],
    control: sp.csr_matrix,
    genes: tuple[str, ...],
    label: str,
    settings: Mapping[str, object],
) -> str:
    """Hash (32 hexadecimal digits) of cells [n, G] by perturbation, control cells [m, G], names and settings.

    Matrices must be canonical CSR (contexts.as_cells): the same cells have the same bytes then.
    """
    digest = hashlib.sha256()

    def add(*words: object) -> None:
        for word in words:
            text = str(word).encode()
            digest.update(f"{len(text)}:".encode() + text)  # lengths: no two lists run together alike

    add(_SCHEME, len(settings), *(part for name in sorted(settings) for part in (name, repr(settings[name]))))
    add(label, len(genes), *genes, len(cells))
    for name, part in ((label, control), *sorted(cells.items())):
        add(name, part.shape, part.dtype)
        for array in (part.indptr, part.indices, part.data):
            add(array.dtype, array.size)
            digest.update(array.tobytes())
    return digest.hexdigest()[:32]


class RealTables:
    """Tables of real cells by content_key in `directory`; counts those `read` and those `computed`.

    Nothing is written before the first table is computed. A directory that cannot be written costs a remark.
    Raises RequestError when `directory` is a file.
    """

    def __init__(self, directory: str | os.PathLike, echo: Callable[[str], None]):
        self.directory = pathlib.Path(directory)
        if self.directory.exists() and not self.directory.is_dir():
            raise RequestError(f"cache {self.directory} is a file; give a directory.")
        self.read = self.computed = 0
        self._echo = echo

    def get(self, key: str, compute: Callable[[], object]):
        """The table (polars) kept under `key`, or the one that `compute` makes, which is kept from now on."""
        table = self._read(key)
        if table is not None:
            self.read += 1
            return table
        table = compute()
        self.computed += 1
        self._write(key, table)
        return table

    def _read(self, key: str):
        import polars as pl

        for path in sorted(self.directory.glob(f"{key}-*.parquet")):
            try:
                data = path.read_bytes()
                if path.name != _name(key, data):
                    raise ValueError("its bytes are not the ones that were written")
                table = pl.read_parquet(io.BytesIO(data))
                if lacking := _NEEDED - set(table.columns):
                    raise ValueError(f"it lacks the column {min(lacking)!r}")
                return table
            except Exception as error:  # whatever is wrong with it: the table can always be computed
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                self._echo(f"cache: {path} is damaged and is computed again: {reason}")
                with contextlib.suppress(OSError):  # it would be found damaged again, and said again
                    path.unlink(missing_ok=True)
        return None

    def _write(self, key: str, table) -> None:
        buffer = io.BytesIO()
        table.write_parquet(buffer)
        data = buffer.getvalue()
        temporary = self.directory / f".{key}.{os.getpid()}.tmp"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(data)
                os.replace(temporary, self.directory / _name(key, data))
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            self._echo(f"cache: {self.directory} cannot be written ({error.strerror}): nothing is kept")


def _name(key: str, data: bytes) -> str:
    return f"{key}-{hashlib.sha256(data).hexdigest()[:16]}.parquet"

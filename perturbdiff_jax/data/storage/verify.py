"""Checking a whole store: every file against its checksum, then what the arrays say to each other."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator

import numpy as np

from perturbdiff_jax.data.raw_cells import RawCells
from perturbdiff_jax.data.storage.location import files_of
from perturbdiff_jax.data.storage.manifest import EXTRA, MANIFEST, damaged, file_sha256

BLOCK = 8 * 1024 * 1024  # stored values looked at together
QUIET = 5.0  # seconds between two lines of progress


def verify(store, echo: Callable[[str], None] | None = None) -> str:
    """Reads all of a physical store; returns a line that says what was checked.

    Files: each is there, has its checksum, and none is there besides. Cells: row pointers rise from 0 and agree
    with the number of values per row, columns rise in every row and are genes, no value is negative or not
    finite, the groups begin where they say, obs and var have a row for each cell and gene, and no cell has a value of a
    gene that its source file does not measure. Raises RequestError naming the first damaged file.
    """
    started = time.monotonic()
    size = _check_files(store, _Progress(echo, f"{store.path}: files"))
    _check_frames(store)
    _check_cells(store, _Progress(echo, f"{store.path}: cells"))
    files = len(store.manifest["checksums"])
    return (
        f"{store.path}: sound. {files} files ({size / 2**20:,.1f} MiB) have their checksums; "
        f"{store.n_cells:,} cells x {len(store.genes):,} genes in {len(store.groups):,} groups "
        f"({time.monotonic() - started:.1f} s)"
    )


def _check_files(store, progress: "_Progress") -> int:
    folder, checksums, size = store.place.folder, store.manifest["checksums"], 0
    for number, (name, checksum) in enumerate(checksums.items()):
        if folder is not None:
            found = file_sha256(folder / name) if (folder / name).is_file() else None
            size += (folder / name).stat().st_size if found else 0
        else:
            (content,) = store.place.read([name])
            found = None if content is None else hashlib.sha256(content).hexdigest()
            size += len(content or b"")
        if found is None:
            raise damaged(store.path, f"{name} is missing")
        if found != checksum:
            raise damaged(store.path, f"{name} does not match its checksum")
        progress(number + 1, len(checksums))
    known = {*checksums, MANIFEST}
    # Only a folder tells its files at no cost. Hidden ones are of file systems and copying tools.
    strange = [name for name in files_of(folder) if name not in known] if folder is not None else []
    strange = [name for name in strange if not any(part.startswith(".") for part in name.split("/"))]
    if strange:
        raise damaged(store.path, f"{strange[0]} is not of this store")
    return size


def _check_frames(store) -> None:
    """The lengths of obs and var, from the metadata of their indices."""
    for frame, length in (("obs", store.n_cells), ("var", len(store.genes))):
        name = _metadata(store, frame).get("attributes", {}).get("_index", "_index")
        found = _metadata(store, f"{frame}/{name}")
        if found.get("node_type") == "group":  # pandas' nullable strings: values and a mask
            found = _metadata(store, f"{frame}/{name}/values")
        if found.get("shape") != [length]:
            raise damaged(store.path, f"{frame} has {found.get('shape')} rows, {MANIFEST} says {length}")


def _metadata(store, name: str) -> dict:
    (content,) = store.place.read([f"{name}/zarr.json"])
    try:
        return json.loads(content)
    except (TypeError, ValueError) as error:
        raise damaged(store.path, f"{name}/zarr.json is missing or not JSON") from error


def _check_cells(store, progress: "_Progress") -> None:
    groups, genes = store.groups, len(store.genes)
    if store.is_dense:
        for start, stop in _blocks(store):
            cells = store.read_raw(start, stop)
            _check_scale(store, cells.scale, start)
            _check_measured(store, cells, start, stop)
            progress(stop, store.n_cells)
        return
    before = 0
    for start, stop in _blocks(store):
        try:
            pointers = store.array("X/indptr")[start : stop + 1].read().result()
        except ValueError as error:
            raise store.unreadable(error) from error
        if pointers[0] != before or (np.diff(pointers) < 0).any():
            raise damaged(store.path, f"X/indptr does not rise from row {start} on")
        before = pointers[-1]
        cells = store.read_raw(start, stop)
        if (cells.indptr != pointers - pointers[0]).any():
            raise damaged(store.path, f"{EXTRA}/row_nnz does not fit X/indptr after row {start}")
        first = (groups.start >= start) & (groups.start < stop)
        if (groups.pointer[first] != pointers[groups.start[first] - start]).any():
            raise damaged(store.path, f"pointers of the groups in {MANIFEST} do not fit X/indptr")
        columns = cells.indices.astype(np.int64)
        if (columns >= genes).any():
            raise damaged(store.path, f"X/indices names gene {columns.max()} of {genes} after row {start}")
        rises = np.diff(columns) > 0
        # From the last value of a row to the first of the next one columns may fall.
        borders = cells.indptr[1:-1]
        rises[borders[(borders > 0) & (borders < len(columns))] - 1] = True
        if not rises.all():
            raise damaged(store.path, f"X/indices does not rise inside a row after row {start}")
        if (cells.data < 0).any() or not np.isfinite(cells.data).all():
            raise damaged(store.path, f"X/data holds values below 0 or not finite after row {start}")
        _check_scale(store, cells.scale, start)
        _check_measured(store, cells, start, stop)
        progress(stop, store.n_cells)
    if before != store.nnz:
        raise damaged(store.path, f"X/indptr ends at {before}, {MANIFEST} says {store.nnz}")


def _check_scale(store, scale: np.ndarray | None, start: int) -> None:
    if scale is not None and not (np.isfinite(scale) & (scale > 0)).all():
        raise damaged(store.path, f"{EXTRA}/scale is not above 0 after row {start}")


def _check_measured(store, cells: RawCells, start: int, stop: int) -> None:
    masks = store.measured
    if masks.all():
        return
    lacking = ~masks.all(axis=0)  # genes that some source lacks: only their values can be wrong
    if cells.indices is None:
        rows, which = np.nonzero(cells.data[:, lacking])
        columns = np.flatnonzero(lacking)[which]
    else:
        stored = np.flatnonzero(lacking[cells.indices] & (cells.data != 0))
        rows = np.searchsorted(cells.indptr, stored, side="right") - 1
        columns = cells.indices[stored].astype(np.int64)
    source = np.zeros(stop - start, dtype=np.int64)
    if len(masks) > 1:
        paths = [str(facts["path"]) for facts in store.manifest["sources"]]
        named = store.obs_of([(start, stop)])["source"]
        source = np.array([paths.index(str(path)) for path in named.cat.categories])[named.cat.codes]
    wrong = ~masks[source[rows], columns]
    if wrong.any():
        place = int(np.argmax(wrong))
        raise damaged(
            store.path,
            f"row {start + rows[place]} has a value of gene {store.genes[columns[place]]!r}, which {MANIFEST} says "
            "is not measured there",
        )


def _blocks(store) -> Iterator[tuple[int, int]]:
    """Row ranges of about BLOCK values, over the whole store."""
    values = store.n_cells * len(store.genes) if store.is_dense else store.nnz
    rows = max(1, int(BLOCK * store.n_cells / max(values, 1)))
    for start in range(0, store.n_cells, rows):
        yield start, min(start + rows, store.n_cells)


class _Progress:
    """Says how far it is every few seconds, with the time left."""

    def __init__(self, echo: Callable[[str], None] | None, what: str):
        self._echo, self._what = echo, what
        self._begun = self._said = time.monotonic()

    def __call__(self, done: int, of: int) -> None:
        now = time.monotonic()
        if self._echo is None or now - self._said < QUIET or done >= of:
            return
        self._said = now
        left = (now - self._begun) / done * (of - done)
        self._echo(f"{self._what} {done:,} of {of:,}, {left:,.0f} s left")

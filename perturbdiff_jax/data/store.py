"""The store: grouped cells as a valid AnnData zarr v3 group plus manifest.json, read through tensorstore.

Layout (written by store_writer.py):
    X/{data,indices,indptr}        CSR, sorted; counts as uint16/uint32 or log1p values as float32
    obs, var                       keys and source row of every cell; gene names
    uns/perturbdiff/scale          float32 [cells], target_sum / total of the cell (counts only)
    uns/perturbdiff/row_nnz        int32 [cells], stored values of the row
    manifest.json                  vocabularies, groups, split, checksums; "complete" is written last
The two arrays of ours lie under uns because `anndata.read_zarr` refuses other members at the top.
"""

import functools
import hashlib
import json
import pathlib
import warnings
from collections.abc import Sequence

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import tensorstore as ts

from perturbdiff_jax.data.conditions import SPLITS as SPLITS
from perturbdiff_jax.data.groups import FALLBACKS as FALLBACKS
from perturbdiff_jax.data.groups import Groups
from perturbdiff_jax.data.values import normalise
from perturbdiff_jax.errors import RequestError

FORMAT = "perturbdiff-store"
VERSION = 1
MANIFEST = "manifest.json"
EXTRA = "uns/perturbdiff"
NEEDED = (
    "n_cells",
    "nnz",
    "genes",
    "keys",
    "control",
    "perturbations",
    "cell_types",
    "batches",
    "values",
    "groups",
)


class Store:
    """An opened store. Cells are rows, ordered by group; expression comes out log1p-normalised, float32.

    Attributes: path, manifest (dict), genes, perturbations, cell_types, batches (lists of str), control
    (label), groups (Groups), n_cells.
    """

    def __init__(self, path: pathlib.Path, manifest: dict):
        self.path = path
        self.manifest = manifest
        self.genes: list[str] = manifest["genes"]
        self.perturbations: list[str] = manifest["perturbations"]
        self.cell_types: list[str] = manifest["cell_types"]
        self.batches: list[str] = manifest["batches"]
        self.control: str = manifest["control"]
        self.n_cells: int = manifest["n_cells"]
        self.groups = Groups.from_json(manifest["groups"])
        self._arrays: dict[str, ts.TensorStore] = {}

    @classmethod
    def open(cls, path: str | pathlib.Path) -> "Store":
        """Opens the store at `path`; raises RequestError if missing, incomplete, of another version or
        damaged.

        Quick: it looks at the manifest and the shapes of the arrays, not at every byte (`verify` does).
        """
        path = pathlib.Path(path)
        store = cls(path, read_manifest(path))
        store._check_shapes()
        return store

    def _check_shapes(self) -> None:
        nnz, groups = self.manifest["nnz"], self.groups
        wanted = {
            "X/data": nnz,
            "X/indices": nnz,
            "X/indptr": self.n_cells + 1,
            f"{EXTRA}/row_nnz": self.n_cells,
        }
        if self.is_counts:
            wanted[f"{EXTRA}/scale"] = self.n_cells
        for name, length in wanted.items():
            shape = self._array(name).shape
            if shape != (length,):
                raise _damaged(self.path, f"array {name} has shape {shape}, the manifest says ({length},)")
        ends = groups.start + groups.size
        if (
            not len(groups)
            or groups.start[0] != 0
            or ends[-1] != self.n_cells
            or (ends[:-1] != groups.start[1:]).any()
        ):
            raise _damaged(self.path, "the groups of the manifest do not cover its cells")
        for name in ("obs", "var"):
            if not (self.path / name / "zarr.json").is_file():
                raise _damaged(self.path, f"{name} is missing")

    @property
    def is_counts(self) -> bool:
        return self.manifest["values"]["encoding"] == "counts"

    def _array(self, name: str) -> ts.TensorStore:
        if name not in self._arrays:
            spec = {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": str(self.path.absolute() / name)},
            }
            try:
                self._arrays[name] = ts.open(spec, open=True, read=True).result()
            except ValueError as error:
                raise _damaged(self.path, f"array {name} cannot be opened") from error
        return self._arrays[name]

    def _fetch(self, *parts: tuple[str, int, int]) -> list[np.ndarray]:
        """Reads slices (array, from, to) at once."""
        with ts.Batch() as batch:
            reads = [self._array(name)[low:high].read(batch=batch) for name, low, high in parts]
        try:
            return [read.result() for read in reads]
        except ValueError as error:
            raise _damaged(self.path, f"its arrays cannot be read ({str(error)[:200]})") from error

    def read(self, start: int, stop: int) -> sp.csr_matrix:
        """Rows start..stop-1 as float32 CSR [stop-start, G], log1p-normalised, columns sorted in each row."""
        if not 0 <= start <= stop <= self.n_cells:
            raise ValueError(f"rows {start}:{stop} of a store with {self.n_cells} cells")
        (indptr,) = self._fetch(("X/indptr", start, stop + 1))
        low, high = int(indptr[0]), int(indptr[-1])
        parts = [("X/data", low, high), ("X/indices", low, high)]
        if self.is_counts:
            parts.append((f"{EXTRA}/scale", start, stop))
        data, indices, *scale = self._fetch(*parts)
        # scipy wants int32 or int64 columns; both kinds of index agree, so nothing is converted again later.
        pointers = indptr - low
        kind = np.int32 if high - low < 2**31 else np.int64
        matrix = sp.csr_matrix(
            (data, indices.astype(kind), pointers.astype(kind)), shape=(stop - start, len(self.genes))
        )
        return normalise(matrix, scale[0]) if scale else matrix

    def load(self) -> sp.csr_matrix:
        """All cells as float32 CSR [cells, G], log1p-normalised."""
        return self.read(0, self.n_cells)

    @functools.cached_property
    def obs(self) -> pd.DataFrame:
        """obs of all cells, in row order: the keys' own columns (categorical) and `source_row`."""
        import zarr

        return anndata.io.read_elem(zarr.open_group(str(self.path), mode="r")["obs"])

    def to_anndata(self, group_indices: Sequence[int]) -> anndata.AnnData:
        """The cells of the given groups, in that order: X log1p-normalised float32 CSR, obs with the keys'
        columns."""
        chosen = np.asarray(group_indices, dtype=np.int64).ravel()
        ranges = [
            (int(self.groups.start[g]), int(self.groups.start[g] + self.groups.size[g])) for g in chosen
        ]
        if not ranges:
            matrix = sp.csr_matrix((0, len(self.genes)), dtype=np.float32)
            rows = np.zeros(0, dtype=np.int64)
        else:
            matrix = sp.vstack([self.read(*pair) for pair in ranges], format="csr")
            rows = np.concatenate([np.arange(*pair) for pair in ranges])
        var = pd.DataFrame(index=pd.Index(np.array(self.genes, dtype=object)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a group named twice gives cell names twice
            return anndata.AnnData(X=matrix, obs=self.obs.iloc[rows].copy(), var=var)

    def verify(self) -> None:
        """Reads every byte against the manifest's checksums; raises RequestError naming the first damaged
        file."""
        for name, checksum in self.manifest["checksums"].items():
            file = self.path / name
            if not file.is_file() or file_sha256(file) != checksum:
                raise _damaged(self.path, f"{name} does not match its checksum")


def is_store(path: pathlib.Path) -> bool:
    """Whether `path` is a folder with a manifest of ours, of whatever version and state."""
    try:
        return json.loads((path / MANIFEST).read_text()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def read_manifest(path: pathlib.Path) -> dict:
    """The checked manifest of the store at `path`; raises RequestError (see `Store.open`)."""
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "no such store"
        raise RequestError(f"{path}: {what} (a store is a folder made by `perturbdiff prepare`).")
    file = path / MANIFEST
    if not file.is_file():
        raise RequestError(
            f"{path}: not a store, or an incomplete one: {MANIFEST} is missing.\nRun prepare again."
        )
    try:
        manifest = json.loads(file.read_text())
    except ValueError as error:
        raise _damaged(path, f"{MANIFEST} is not valid JSON ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise RequestError(f"{file}: not a store of ours (format must be {FORMAT!r}).")
    if manifest.get("version") != VERSION:
        raise RequestError(
            f"{file}: store version {manifest.get('version')!r}; this release reads version {VERSION}. "
            "Run prepare again."
        )
    if manifest.get("complete") is not True:
        raise RequestError(
            f"{file}: the store is incomplete (its writing was broken off). Run prepare again."
        )
    missing = [name for name in NEEDED if name not in manifest]
    if missing:
        raise _damaged(path, f"{MANIFEST} lacks {', '.join(missing)}")
    return manifest


def file_sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _damaged(path: pathlib.Path, why: str) -> RequestError:
    return RequestError(f"{path}: the store is damaged: {why}.\nRun prepare again.")

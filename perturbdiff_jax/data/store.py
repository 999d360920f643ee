"""The store: grouped cells as a valid AnnData zarr v3 group plus manifest.json, read through tensorstore.

Layout (written by storage/writer.py):
    X/{data,indices,indptr}        CSR, sorted; counts as uint16/uint32 or log1p values as float32
    X                              instead, where many counts are above 0: uint8 [cells, genes]
    obs, var                       keys and source row of every cell; gene names
    uns/perturbdiff/scale          float32 [cells], target_sum / total of the cell (counts only)
    uns/perturbdiff/row_nnz        int32 [cells], stored values of the row (CSR only)
    manifest.json                  vocabularies, groups, split, checksums; "complete" is written last
The two arrays of ours lie under uns because `anndata.read_zarr` refuses other members at the top. A folder
with a manifest that lists parts is an index over other stores (storage/merge.py).
"""

import functools
import pathlib
import tempfile
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import tensorstore as ts

from perturbdiff_jax.data.conditions import SPLITS as SPLITS
from perturbdiff_jax.data.groups import FALLBACKS as FALLBACKS
from perturbdiff_jax.data.groups import Groups
from perturbdiff_jax.data.storage.face import StoreFace
from perturbdiff_jax.data.storage.fetch import Fetch
from perturbdiff_jax.data.storage.location import Location, locate, reason
from perturbdiff_jax.data.storage.manifest import EXTRA as EXTRA
from perturbdiff_jax.data.storage.manifest import FORMAT as FORMAT
from perturbdiff_jax.data.storage.manifest import MANIFEST as MANIFEST
from perturbdiff_jax.data.storage.manifest import VERSION as VERSION
from perturbdiff_jax.data.storage.manifest import damaged, read_manifest
from perturbdiff_jax.data.storage.manifest import file_sha256 as file_sha256
from perturbdiff_jax.data.storage.manifest import is_store as is_store
from perturbdiff_jax.data.storage.obs import read_obs
from perturbdiff_jax.errors import RequestError


class Store(StoreFace):
    """An opened store; see StoreFace for what it has and can do."""

    def __init__(self, place: Location, manifest: dict, manifest_hash: str):
        super().__init__(place.path, manifest, Groups.from_json(manifest["groups"]))
        self.place = place
        self.manifest_hash = manifest_hash
        self.n_cells: int = manifest["n_cells"]
        self._arrays: dict[str, ts.TensorStore] = {}

    @classmethod
    def open(cls, path: str | pathlib.Path) -> StoreFace:
        """Opens the store at a path or URL; raises RequestError if missing, incomplete, of another version or
        damaged.

        Quick: it looks at the manifest and the shapes of the arrays, not at every byte (`verify` does).
        """
        place = locate(path)
        manifest, manifest_hash = read_manifest(place)
        if "parts" in manifest:
            from perturbdiff_jax.data.storage.index import open_index  # it opens stores in its turn

            return open_index(place, manifest)
        store = cls(place, manifest, manifest_hash)
        store._open_arrays()
        return store

    def _open_arrays(self) -> None:
        shapes = {f"{EXTRA}/scale": (self.n_cells,)} if self.is_counts else {}
        if self.is_dense:
            shapes["X"] = (self.n_cells, len(self.genes))
        else:
            shapes |= {"X/data": (self.nnz,), "X/indices": (self.nnz,), "X/indptr": (self.n_cells + 1,)}
            shapes[f"{EXTRA}/row_nnz"] = (self.n_cells,)
        opening = {name: self.place.open_array(name) for name in shapes}
        for name, future in opening.items():
            try:
                self._arrays[name] = future.result()
            except ValueError as error:
                raise self._fault(f"array {name} cannot be opened", error) from error
            if self._arrays[name].shape != shapes[name]:
                found, wanted = self._arrays[name].shape, shapes[name]
                raise damaged(self.path, f"array {name} has shape {found}, the manifest says {wanted}")
        groups = self.groups
        ends = groups.start + groups.size
        if (
            not len(groups)
            or groups.start[0] != 0
            or ends[-1] != self.n_cells
            or (ends[:-1] != groups.start[1:]).any()
        ):
            raise damaged(self.path, "the groups of the manifest do not cover its cells")
        for name, content in zip(("obs", "var"), self.place.read(["obs/zarr.json", "var/zarr.json"])):
            if content is None:
                raise damaged(self.path, f"{name} is missing")

    @property
    def dtypes(self) -> tuple[np.dtype, np.dtype]:
        values = self.array("X" if self.is_dense else "X/data").dtype.numpy_dtype
        return values, np.dtype(np.uint16) if self.is_dense else self.array("X/indices").dtype.numpy_dtype

    def array(self, name: str) -> ts.TensorStore:
        """An array of the store by its name in the layout above."""
        return self._arrays[name]

    def pointers(self, rows: np.ndarray) -> np.ndarray:
        """Stored values before each row (int64 of the same shape) where the group table tells, else -1."""
        group = np.minimum(np.searchsorted(self.groups.start, rows), len(self.groups) - 1)
        known = np.where(self.groups.start[group] == rows, self.groups.pointer[group], -1)
        return np.where(rows == self.n_cells, self.nnz, known)

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> Fetch:
        reads = [(self, start, stop) for start, stop in self.checked(ranges).tolist()]
        return Fetch(
            reads, genes=len(self.genes), counts=self.is_counts, dense=self.is_dense, dtypes=self.dtypes
        )

    def unreadable(self, error: Exception) -> RequestError:
        """The refusal for a read that went wrong."""
        return self._fault("its arrays cannot be read", error)

    def _fault(self, what: str, error: Exception) -> RequestError:
        text = f"{what} ({reason(error)})"
        # Bytes of a remote store are as likely to have been lost on the way.
        return damaged(self.path, text) if self.place.folder else RequestError(f"{self.path}: {text}.")

    def obs_of(self, ranges: Sequence[tuple[int, int]]) -> pd.DataFrame:
        return read_obs(self._obs_folder, self.checked(ranges).tolist())

    @functools.cached_property
    def _obs_folder(self) -> pathlib.Path:
        if self.place.folder:
            return self.place.folder / "obs"
        # Small beside the cells, and many little files: fetched whole, once.
        self._scratch = tempfile.TemporaryDirectory(prefix="perturbdiff-obs-")
        names = [name for name in self.manifest["checksums"] if name.startswith("obs/")]
        for name, content in zip(names, self.place.read(names), strict=True):
            if content is None:
                raise RequestError(f"{self.path}: {name} is missing.")
            file = pathlib.Path(self._scratch.name) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return pathlib.Path(self._scratch.name) / "obs"

    def verify(self, echo: Callable[[str], None] | None = None) -> str:
        """Checks every byte and what the arrays say to each other; see `storage/verify.py`."""
        from perturbdiff_jax.data.storage.verify import verify

        return verify(self, echo)

"""What every store-like object can do: a prepared store, a regrouped view of one, several merged by an index."""

import abc
import functools
import pathlib
import warnings
from collections.abc import Sequence

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbdiff_jax.data.groups import Groups
from perturbdiff_jax.data.raw_cells import RawCells
from perturbdiff_jax.data.storage.fetch import Fetch
from perturbdiff_jax.data.storage.measured import measured_of


class StoreFace(abc.ABC):
    """Cells are rows, ordered by group; `fetch` gives them as they are stored, `read` log1p-normalised.

    Attributes: path (Path, or str for a URL), manifest (dict), genes, perturbations, cell_types, batches
    (lists of str), control (label), groups (Groups), n_cells, nnz (stored values), is_counts, is_dense.
    """

    def __init__(self, path: pathlib.Path | str, manifest: dict, groups: Groups):
        self.path = path
        self.manifest = manifest
        self.genes: list[str] = manifest["genes"]
        self.perturbations: list[str] = manifest["perturbations"]
        self.cell_types: list[str] = manifest["cell_types"]
        self.batches: list[str] = manifest["batches"]
        self.control: str = manifest["control"]
        self.n_cells: int = int(groups.size.sum())
        self.nnz: int = manifest["nnz"]
        self.is_counts: bool = manifest["values"]["encoding"] == "counts"
        self.is_dense: bool = manifest["layout"] == "dense"
        self.groups = groups

    @property
    @abc.abstractmethod
    def dtypes(self) -> tuple[np.dtype, np.dtype]:
        """Of the stored values and of the gene numbers, as `fetch` gives them."""

    @property
    def nbytes(self) -> int:
        """Bytes of all cells as RawCells."""
        values, columns = (dtype.itemsize for dtype in self.dtypes)
        scale = 4 * self.n_cells if self.is_counts else 0
        if self.is_dense:
            return self.n_cells * len(self.genes) * values + scale
        return self.nnz * (values + columns) + 8 * (self.n_cells + 1) + scale

    @abc.abstractmethod
    def fetch(self, ranges: Sequence[tuple[int, int]]) -> Fetch:
        """Asks for the rows start..stop-1 of every range at once and returns; `.result()` is their RawCells.

        Rows come in the order of the ranges. Raises ValueError for rows that the store does not have.
        """

    @abc.abstractmethod
    def obs_of(self, ranges: Sequence[tuple[int, int]]) -> pd.DataFrame:
        """obs of the rows of the ranges, in their order: the keys' own columns (categorical) and `source_row`."""

    @functools.cached_property
    def measured(self) -> np.ndarray:
        """bool [sources, genes]: whether the source file measures the gene; where it does not, zeros mean nothing.

        Sources are those of manifest["sources"]; stores that do not tell measure all (storage/measured.py).
        """
        return measured_of(self.manifest, self.path)

    @functools.cached_property
    def obs(self) -> pd.DataFrame:
        """obs of all cells, in row order; for millions of cells see `obs_of`."""
        return self.obs_of([(0, self.n_cells)])

    def batch_codes(self, rows: np.ndarray) -> np.ndarray:
        """The batch of each cell: rows, integers of any shape -> int32 of the same shape."""
        return self.groups.batch[self.groups.of(rows)]

    def read_raw(self, start: int, stop: int) -> RawCells:
        """Rows start..stop-1 as they are stored."""
        return self.fetch([(start, stop)]).result()

    def read(self, start: int, stop: int) -> sp.csr_matrix:
        """Rows start..stop-1 as float32 CSR [stop-start, G], log1p-normalised, columns sorted in each row."""
        return self.read_raw(start, stop).lognorm()

    def load(self) -> sp.csr_matrix:
        """All cells as float32 CSR [cells, G], log1p-normalised."""
        return self.read(0, self.n_cells)

    def to_anndata(self, group_indices: Sequence[int]) -> anndata.AnnData:
        """The cells of the given groups, in that order: X log1p-normalised float32 CSR, obs with the keys'
        columns, var with a column `measured` if some genes are measured by no source."""
        chosen = np.asarray(group_indices, dtype=np.int64).ravel()
        start = self.groups.start[chosen]
        ranges = list(zip(start.tolist(), (start + self.groups.size[chosen]).tolist(), strict=True))
        matrix = self.fetch(ranges).result().lognorm()
        var = pd.DataFrame(index=pd.Index(np.array(self.genes, dtype=object)))
        if not (measured := self.measured.any(axis=0)).all():
            var["measured"] = measured
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a group named twice gives cell names twice
            return anndata.AnnData(X=matrix, obs=self.obs_of(ranges), var=var)

    def checked(self, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
        """The ranges as int64 [R, 2]; raises ValueError for rows that are not there."""
        table = np.asarray(ranges, dtype=np.int64).reshape(-1, 2)
        wrong = (table[:, 0] < 0) | (table[:, 0] > table[:, 1]) | (table[:, 1] > self.n_cells)
        if wrong.any():
            start, stop = table[np.argmax(wrong)]
            raise ValueError(f"rows {start}:{stop} of a store with {self.n_cells} cells")
        return table

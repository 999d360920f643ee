"""A store in memory with small uneven groups, for the loader's tests: Store and Groups without files.

Every cell can be told from its expression: gene 0 holds its row number + 1, gene 1 its group number + 1.
"""

import types

import numpy as np
import scipy.sparse as sp

from perturbdiff_jax.data.raw_cells import RawCells
from perturbdiff_jax.errors import RequestError

# (context, perturbation, split, size); a context's control group stands first, as in a store.
TABLE = [
    (0, 0, "control", 40),
    (0, 1, "train", 17),
    (0, 2, "train", 8),
    (0, 3, "test", 11),
    (1, 0, "control", 5),
    (1, 1, "train", 3),
    (1, 2, "validation", 9),
    (1, 3, "train", 1),
    (2, 0, "control", 1),
    (2, 1, "train", 30),
    (2, 2, "test", 4),
]
SPLITS = ("train", "validation", "test", "control")


def random_table(groups: int = 60, contexts: int = 4, largest: int = 60, seed: int = 0):
    """A table of the same kind with `groups` perturbed groups of 1 to `largest` cells, four in five of them train."""
    rng = np.random.default_rng(seed)
    table = []
    for context in range(contexts):
        table.append((context, 0, "control", int(rng.integers(1, 2 * largest))))
        for perturbation in range(1, groups // contexts + 1):
            split = "train" if rng.random() < 0.8 else "test"
            table.append((context, perturbation, split, int(rng.integers(1, largest + 1))))
    return table


class FakeStore:
    """`.groups`, `.fetch`, vocabularies and `.path`; `fetched` counts the rows of every read, `damaged` rows fail."""

    path = "fake.store"
    perturbations, cell_types, batches = ["control", "a", "b", "c"], ["x", "y", "z"], ["p", "q"]
    is_counts = is_dense = False

    def __init__(self, table=TABLE, genes: int = 7):
        contexts, perturbations, splits, sizes = (np.array(column) for column in zip(*table))
        start = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        is_control = perturbations == 0
        own = {context: group for group, context in enumerate(contexts) if is_control[group]}
        self.groups = types.SimpleNamespace(
            start=start.astype(np.int64),
            size=sizes.astype(np.int64),
            perturbation=perturbations.astype(np.int32),
            cell_type=contexts.astype(np.int32),
            batch=(contexts % 2).astype(np.int32),
            is_control=is_control,
            control=np.array([own[context] for context in contexts], np.int32),
            fallback=np.zeros(len(table), np.int8),
            split=np.array([SPLITS.index(split) for split in splits], np.int8),
        )
        self.n_cells, self.genes = int(sizes.sum()), [f"g{i}" for i in range(genes)]
        dense = np.random.default_rng(0).random((self.n_cells, genes)).astype(np.float32)
        dense[dense < 0.5] = 0
        dense[:, 0] = np.arange(self.n_cells) + 1
        dense[:, 1] = np.repeat(np.arange(len(table)), sizes) + 1
        self.dense, self._matrix = dense, sp.csr_matrix(dense)
        self.nnz = self._matrix.nnz
        self.nbytes = 6 * self.nnz + 8 * self.n_cells
        self.group_of = np.repeat(np.arange(len(table)), sizes)
        self.fetched: list[int] = []
        self.damaged: set[int] = set()

    def fetch(self, ranges):
        rows = np.concatenate([np.arange(low, high) for low, high in ranges])
        assert rows.min() >= 0 and rows.max() < self.n_cells
        self.fetched.append(len(rows))
        return types.SimpleNamespace(result=lambda: self._cells(rows))

    def _cells(self, rows) -> RawCells:
        bad = self.damaged & set(rows.tolist())
        if bad:
            raise RequestError(f"fake.store: cell {min(bad)} is damaged.")
        part = self._matrix[rows]
        indices, pointers = part.indices.astype(np.uint16), part.indptr.astype(np.int64)
        return RawCells(part.data.copy(), indices, pointers, None, len(self.genes))


def fake_store(table=TABLE, genes: int = 7) -> FakeStore:
    return FakeStore(table, genes)

"""A store in memory with small uneven groups, for the loader's tests: Store and Groups without files.

Every cell can be told from its expression: gene 0 holds its row number + 1, gene 1 its group number + 1.
"""

import types

import numpy as np
import scipy.sparse as sp

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


def fake_store(table=TABLE, genes: int = 7):
    """An object with `.groups`, `.load()`, `.read(start, stop)`, vocabularies and `.path`."""
    contexts, perturbations, splits, sizes = (np.array(column) for column in zip(*table))
    start = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    is_control = perturbations == 0
    own = {context: group for group, context in enumerate(contexts) if is_control[group]}
    groups = types.SimpleNamespace(
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
    n = int(sizes.sum())
    dense = np.random.default_rng(0).random((n, genes)).astype(np.float32)
    dense[dense < 0.5] = 0
    dense[:, 0] = np.arange(n) + 1
    dense[:, 1] = np.repeat(np.arange(len(table)), sizes) + 1
    matrix = sp.csr_matrix(dense)
    return types.SimpleNamespace(
        path="fake.store",
        groups=groups,
        n_cells=n,
        genes=[f"g{i}" for i in range(genes)],
        perturbations=["control", "a", "b", "c"],
        cell_types=["x", "y", "z"],
        batches=["p", "q"],
        load=lambda: matrix,
        read=lambda first, last: matrix[first:last],
        dense=dense,
        group_of=np.repeat(np.arange(len(table)), sizes),
    )

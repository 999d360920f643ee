"""A small file of control cells, and the bundle that reads them."""

import types

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbdiff_jax.prediction.control_file import from_anndata

GENES = [f"g{i}" for i in range(12)]
BUNDLE = types.SimpleNamespace(
    genes=GENES[2:],  # two genes of the file are not the bundle's, but count towards a cell's total
    control="ctrl",
    cell_types=["T", "B"],
    batches=["d1", "d2"],
    keys={"perturbation": "pert", "cell_type": "kind", "batch": "donor"},
    values={"target_sum": 1e4, "largest": np.log1p(1e4)},
    datasets={},
    origin={},
)


def make(counts=None, seed=0):
    rng = np.random.default_rng(seed)
    rows = [(p, c, b) for p in ("A", "ctrl") for c in ("T", "B") for b in ("d1", "d2") for _ in range(3)]
    X = rng.poisson(2.0, (len(rows), len(GENES))) + (np.arange(12) == 5) if counts is None else counts
    obs = pd.DataFrame(rows, columns=["pert", "kind", "donor"], index=[f"c{i}" for i in range(len(rows))])
    obs["total"] = X.sum(axis=1) * 2.0
    return anndata.AnnData(X=sp.csr_matrix(X.astype(np.float32)), obs=obs, var=pd.DataFrame(index=GENES))


def read(source, echo=lambda _: None, **changes):
    keys = {"cell_type_key": "kind", "batch_key": "donor"}
    return from_anndata(source, BUNDLE, echo=echo, **keys | changes)

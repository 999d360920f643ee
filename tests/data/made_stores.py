"""Small stores of both layouts, prepared once and copied for each test."""

import shutil

import numpy as np
import scipy.sparse as sp

from perturbdiff_jax.data.prepare import PrepareOptions, prepare
from perturbdiff_jax.data.store import Store

OPTIONS = {
    "perturbation_key": "pert",
    "control": "control",
    "cell_type_key": "kind",
    "batch_key": "donor",
    "all_genes": True,
}


def thinned(adata):
    """Few enough counts for the CSR layout."""
    counts = adata.X.toarray()
    counts[:, 1:] *= np.random.default_rng(1).random((adata.n_obs, adata.n_vars - 1)) < 0.3
    adata.X = sp.csr_matrix(counts)
    adata.obs["total"] = counts.sum(axis=1) * 2
    return adata


def copied(layout, adata, kept, folder):
    """(store of the cells of `adata` in `folder`/store, those cells); the original lies in the folder `kept`."""
    adata = thinned(adata) if layout == "csr" else adata
    if not (kept / layout).exists():
        adata.write_h5ad(kept / f"{layout}.h5ad")
        prepare([kept / f"{layout}.h5ad"], kept / layout, PrepareOptions(**OPTIONS), echo=lambda line: None)
    store = Store.open(shutil.copytree(kept / layout, folder / "store"))
    assert store.manifest["layout"] == layout
    return store, adata

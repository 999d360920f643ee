"""Small AnnData files for the tests of data/, and the shared real data where they are present."""

import json
import pathlib

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from made_stores import copied

SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared"


def make_adata(
    contexts=(("T", "b1"), ("T", "b2"), ("B", "b1"), ("B", "b2")),
    perturbations=("control", "P1", "P2", "P3"),
    cells=7,
    genes=30,
    seed=0,
):
    """Raw counts, `cells` cells of every perturbation in every context, in random order, no empty cell."""
    rng = np.random.default_rng(seed)
    rows = [(p, c, b) for c, b in contexts for p in perturbations for _ in range(cells)]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    counts = rng.poisson(rng.gamma(0.5, 2.0, size=genes), size=(len(rows), genes)).astype(np.float32)
    counts[:, 0] += 1
    obs = pd.DataFrame(rows, columns=["pert", "kind", "donor"], index=[f"cell{i}" for i in range(len(rows))])
    obs["total"] = counts.sum(axis=1) * 2
    return anndata.AnnData(
        X=sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(genes)])
    )


@pytest.fixture
def adata():
    return make_adata()


@pytest.fixture
def build():
    """`build(contexts=..., perturbations=..., cells=..., genes=..., seed=...)` -> AnnData of raw counts."""
    return make_adata


@pytest.fixture
def save(tmp_path):
    """`save(adata, name="a.h5ad")` -> path of the file."""

    def write(data, name="a.h5ad"):
        path = tmp_path / name
        data.write_h5ad(path)
        return path

    return write


@pytest.fixture(scope="session")
def shared():
    """Folder of the shared real data; skips where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no shared data at {SHARED}")
    return SHARED


@pytest.fixture
def split_file(tmp_path):
    """`split_file(content, name=None)` -> path of a JSON file, or of a TOML file when `content` is text."""

    def write(content, name=None):
        text = content if isinstance(content, str) else json.dumps(content)
        path = tmp_path / (name or ("s.toml" if isinstance(content, str) else "s.json"))
        path.write_text(text)
        return path

    return write


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    """Where what is prepared once lies; tests get copies."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(params=["csr", "dense"])
def made(request, adata, kept, tmp_path):
    """(store of this layout, the AnnData it was made from)."""
    return copied(request.param, adata, kept, tmp_path)


@pytest.fixture
def sparse(adata, kept, tmp_path):
    """The same, CSR only."""
    return copied("csr", adata, kept, tmp_path)

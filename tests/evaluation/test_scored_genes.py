"""Genes that no real cell measures are in no score; what some files or the rivals' store lack is said."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from toy_cells import GENES, evaluated, prediction, screen, store_of

from perturbdiff_jax.data.prepare import PrepareOptions, prepare
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.evaluation import celleval
from perturbdiff_jax.evaluation.scored_genes import unmeasured_genes

LISTED = ["n0", *GENES[:20], "n1", *GENES[20:], "n2"]
SPLIT = {"fraction": 1.0, "context": {"batch": "y"}, "validation_fraction": 0.0, "seed": 0}


@pytest.fixture(autouse=True)
def without_cell_eval(monkeypatch):
    monkeypatch.setattr(celleval, "installed", lambda: False)


@pytest.fixture
def stored(tmp_path):
    """`stored(name, files, **options)` -> path of a store of the screen's cells."""

    def make(name, files, **options):
        keys = {"perturbation_key": "pert", "control": "control", "cell_type_key": "type", "batch_key": "lot"}
        (tmp_path / "genes.txt").write_text("\n".join(LISTED))
        paths = []
        for number, adata in enumerate(files):
            paths.append(tmp_path / f"{name}{number}.h5ad")
            adata.write_h5ad(paths[-1])
        wishes = PrepareOptions(
            **keys, holdout=SPLIT, workers=1, genes=str(tmp_path / "genes.txt"), **options
        )
        prepare(paths, tmp_path / name, wishes, echo=lambda _: None)
        return tmp_path / name

    return make


def widened(pred, seed=3):
    """The prediction with all listed genes; it claims something of those that nobody measured."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(pred.X.toarray(), columns=pred.var_names).reindex(columns=LISTED)
    for name in ("n0", "n1", "n2"):
        table[name] = rng.random(pred.n_obs).astype(np.float32) * 3
    var = pd.DataFrame(index=LISTED)
    return ad.AnnData(sp.csr_matrix(table.to_numpy(np.float32)), obs=pred.obs, var=var, uns=dict(pred.uns))


def test_scores_are_those_of_the_measured_genes(stored, tmp_path):
    raw, said = screen(), []
    narrow = prediction(raw)
    whole, plain = stored("whole", [raw], absent_genes="zero"), stored("plain", [raw])
    ours = evaluated(tmp_path / "a", widened(narrow), whole, said, store=whole)
    theirs = evaluated(tmp_path / "b", narrow, plain, store=plain)
    pd.testing.assert_frame_equal(ours.rows, theirs.rows)
    assert ours.settings["genes"] == len(GENES)
    assert "genes: 3 of 43 predicted genes are measured in no real cell and left out (n0, n1, n2)" in said
    with pytest.raises(RequestError, match="measure none of their 3 genes"):
        evaluated(tmp_path / "c", widened(narrow)[:, ["n0", "n1", "n2"]].copy(), whole)
    assert not (tmp_path / "c").exists()


def test_an_anndata_of_a_store_says_it_too(stored):
    adata = ad.read_zarr(stored("whole", [screen()], absent_genes="zero"))
    assert unmeasured_genes(adata, print) == {"n0", "n1", "n2"}
    adata.var["measured"] = adata.var["measured"].astype(float)
    assert unmeasured_genes(adata, print) == frozenset() == unmeasured_genes(screen(), print)


def test_genes_of_some_files_are_scored_and_said(stored):
    raw, said = screen(), []
    kinds = [raw[(raw.obs["type"] == kind).to_numpy()] for kind in ("A", "B")]
    both = stored("both", [kinds[0], kinds[1][:, :38]], absent_genes="zero")
    assert unmeasured_genes(both, said.append) == {"n0", "n1", "n2"}
    assert len(said) == 1 and "2 genes (g38, P1) measured in some of its files only" in said[0]


def test_rivals_that_learn_from_a_store_without_some_genes(tmp_path):
    store, said = store_of(screen()), []
    store.measured[0, :2] = False
    evaluated(tmp_path / "a", prediction(screen()), said=said, store=store)
    assert (
        "store toy: 2 genes (g0, g1) scored but not measured there; the rivals that learn from it have zeros"
        in said
    )

"""Control cells out of a user's file: any layout and order gives the same cells, and what is assumed is said."""

import json
import types

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from small_controls import BUNDLE, make, read

from perturbdiff_jax.data.genes import read_gene_list
from perturbdiff_jax.data.storage.measured import mask_text
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.prediction.controls import ControlCells, check_store


def same(a, b, atol=1e-6):
    assert a.cells.keys() == b.cells.keys()
    for context in a.cells:
        assert a.names[context] == b.names[context]
        np.testing.assert_allclose(a.cells[context].toarray(), b.cells[context].toarray(), atol=atol)


@pytest.fixture(scope="module")
def expected():
    return read(make())


def test_cells_are_totalled_over_all_genes_and_put_in_the_bundles_order(expected):
    adata = make()
    X = adata.X.toarray()
    want = np.log1p(X / X.sum(axis=1, keepdims=True) * 1e4)[:, 2:]
    assert sorted(expected.cells) == [("B", "d1"), ("B", "d2"), ("T", "d1"), ("T", "d2")]
    np.testing.assert_allclose(expected.cells["T", "d2"].toarray(), want[15:18], rtol=1e-6)
    assert (
        expected.names["T", "d2"] == ["c15", "c16", "c17"] and expected.cells["T", "d2"].dtype == np.float32
    )


def dense(adata):
    adata.X = adata.X.toarray()


def integers(adata):
    adata.X = adata.X.astype(np.int64)


def columns(adata):
    adata.X = sp.csc_matrix(adata.X)


def sparse_array(adata):
    adata.X = sp.csr_array(adata.X)


def shuffled_genes(adata):
    return adata[:, np.random.default_rng(1).permutation(adata.n_vars)].copy()


def lognorm(adata):
    X = adata.X.toarray()
    adata.X = sp.csr_matrix(np.log1p(X / X.sum(axis=1, keepdims=True) * 1e4))


def only_controls(adata):
    return adata[adata.obs["pert"] == "ctrl"].copy()


def categories(adata):
    for name in ("pert", "kind", "donor"):
        adata.obs[name] = adata.obs[name].astype("category")


def bad_perturbed_cell(adata):
    """What is not used is not looked at."""
    adata.X[0, 3] = np.nan


CHANGES = (
    dense,
    integers,
    columns,
    sparse_array,
    shuffled_genes,
    lognorm,
    only_controls,
    categories,
    bad_perturbed_cell,
)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("form", ["memory", "file", "backed"])
def test_every_layout_gives_the_same_cells(expected, tmp_path, change, form):
    adata = make()
    adata = change(adata) or adata
    before = adata.X.copy()
    source = adata
    if form != "memory":
        source = tmp_path / "a.h5ad"
        adata.write_h5ad(source)
    if form == "backed":
        source = anndata.read_h5ad(source, backed="r")
    same(read(source), expected)
    difference = adata.X - before
    assert np.nansum(np.abs(difference.data if sp.issparse(difference) else difference)) == 0


def test_bool_expression_counts_as_0_and_1():
    adata = make()
    adata.X = adata.X > 2
    plain = make(counts=np.asarray(adata.X.toarray(), np.float32))
    same(read(adata), read(plain))


def test_totals_come_from_the_column_that_is_named():
    cells = read(make(), total_key="total")
    X = make().X.toarray()
    np.testing.assert_allclose(
        cells.cells["T", "d1"].toarray(),
        np.log1p(X[12:15, 2:] / X[12:15].sum(axis=1, keepdims=True) * 5e3),
        rtol=1e-5,
    )
    heard = []
    adata = make()
    lognorm(adata)
    read(adata, total_key="total", echo=heard.append)
    assert any("'total' is not used" in line for line in heard)


def test_what_is_assumed_is_said_aloud():
    heard = []
    adata = make()[:, 3:].copy()
    del adata.obs["pert"]
    cells = read(adata, echo=heard.append)
    text = "\n".join(heard)
    assert "no column 'pert', so all 24 cells are taken as control cells" in text
    assert "1 of 10 genes are missing and taken as zero" in text and "raw counts, normalised to 10000" in text
    assert (cells.cells["T", "d1"].toarray()[:, 0] == 0).all() and cells.cells["T", "d1"].shape == (6, 10)


def test_few_genes_will_do_when_asked():
    adata = make()
    cells = read(adata[:, :5].copy(), min_gene_overlap=0.3)
    assert (cells.cells["T", "d1"].toarray()[:, 3:] == 0).all()


def test_a_file_need_not_have_genes_that_training_did_not_measure(monkeypatch):
    adata, heard = make()[:, :6].copy(), []
    with pytest.raises(RequestError, match=r"has 4 of the bundle's 10 genes \(40%\)"):
        read(adata)
    mask = np.arange(10) < 5
    monkeypatch.setitem(BUNDLE.values, "measured", mask_text(mask))
    cells = read(adata, heard.append)
    assert "6 of 10 genes are missing and taken as zero (5 of them as in training)." in "\n".join(heard)
    assert (cells.cells["T", "d1"].toarray()[:, 4:] == 0).all()
    with pytest.raises(RequestError, match="has 3 of the bundle's 5 genes that training measured") as caught:
        read(adata[:, [0, 1, 2, 3, 5, 4]][:, :5].copy())
    assert str(caught.value).endswith("Missing: g4, g6.")
    monkeypatch.setitem(BUNDLE.values, "measured", "00")
    with pytest.raises(RequestError, match="The bundle is damaged: its measured genes"):
        read(adata)


def test_a_store_of_other_genes_is_told_how_to_have_the_bundles(tmp_path):
    store = types.SimpleNamespace(path="s", genes=BUNDLE.genes[1:])
    with pytest.raises(RequestError, match=r"lacks g2\).*\n.*--genes BUNDLE/bundle.json --absent-genes zero"):
        check_store(store, BUNDLE)
    (tmp_path / "bundle.json").write_text(json.dumps({"format": "perturbdiff-bundle", "genes": BUNDLE.genes}))
    assert read_gene_list(tmp_path / "bundle.json") == BUNDLE.genes


def test_a_context_without_controls_borrows_them_by_the_stores_rules():
    block = sp.csr_matrix(np.ones((3, 2), np.float32))
    cells = {("T", "b1"): block, ("B", "b2"): block[:1], ("B", "b1"): block[:2], ("M", "b3"): block}
    controls = ControlCells(cells, {context: [] for context in cells})
    assert controls.resolve("T", "b1") == (("T", "b1"), "own context")
    assert controls.resolve("M", "b1") == (
        ("T", "b1"),
        "another cell type of the same batch",
    )  # the larger group
    assert controls.resolve("B", "b9") == (("B", "b1"), "same cell type of another batch")
    assert controls.resolve("X", "b9")[1] == "another context"

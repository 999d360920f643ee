"""Control cells out of a user's file: any layout and order gives the same cells; what is wrong is named."""

import types

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.prediction.controls import ControlCells, from_anndata

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


def spoilt(value):
    def change(adata):
        adata.X[13, 3] = value

    return change


def rename(axis, position, name):
    def change(adata):
        names = list(getattr(adata, f"{axis}_names"))
        names[position] = name
        setattr(adata, f"{axis}_names", names)

    return change


def column(name, position, value):
    def change(adata):
        values = adata.obs[name].astype(object)
        values.iloc[position] = value
        adata.obs[name] = values.tolist()

    return change


def empty_cell(adata):
    adata.X = sp.csr_matrix(adata.X.toarray() * (np.arange(24) != 13)[:, None])


def scaled(adata):
    adata.X = sp.csr_matrix(adata.X.toarray() * 30.5)


def other_total(adata):
    X = adata.X.toarray()
    adata.X = sp.csr_matrix(np.log1p(X / X.sum(axis=1, keepdims=True) * 1e6))


def no_controls(adata):
    return adata[adata.obs["pert"] == "A"].copy()


def few_genes(adata):
    return adata[:, :5].copy()


@pytest.mark.parametrize(
    ("change", "keys", "message"),
    [
        (spoilt(np.nan), {}, "X has 1 NaN or infinite value(s), first nan at cell 'c13', gene 'g3'"),
        (spoilt(np.inf), {}, "X has 1 NaN or infinite value(s), first inf at cell 'c13', gene 'g3'"),
        (spoilt(-1), {}, "X has 1 negative value(s), first -1 at cell 'c13', gene 'g3'"),
        (empty_cell, {}, "1 all-zero cell(s), first cell 'c13'"),
        (scaled, {}, "so these are not counts, and a maximum of"),
        (other_total, {}, "normalised to 1e+06, the bundle's to 10000"),
        (rename("var", 1, "g0"), {}, "1 duplicated gene name(s) in var: g0"),
        (rename("obs", 1, "c0"), {}, "1 duplicated cell name(s) in obs: c0"),
        (column("pert", 7, None), {}, "column 'pert' has 1 missing value(s), first at cell 'c7'"),
        (column("kind", 7, None), {}, "column 'kind' has 1 missing value(s), first at cell 'c7'"),
        (column("kind", 12, "Tt"), {}, "column 'kind': unknown cell type 'Tt'"),
        (column("donor", 12, "d3"), {}, "column 'donor': unknown batch 'd3'.\nAllowed: d1, d2."),
        (None, {"cell_type_key": "kin"}, "(--cell-type-key): unknown obs column 'kin'. Did you mean 'kind'"),
        (
            None,
            {"batch_key": None},
            "the bundle knows 2 batch names; say which column holds them: --batch-key",
        ),
        (None, {"total_key": "totl"}, "(--total-key): unknown obs column 'totl'. Did you mean 'total'"),
        (None, {"total_key": "kind"}, "column 'kind' is not numeric"),
        (column("total", 13, 0.0), {"total_key": "total"}, "column 'total' is 0 at cell 'c13'"),
        (
            column("total", 13, np.nan),
            {"total_key": "total"},
            "column 'total' has 1 missing or infinite value(s)",
        ),
        (column("total", 13, 3.0), {"total_key": "total"}, "column 'total' is 3 at cell 'c13'"),
        (no_controls, {}, "column 'pert' has no cell labelled 'ctrl'.\nIt has: A."),
        (few_genes, {}, "has 3 of the bundle's 10 genes (30%); at least 80% are needed (--min-gene-overlap)"),
        (few_genes, {"min_gene_overlap": 0.4}, "at least 40% are needed"),
    ],
)
@pytest.mark.parametrize("form", ["memory", "file"])
def test_what_is_wrong_is_named(tmp_path, change, keys, message, form):
    adata = make()
    adata = (change(adata) if change else None) or adata
    source, name = adata, "AnnData"
    if form == "file":
        source = name = str(tmp_path / "a.h5ad")
        adata.write_h5ad(source)
    with pytest.raises(RequestError) as error:
        read(source, **keys)
    text = str(error.value)
    assert message in text and text.startswith(name) and len(text.splitlines()) <= 2


def test_what_is_no_matrix_of_numbers_or_no_h5ad_is_refused(tmp_path):
    empty = make()
    empty.X = None
    with pytest.raises(RequestError, match="AnnData: X holds no matrix"):
        read(empty)
    with pytest.raises(RequestError, match="no such file"):
        read(tmp_path / "none.h5ad")
    (tmp_path / "text.h5ad").write_text("cells")
    with pytest.raises(RequestError, match="not an h5ad file"):
        read(tmp_path / "text.h5ad")
    none_in_common = make()
    none_in_common.var_names = [f"x{i}" for i in range(12)]
    with pytest.raises(RequestError, match="has 0 of the bundle's 10 genes"):
        read(none_in_common, min_gene_overlap=0.0)


def test_few_genes_will_do_when_asked():
    adata = make()
    cells = read(few_genes(adata), min_gene_overlap=0.3)
    assert (cells.cells["T", "d1"].toarray()[:, 3:] == 0).all()


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

"""A file of control cells that is no such thing is refused by cell, gene, column and value."""

import numpy as np
import pytest
import scipy.sparse as sp
from small_controls import make, read

from perturbdiff_jax.errors import RequestError


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

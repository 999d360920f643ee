"""Merge then select: scanpy's choice on the concatenated cells, whatever the order, layout and workers."""

import json
import warnings

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from prepare_runs import run as prepared
from vocabulary_runs import cells_of, run

from perturbdiff_jax.data import gene_vocabulary as story
from perturbdiff_jax.data.genes import read_gene_list
from perturbdiff_jax.data.preparation import scan as prepare_scan


def scanpy_genes(adatas, count, *, total=None, normalised=False):
    """Names of the highly variable genes of concatenated cells, by scanpy alone."""
    scanpy = pytest.importorskip("scanpy", reason="scanpy is the oracle of this test (extra [test])")
    whole = anndata.concat(adatas, index_unique="-")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not normalised:
            if total is None:
                scanpy.pp.normalize_total(whole, target_sum=1e4)
            else:
                scale = 1e4 / whole.obs[total].to_numpy().astype(np.float32)
                whole.X = sp.csr_matrix(whole.X.multiply(scale[:, None]).astype(np.float32))
            scanpy.pp.log1p(whole)
        found = scanpy.pp.highly_variable_genes(whole, flavor="seurat", n_top_genes=count, inplace=False)
    return set(whole.var_names[found["highly_variable"].to_numpy()])


@pytest.fixture
def four(tmp_path):
    """(paths, AnnData) of four files with the same genes, of 60, 45, 30 and 25 cells."""
    adatas = [cells_of(cells, 300, seed) for seed, cells in enumerate((60, 45, 30, 25))]
    for number, adata in enumerate(adatas):
        adata.write_h5ad(tmp_path / f"f{number}.h5ad")
    return [tmp_path / f"f{number}.h5ad" for number in range(4)], adatas


@pytest.mark.parametrize("count", [1, 20, 137, 299])
@pytest.mark.parametrize("total", [None, "total"])
def test_one_composite_is_scanpy_on_all_cells(four, tmp_path, count, total):
    paths, adatas = four
    found, _ = run(paths, tmp_path / "g.txt", hvg=count, total_key=total)
    assert set(found.genes) == scanpy_genes(adatas, count, total=total)


def test_composites_are_chosen_from_one_by_one(four, tmp_path):
    paths, adatas = four
    found, said = run(paths, tmp_path / "g.txt", composites=2)
    # 60 + 25 and 45 + 30 cells.
    merged = [[adatas[0], adatas[3]], [adatas[1], adatas[2]]]
    sets = [scanpy_genes(some, 20) for some in merged]
    assert sets[0] != sets[1] and found.genes == sorted(sets[0] | sets[1])
    facts = found.report["composites"]
    assert [fact["cells"] for fact in facts] == [85, 75]
    assert [fact["alone"] for fact in facts] == [len(sets[0] - sets[1]), len(sets[1] - sets[0])]
    assert "composite 1" in said and "mean of 2" in said
    table = tmp_path / "t.csv"
    table.write_text("file,composite\nf0.h5ad,one\nf1.h5ad,one\nf2.h5ad,two\nf3.h5ad,two\n")
    found, _ = run(paths, tmp_path / "h.txt", composites=table)
    assert set(found.genes) == scanpy_genes(adatas[:2], 20) | scanpy_genes(adatas[2:], 20)


@pytest.mark.parametrize("layout", ["dense", "csc", "lognorm", "layer", "other order"])
def test_any_layout_and_log_values(four, tmp_path, layout):
    paths, adatas = four
    oracle, options = scanpy_genes(adatas, 20), {}
    changed = adatas[0].copy()
    if layout == "dense":
        changed.X = changed.X.toarray()
    if layout == "csc":
        changed.X = changed.X.tocsc()
    if layout == "other order":
        changed = changed[:, ::-1].copy()
    if layout == "lognorm":
        changed.X = changed.X.multiply(1e4 / changed.X.sum(axis=1)).tocsr().log1p().astype(np.float32)
    changed.write_h5ad(paths[0])
    if layout == "layer":
        for path, adata in zip(paths, adatas, strict=True):
            adata = adata.copy()
            adata.layers["counts"] = adata.X
            adata.X = sp.csr_matrix(np.ones(adata.shape, np.float32))
            adata.write_h5ad(path)
        options = {"layer": "counts"}
    found, _ = run(paths, tmp_path / "g.txt", **options)
    assert found.genes == sorted(oracle)


def test_log_values_that_begin_like_counts(four, tmp_path, monkeypatch):
    """Pieces without a fraction, in a file that holds log1p values, are read again as such."""
    monkeypatch.setattr(prepare_scan, "TASK", 1500)
    paths, adatas = four
    adata = adatas[0].copy()
    values = adata.X.multiply(1e4 / adata.X.sum(axis=1)).tocsr().log1p().astype(np.float32).toarray()
    values[:20] = np.round(values[:20])
    adata.X = sp.csr_matrix(values)
    adata.write_h5ad(paths[0])
    found, _ = run(paths[:1], tmp_path / "g.txt")
    assert set(found.genes) == scanpy_genes([adata], 20, normalised=True)
    assert found.report["files"][0]["values"] == "lognorm"


@pytest.mark.parametrize("count", [200, 2000])
def test_real_cells_in_several_files(shared, tmp_path, count):
    whole = anndata.read_h5ad(shared / "data/kang2018_ifnb_pbmc_scperb.h5ad")
    parts = [whole[number::3].copy() for number in range(3)]
    for number, part in enumerate(parts):
        part.write_h5ad(tmp_path / f"k{number}.h5ad")
    files = [tmp_path / f"k{number}.h5ad" for number in range(3)]
    found, _ = run(files, tmp_path / "g.txt", hvg=count, total_key="total_counts")
    assert set(found.genes) == scanpy_genes(parts, count, total="total_counts")


def by_hand(adatas, count, least):
    """The same from a dense matrix in which NaN stands for not measured."""
    names = sorted({name for adata in adatas for name in adata.var_names})
    whole = np.full((sum(map(len, adatas)), len(names)), np.nan)
    row = 0
    for adata in adatas:
        values = adata.X.toarray().astype(np.float64)
        columns = [names.index(name) for name in adata.var_names]
        whole[row : row + len(adata), columns] = values * (1e4 / values.sum(axis=1, keepdims=True))
        row += len(adata)
    share = (~np.isnan(whole)).mean(axis=0)
    kept = np.flatnonzero(share >= least)
    mean, variance = np.nanmean(whole[:, kept], axis=0), np.nanvar(whole[:, kept], axis=0, ddof=1)
    # Genes that are nowhere above 0 have a mean, but no dispersion.
    dispersion = np.log(np.where(mean > 0, variance / np.maximum(mean, 1e-12), np.nan))
    mean = np.log1p(np.maximum(mean, 1e-12))
    edges = np.linspace(mean.min(), mean.max(), 21)
    bins = np.clip(np.searchsorted(edges, mean, side="left"), 1, 20)
    score = np.empty(len(kept))
    for number in set(bins.tolist()):
        inside = dispersion[(bins == number) & ~np.isnan(dispersion)]
        spread = inside.std(ddof=1) if len(inside) > 1 else None
        score[bins == number] = (
            1.0 if spread is None else (dispersion[bins == number] - inside.mean()) / spread
        )
    score[np.isnan(dispersion)] = -np.inf
    return {names[kept[place]] for place in np.argsort(-score)[:count]}, names, share


@pytest.mark.parametrize("least", [0.0, 0.3, 0.5, 1.0])
def test_a_gene_that_a_file_lacks_is_not_measured_there(tmp_path, least):
    """The first file lacks 60 genes, the second 80 others, the third none."""
    adatas = [cells_of(60, 300, 1)[:, 60:], cells_of(50, 300, 2)[:, :220], cells_of(20, 300, 3)]
    for number, adata in enumerate(adatas):
        adata.copy().write_h5ad(tmp_path / f"f{number}.h5ad")
    oracle, names, share = by_hand(adatas, 40, least)
    found, said = run(
        [tmp_path / f"f{n}.h5ad" for n in range(3)], tmp_path / "g.txt", hvg=40, min_measured=least
    )
    assert set(found.genes) == oracle
    fact = found.report["composites"][0]
    assert fact["genes"] == len(names) and fact["rare"] == (share < least).sum()
    assert ("--min-measured" in said) == bool(fact["rare"])


def test_order_workers_and_pieces_do_not_matter(four, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_scan, "TASK", 4000)
    paths, _ = four
    run(paths, tmp_path / "a.txt", composites=2)
    run(paths[::-1], tmp_path / "b.txt", composites=2)
    monkeypatch.setattr(story, "PARALLEL", 1)
    monkeypatch.setattr(story, "WORKER_BYTES", 1)
    run(paths[2:] + paths[:2], tmp_path / "c.txt", composites=2, workers=2)
    for suffix in ("", ".report.json"):
        texts = {(tmp_path / f"{name}.txt{suffix}").read_text() for name in "abc"}
        assert len(texts) == 1
    monkeypatch.undo()
    run(paths, tmp_path / "d.txt", composites=2)
    assert (tmp_path / "d.txt").read_text() == (tmp_path / "a.txt").read_text()


def test_lists_are_taken_whole_and_counted(four, tmp_path):
    paths, adatas = four
    alone, _ = run(paths, tmp_path / "g.txt", hvg=20)
    some = [name for name in adatas[0].var_names if name not in alone.genes][:7]
    (tmp_path / "own.json").write_text(json.dumps({"genes": [*some, "nowhere", alone.genes[0]]}))
    (tmp_path / "two.csv").write_text("gene\n" + "\n".join(some[:3]) + "\n")
    include = [tmp_path / "own.json", tmp_path / "two.csv"]
    found, said = run(paths, tmp_path / "h.txt", hvg=20, include=include)
    assert found.genes == sorted({*alone.genes, *some, "nowhere"})
    own, two = found.report["include"]
    assert (own["genes"], own["alone"], two["alone"]) == (9, 5, 0)
    assert own["shared"] == 9 and own["share"] == pytest.approx(9 / 28)
    assert found.report["composites"][0]["alone"] == 19
    # All 300 genes of a file, less "nowhere", which none of them measures.
    assert [fact["shared"] for fact in found.report["files"]] == [27] * 4
    assert found.report["files"][0]["share"] == pytest.approx(27 / 28)
    assert found.report["times_chosen"][some[0]] == 2 and found.report["times_chosen"]["nowhere"] == 1
    line = next(line for line in said.splitlines() if "list own.json" in line)
    assert line.split()[-5:] == ["9", "9", "5", "9", "32.1%"]
    assert "96.4%" in next(line for line in said.splitlines() if "file f0.h5ad" in line)


def test_the_list_serves_prepare_and_a_store_serves_as_a_list(build, save, tmp_path):
    path = save(build())
    found, _ = run([path], tmp_path / "g.txt", hvg=10)
    assert read_gene_list(tmp_path / "g.txt") == found.genes
    store, _ = prepared(path, tmp_path / "s", genes=str(tmp_path / "g.txt"))
    assert store.genes == found.genes
    again, _ = run([path], tmp_path / "h.txt", hvg=3, include=[tmp_path / "s"])
    assert set(found.genes) <= set(again.genes)


def test_a_list_is_replaced_when_asked(four, tmp_path):
    paths, _ = four
    run(paths, tmp_path / "g.txt", hvg=20)
    found, _ = run(paths, tmp_path / "g.txt", hvg=5, overwrite=True)
    assert read_gene_list(tmp_path / "g.txt") == found.genes and len(found.genes) == 5
    assert json.loads((tmp_path / "g.txt.report.json").read_text())["genes"] == 5
    assert sorted(path.name for path in tmp_path.iterdir() if "g.txt" in path.name) == [
        "g.txt",
        "g.txt.report.json",
    ]


def test_few_genes_and_foreign_totals_are_said(four, tmp_path):
    paths, adatas = four
    _, said = run(paths, tmp_path / "g.txt", hvg=500)
    assert "500 highly variable genes asked for; it has 300, and all are kept" in said
    adata = adatas[0].copy()
    adata.X = adata.X.multiply(1e6 / adata.X.sum(axis=1)).tocsr().log1p().astype(np.float32)
    adata.write_h5ad(paths[0])
    found, said = run(paths, tmp_path / "h.txt", total_key="total")
    assert "f0.h5ad: its log1p values come from 1,000,000 per cell, not --target-sum 10,000" in said
    assert "--total-key total is not used" in said and len(found.report["notes"]) == 2

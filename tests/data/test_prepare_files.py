"""Several files in one store: other orders of genes, genes that some lack, labels that differ, kinds that may not."""

import anndata
import numpy as np
import pandas as pd
import pytest
from prepare_runs import filled, refusal, run


def counts_of(adata, genes):
    """Counts by gene name; a gene that the file lacks counts as zero."""
    table = pd.DataFrame(adata.X.toarray(), index=adata.obs_names, columns=adata.var_names)
    return table.reindex(columns=genes, fill_value=0).to_numpy()


def agree(store, parts):
    """Every cell of every file is in the store, with its own counts, scale and labels."""
    back = anndata.read_zarr(store.path)
    assert back.obs_names.is_unique and store.n_cells == sum(part.n_obs for part in parts.values())
    scale = back.uns["perturbdiff"]["scale"]
    for path, part in parts.items():
        mine = np.flatnonzero(back.obs["source"] == str(path))
        rows = back.obs["source_row"].to_numpy()[mine]
        assert sorted(rows) == list(range(part.n_obs))
        np.testing.assert_array_equal(filled(back)[mine], counts_of(part, store.genes)[rows])
        totals = np.asarray(part.X.sum(axis=1)).ravel()[rows]
        np.testing.assert_allclose(scale[mine], 1e4 / totals, rtol=1e-6)
        for key in ("pert", "kind", "donor"):
            assert back.obs[key].iloc[mine].tolist() == part.obs[key].iloc[rows].tolist()
        names = [name.split(":")[-1] for name in back.obs_names[mine]]
        assert names == part.obs_names[rows].tolist()


def test_other_orders_of_genes_and_other_labels(build, save, tmp_path):
    one = build(seed=1)
    two = build(seed=2, perturbations=("control", "P9", "P1"), contexts=(("T", "b1"), ("Z", "b0")))[
        :, ::-1
    ].copy()
    paths = save(one, "one.h5ad"), save(two, "two.h5ad")
    store, _ = run(list(paths), tmp_path / "s", all_genes=True)
    agree(store, dict(zip(paths, (one, two))))
    assert store.genes == one.var_names.tolist()
    assert store.perturbations == ["control", "P1", "P2", "P3", "P9"]
    assert store.cell_types == ["B", "T", "Z"] and store.batches == ["b0", "b1", "b2"]
    back = anndata.read_zarr(store.path)
    assert {name.split(":")[0] for name in back.obs_names} == {"one", "two"}, "the same barcode in both files"


def test_names_stay_when_no_barcode_is_in_two_files(build, save, tmp_path):
    one, two = build(seed=1), build(seed=2)
    two.obs_names = [f"other{i}" for i in range(two.n_obs)]
    store, _ = run([save(one, "one.h5ad"), save(two, "two.h5ad")], tmp_path / "s", all_genes=True)
    assert set(anndata.read_zarr(store.path).obs_names) == {*one.obs_names, *two.obs_names}


def test_genes_that_a_file_lacks_are_left_out_and_said(build, save, tmp_path):
    one, two = build(seed=1), build(seed=2)[:, 3:][:, ::-1].copy()
    paths = save(one, "one.h5ad"), save(two, "two.h5ad")
    store, text = run(list(paths), tmp_path / "s", all_genes=True)
    assert store.genes == one.var_names[3:].tolist()
    assert "3 of 30 genes are not in every file and left out: g0, g1, g2" in text
    assert f"{paths[1]} lacks 3" in text
    agree(store, dict(zip(paths, (one, two))))
    varying, _ = run(list(paths), tmp_path / "v", hvg=10)
    assert len(varying.genes) == 10 and set(varying.genes) <= set(store.genes)
    agree(varying, dict(zip(paths, (one, two))))
    few = save(two[:, :4].copy(), "few.h5ad")
    few_renamed = anndata.read_h5ad(few)
    few_renamed.var_names = ["g5", "x1", "x2", "x3"]
    message = refusal([paths[0], save(few_renamed, "few.h5ad")], tmp_path / "t")
    assert "few.h5ad: 1 of its 4 genes" in message and "50%" in message and "one.h5ad" in message


def test_listed_genes_that_a_file_lacks_count_as_zero(build, save, tmp_path):
    one, two = build(seed=1), build(seed=2)[:, 3:].copy()
    paths = save(one, "one.h5ad"), save(two, "two.h5ad")
    genes = tmp_path / "genes.txt"
    genes.write_text("g9\ng2\nnowhere\ng4\ng7\n")
    store, text = run(list(paths), tmp_path / "s", genes=str(genes))
    assert store.genes == ["g9", "g2", "g4", "g7"]
    assert "1 of 5 genes are not in the data, left out: nowhere" in text
    assert f"{paths[1]}: 1 of the 4 listed genes are missing and count as zero: g2" in text
    agree(store, dict(zip(paths, (one, two))))
    genes.write_text("g0\ng1\ng2\ng4\n")
    message = refusal(list(paths), tmp_path / "t", genes=str(genes))
    assert "two.h5ad: has 1 of the 4 genes" in message and "g0, g1, g2" in message


def test_raw_and_normalised_files_do_not_mix(build, save, tmp_path):
    one, log = build(seed=1), build(seed=2)
    log.X = log.X * 0.3
    message = refusal([save(one, "one.h5ad"), save(log, "log.h5ad")], tmp_path / "t")
    assert "log.h5ad: holds lognorm" in message and "one.h5ad holds counts" in message


def test_totals_of_every_file(build, save, tmp_path):
    parts = [build(seed=1), build(seed=2)]
    paths = [save(part, f"{number}.h5ad") for number, part in enumerate(parts)]
    store, _ = run(paths, tmp_path / "s", all_genes=True, total_key="total")
    back = anndata.read_zarr(store.path)
    for path, part in zip(paths, parts):
        mine = np.flatnonzero(back.obs["source"] == str(path))
        totals = part.obs["total"].to_numpy()[back.obs["source_row"].to_numpy()[mine]]
        np.testing.assert_allclose(back.uns["perturbdiff"]["scale"][mine], 1e4 / totals, rtol=1e-6)
    parts[1].obs.loc["cell3", "total"] = 1.0
    message = refusal([paths[0], save(parts[1], "1.h5ad")], tmp_path / "t", total_key="total")
    assert "1.h5ad: column 'total' is 1 at cell 'cell3'" in message


@pytest.mark.parametrize("odd", ["x" * 300, "größe"])
def test_odd_names_of_cells(build, save, tmp_path, odd):
    one, two = build(seed=1), build(seed=2)
    one.obs_names = [odd, *one.obs_names[1:]]
    paths = save(one, "one.h5ad"), save(two, "two.h5ad")
    store, _ = run(list(paths), tmp_path / "s", all_genes=True)
    agree(store, dict(zip(paths, (one, two))))
    counts = one.X.toarray()
    counts[0] = 0
    one.X = counts
    assert f"first cell {odd!r}" in refusal(save(one, "one.h5ad"), tmp_path / "t")

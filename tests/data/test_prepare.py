"""prepare as a user sees it: the store and the closing table."""

import json

import anndata
import numpy as np
import scipy.sparse as sp
from prepare_runs import filled, refusal, run

from perturbdiff_jax.data.preparation.table import padding
from perturbdiff_jax.data.store import SPLITS

SPLIT = {"columns": ["cell_type", "batch", "perturbation"], "test": [["T", "b2", "P1"], ["T", "b2", "P2"]]}


def test_table_and_split(adata, save, tmp_path):
    split = tmp_path / "s.json"
    split.write_text(json.dumps(SPLIT))
    store, text = run(save(adata), tmp_path / "store", split=str(split), cells_per_set=4)
    groups = store.groups
    held = {
        (
            store.cell_types[groups.cell_type[g]],
            store.batches[groups.batch[g]],
            store.perturbations[groups.perturbation[g]],
        )
        for g in np.flatnonzero(groups.split == SPLITS.index("test"))
    }
    assert held == {tuple(row) for row in SPLIT["test"]}
    np.testing.assert_array_equal(groups.is_control, groups.split == SPLITS.index("control"))
    assert store.manifest["split"]["name"] == "s"
    rows = {line.split()[0]: line.split() for line in reversed(text.splitlines())}
    assert rows["cells"][1] == "112"
    assert rows["train"][1:4] == ["70", "10", "3"]
    assert rows["test"][1:] == ["14", "2", "2", "4", "12.5%"]
    assert rows["control"][1:3] == ["28", "4"]
    assert "24 of 4 perturbed cells, padding 12.5%" in text
    assert "least 7 (B / b1), median 7" in text
    assert "2 of 2 held-out perturbations are trained in other contexts" in text


def test_padding_counts_places_filled_again():
    assert padding(np.array([32, 33, 1]), 32) == (4, 1 - 66 / 128)
    assert padding(np.array([], int), 32) == (0, 0.0)


def test_without_cell_type_and_batch(adata, save, tmp_path):
    store, _ = run(save(adata), tmp_path / "s", cell_type_key=None, batch_key=None)
    assert store.batches == ["all"] and store.cell_types == ["all"]
    assert store.manifest["keys"]["batch"] is None
    assert list(store.obs.columns) == ["pert", "source_row"]
    assert len(store.groups) == 4


def test_cells_without_a_screen(adata, save, tmp_path):
    del adata.obs["pert"]
    store, said = run(save(adata), tmp_path / "s", perturbation_key=None, unperturbed=True)
    assert store.perturbations == ["control"] and store.manifest["keys"]["perturbation"] is None
    assert store.groups.is_control.all() and store.n_cells == adata.n_obs and "control" in said
    contexts = adata.obs[["kind", "donor"]].drop_duplicates()
    assert len(store.groups) == len(contexts) and "pert" not in store.obs


def test_genes_are_chosen_without_looking_at_held_out_cells(build, save, tmp_path):
    data = build(cells=20, genes=200)
    split = tmp_path / "s.json"
    split.write_text(json.dumps(SPLIT))
    test = (
        (data.obs["kind"] == "T") & (data.obs["donor"] == "b2") & data.obs["pert"].isin(["P1", "P2"])
    ).to_numpy()
    changed = data.copy()
    counts = changed.X.toarray()
    counts[test] = np.random.default_rng(5).permuted(counts[test] * 9 + 1, axis=1)
    changed.X = sp.csr_matrix(counts)
    first, text = run(save(data, "1.h5ad"), tmp_path / "s1", split=str(split), hvg=20)
    second, _ = run(save(changed, "2.h5ad"), tmp_path / "s2", split=str(split), hvg=20)
    seeing, _ = run(save(changed, "3.h5ad"), tmp_path / "s3", hvg=20)
    assert len(first.genes) == 20 and first.genes == second.genes
    assert first.genes != seeing.genes, "the change would have been invisible anyway"
    assert [g for g in data.var_names if g in first.genes] == first.genes  # the file's order
    assert "over 280 training and control cells" in text


def test_totals_are_taken_before_genes_are_selected(adata, save, tmp_path):
    genes = tmp_path / "genes.txt"
    genes.write_text("g9\nabsent\ng2\n")
    store, text = run(save(adata), tmp_path / "s", genes=str(genes))
    assert store.genes == ["g9", "g2"]
    assert "1 of 3 genes are not in the data" in text and "absent" in text
    counts = adata.X.toarray()[store.obs["source_row"]]
    truth = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)[:, [9, 2]]
    np.testing.assert_allclose(store.load().toarray(), truth, rtol=1e-5)
    store, text = run(save(adata), tmp_path / "t", total_key="total", target_sum=1e3, all_genes=True)
    totals = adata.obs["total"].to_numpy()[store.obs["source_row"]]
    np.testing.assert_allclose(store.load().toarray(), np.log1p(counts / totals[:, None] * 1e3), rtol=1e-5)
    assert "column 'total'" in text and store.manifest["values"]["target_sum"] == 1e3


def test_a_list_of_all_genes_in_another_order(adata, save, tmp_path):
    names = adata.var_names.tolist()[::-1]
    (tmp_path / "genes.json").write_text(json.dumps(names))
    store, _ = run(save(adata), tmp_path / "s", genes=str(tmp_path / "genes.json"))
    assert store.genes == names
    back = anndata.read_zarr(store.path)
    np.testing.assert_array_equal(filled(back), adata.X.toarray()[back.obs["source_row"], ::-1])


def test_more_genes_than_there_are_is_said(adata, save, tmp_path):
    store, text = run(save(adata), tmp_path / "s", hvg=2000)
    assert len(store.genes) == 30 and "2,000 highly variable genes asked for, the data have 30" in text


def test_a_context_without_controls_borrows_them_and_says_so(adata, save, tmp_path):
    lonely = (adata.obs["kind"] == "T") & (adata.obs["donor"] == "b2") & (adata.obs["pert"] == "control")
    store, text = run(save(adata[~lonely].copy()), tmp_path / "s")
    groups = store.groups
    for group in range(len(groups)):
        serving = groups.control[group]
        assert groups.is_control[serving]
        borrowed = (store.cell_types[groups.cell_type[group]], store.batches[groups.batch[group]]) == (
            "T",
            "b2",
        )
        assert (groups.fallback[group] != 0) == borrowed
        assert groups.batch[serving] == groups.batch[group]
    assert "context T / b2 has no controls of its own: uses those of B / b2" in text
    assert "in 3 of 4 contexts" in text


def test_doses_make_conditions(adata, save, tmp_path):
    adata.obs["dose"] = np.where(np.arange(adata.n_obs) % 2, 0.5, 10.0)
    store, _ = run(save(adata), tmp_path / "s", dose_key="dose")
    assert store.perturbations == [
        "control",
        *(f"{p} @ {d}" for p in ("P1", "P2", "P3") for d in ("0.5", "10")),
    ]
    for name, dose in zip(store.obs["pert"], store.obs["dose"], strict=True):
        assert name == "control" or name.endswith(f" @ {dose:g}")


def test_same_input_gives_the_same_bytes(adata, save, tmp_path):
    path = save(adata)
    one, _ = run(path, tmp_path / "s1")
    two, _ = run(path, tmp_path / "s2")
    assert one.manifest == two.manifest
    other, _ = run(path, tmp_path / "s3", seed=1)
    assert other.manifest["checksums"] != one.manifest["checksums"]


def test_overwrite(adata, save, tmp_path):
    path = save(adata)
    genes = tmp_path / "genes.txt"
    genes.write_text("g0\ng5\n")
    run(path, tmp_path / "s")
    assert "--overwrite" in refusal(path, tmp_path / "s")
    assert "--overwrite" in refusal(tmp_path / "none.h5ad", tmp_path / "s")  # said before anything is read
    store, _ = run(path, tmp_path / "s", overwrite=True, genes=str(genes))
    assert store.genes == ["g0", "g5"]
    # A refusal on the way leaves the old store as it was.
    refusal(path, tmp_path / "s", overwrite=True, control="ctrl")
    assert run(path, tmp_path / "s", overwrite=True, genes=str(genes))[0].manifest == store.manifest


def test_papalexi(shared, tmp_path):
    task = shared / "tasks" / "papalexi.json"
    keys = {"perturbation_key": "perturbation", "cell_type_key": "cell_type", "batch_key": "batch"}
    source = shared / "data" / "papalexi2021_thp1.h5ad"
    store, _ = run(source, tmp_path / "s", **keys, total_key="total_counts", split=str(task))
    assert store.n_cells == 18_826 and len(store.genes) == 299 and len(store.groups) == 78
    sizes = [int(store.groups.size[store.groups.split == code].sum()) for code in range(4)]
    data = anndata.read_h5ad(source)
    lists = json.loads(task.read_text())
    names = list(zip(data.obs["cell_type"], data.obs["batch"], data.obs["perturbation"], strict=True))
    tests = sum(list(name) in lists["test"] for name in names)
    validations = sum(list(name) in lists["validation"] for name in names)
    controls = sum(name[2] == "control" for name in names)
    assert sizes == [len(names) - tests - validations - controls, validations, tests, controls]
    group = int(np.flatnonzero(store.groups.split == SPLITS.index("test"))[0])
    cells = store.to_anndata([group])
    source = data[cells.obs_names]
    truth = np.log1p(source.X.toarray() / source.obs["total_counts"].to_numpy()[:, None] * 1e4)
    np.testing.assert_allclose(cells.X.toarray(), truth, rtol=1e-5, atol=1e-6)


def test_kang_genes_equal_the_recorded_selection(shared, tmp_path):
    task = shared / "tasks" / "kang.json"
    keys = {"perturbation_key": "perturbation", "cell_type_key": "cell_type", "batch_key": "batch"}
    source = shared / "data" / "kang2018_ifnb_pbmc_scperb.h5ad"
    store, text = run(source, tmp_path / "s", **keys, total_key="total_counts", split=str(task), hvg=2000)
    assert store.genes == json.loads(task.read_text())["genes"]
    assert "7 of 7 contexts" in text

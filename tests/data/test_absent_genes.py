"""A list of genes kept whole: its order, the zeros of what files lack, totals, what is said, a run gone on."""

import json

import anndata
import numpy as np
import pandas as pd
import pytest
from prepare_runs import refusal, run

from perturbdiff_jax import cli
from perturbdiff_jax.data import prepare as story
from perturbdiff_jax.data.preparation import gene_columns
from perturbdiff_jax.data.storage.writer import store_hash
from perturbdiff_jax.data.store import Store

LISTED = ["g9", "nowhere", "g2", "g4", "never", "g7"]


@pytest.fixture
def listed(tmp_path):
    path = tmp_path / "genes.txt"
    path.write_text("\n".join(LISTED))
    return str(path)


def expected(adata, genes):
    """log1p(10,000 x count / total over all genes of the file) of the listed genes, zeros where it has none."""
    counts = pd.DataFrame(adata.X.toarray(), index=adata.obs_names, columns=adata.var_names)
    scaled = np.log1p(1e4 * counts.div(counts.sum(axis=1), axis=0))
    return scaled.reindex(columns=genes, fill_value=0.0)


def by_name(store):
    table = pd.DataFrame(store.load().toarray(), index=store.obs.index, columns=store.genes)
    table.index = [name.split(":")[-1] for name in table.index]
    return table


def test_the_whole_list_in_its_order(build, save, listed, tmp_path):
    adata = build()
    store, said = run(save(adata), tmp_path / "s", genes=listed, absent_genes="zero")
    assert store.genes == LISTED
    wanted = expected(adata, LISTED)
    np.testing.assert_allclose(by_name(store).loc[wanted.index], wanted, rtol=1e-6)
    assert store.measured.tolist() == [[True, False, True, True, False, True]]
    assert store.manifest["gene_list"] == {"path": listed, "listed": 6, "absent": "zero"}
    assert "a.h5ad: 2 of the 6 listed genes are missing, zeros that are not measured: nowhere, never." in said
    assert "measured    4 of 6 listed genes (66.7%)" in said
    assert "left out" not in said and "only" not in said


def test_the_same_list_with_drop_says_what_share_it_measures(build, save, listed, tmp_path):
    store, said = run(save(build()), tmp_path / "s", genes=listed)
    assert store.genes == ["g9", "g2", "g4", "g7"] and store.measured.all()
    assert "measured    4 of 6 listed genes (66.7%)" in said
    assert store.manifest["gene_list"] == {"path": listed, "listed": 6, "absent": "drop"}
    _, said = run(save(build()), tmp_path / "t", hvg=10)
    assert "measured" not in said


def test_totals_are_of_all_genes_of_the_file(build, save, listed, tmp_path):
    adata = build()
    store, _ = run(save(adata), tmp_path / "s", genes=listed, absent_genes="zero", total_key="total")
    back = anndata.read_zarr(store.path)
    totals = adata.obs["total"].loc[back.obs_names]
    np.testing.assert_allclose(back.uns["perturbdiff"]["scale"], 1e4 / totals, rtol=1e-6)


def test_a_low_share_is_said_and_none_is_refused(build, save, listed, tmp_path):
    one, two = build(seed=1), build(seed=2)
    two.var_names = ["g9", *(f"other{i}" for i in range(29))]
    paths = [save(one, "one.h5ad"), save(two, "two.h5ad")]
    message = refusal(paths, tmp_path / "s", genes=listed)
    assert "two.h5ad: has 1 of the 4 genes" in message and "--absent-genes zero" in message
    store, said = run(paths, tmp_path / "s", genes=listed, absent_genes="zero")
    assert store.genes == LISTED and store.measured.sum(axis=1).tolist() == [4, 1]
    assert "two.h5ad: 5 of the 6 listed genes are missing" in said
    assert "only 16.7% of the list is measured." in said and said.count("only") == 1
    assert "genes.txt: 2 of 6 genes are in no file: nowhere, never." in said
    assert "measured    4 of 6 listed genes (66.7%) by any of 2 files, 1 by all" in said
    assert f"1 of 6 listed genes (16.7%): {paths[1]}" in said
    back, rows = by_name(store), store.obs["source"].astype(str).to_numpy()
    for path, adata in zip(paths, (one, two)):
        mine = back[rows == str(path)]
        np.testing.assert_allclose(mine, expected(adata, LISTED).loc[mine.index], rtol=1e-6)
    two.var_names = [f"other{i}" for i in range(30)]
    message = refusal([paths[0], save(two, "two.h5ad")], tmp_path / "t", genes=listed, absent_genes="zero")
    assert "none of its 6 genes (g9, nowhere, g2" in message and "two.h5ad" in message and "other0" in message


def test_of_many_files_a_few_lines_are_said(build, save, listed, tmp_path, monkeypatch):
    monkeypatch.setattr(gene_columns, "MOST_LINES", 2)
    paths = [save(build(seed=n), f"{n}.h5ad") for n in range(5)]
    _, said = run(paths, tmp_path / "s", genes=listed, absent_genes="zero")
    assert said.count("of the 6 listed genes are missing") == 2
    assert "... and 3 more files that lack listed genes; the manifest says which." in said


def test_log_values_and_cells_without_any_listed_gene(build, save, tmp_path):
    adata = build()
    counts = adata.X.toarray()
    counts[5, 2:] = 0
    adata.X = np.log1p(counts * (1e4 / counts.sum(axis=1, keepdims=True))).astype(np.float32)
    (tmp_path / "l.txt").write_text("g9\nnowhere\ng2\n")
    store, _ = run(
        save(adata), tmp_path / "s", genes=str(tmp_path / "l.txt"), absent_genes="zero", values="lognorm"
    )
    wanted = pd.DataFrame(adata.X, index=adata.obs_names, columns=adata.var_names)
    wanted = wanted.reindex(columns=store.genes, fill_value=0.0)
    np.testing.assert_allclose(by_name(store).loc[wanted.index], wanted, rtol=1e-5, atol=1e-6)
    assert (by_name(store).loc["cell5"] == 0).all() and "sound" in store.verify()


def test_a_run_that_was_broken_off_goes_on_with_the_same_wish_only(
    build, save, listed, tmp_path, monkeypatch
):
    path = save(build())
    monkeypatch.setattr(story, "HELD_BYTES", 1e9)
    whole, _ = run(path, tmp_path / "whole", genes=listed, absent_genes="zero")

    def broken(*_, **__):
        raise KeyboardInterrupt

    def interrupted():
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(story, "gather", broken)
            run(path, tmp_path / "s", genes=listed, absent_genes="zero")

    interrupted()
    again, said = run(path, tmp_path / "s", genes=listed, absent_genes="zero")
    assert "going on where an earlier run was broken off" in said
    assert store_hash(again.manifest) == store_hash(whole.manifest)
    assert (again.measured == whole.measured).all()
    (tmp_path / "s").rename(tmp_path / "away")
    interrupted()
    dropped, said = run(path, tmp_path / "s", genes=listed)
    assert "other inputs or options" in said and len(dropped.genes) == 4


def test_a_config_and_the_command_line_say_it_alike(build, save, listed, tmp_path, capsys):
    from perturbdiff_jax.data_options import DataOptions, HoldoutOptions

    data = DataOptions(genes=listed, absent_genes="zero")
    assert data.prepare_options(HoldoutOptions(), seed=0, cells_per_set=8).absent_genes == "zero"
    assert DataOptions().prepare_options(HoldoutOptions(), seed=0, cells_per_set=8).absent_genes == "drop"
    words = ["prepare", "--input", str(save(build())), "--output", str(tmp_path / "s")]
    words += ["--perturbation-key", "pert", "--control", "control", "--workers", "1"]
    assert cli.run([*words, "--absent-genes", "zero"]) == 2
    assert "give --genes LIST" in capsys.readouterr().err and not (tmp_path / "s").exists()
    assert cli.run([*words, "--genes", listed, "--absent-genes", "zero"]) == 0
    assert Store.open(tmp_path / "s").genes == LISTED
    assert json.loads((tmp_path / "s" / "manifest.json").read_text())["measured"]["of_source"] == [0]
    assert cli.run(["prepare", "--verify", str(tmp_path / "s"), "--absent-genes", "zero"]) == 2
    assert "--absent-genes has no meaning with --verify" in capsys.readouterr().err

"""Which genes a store's sources measure: in the manifest and back, in its account, merged, verified, damaged."""

import hashlib
import json

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from made_stores import thinned
from prepare_runs import refusal, run

from perturbdiff_jax.data.storage import measured
from perturbdiff_jax.data.storage.merge import merge
from perturbdiff_jax.data.storage.view import regroup
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.errors import RequestError

LISTED = ["g9", "nowhere", "g2", "g4", "x1", "g7", "x2"]


@pytest.fixture
def listed(tmp_path):
    """A list of seven genes: `build` makes four of them."""
    path = tmp_path / "genes.txt"
    path.write_text("\n".join(LISTED))
    return str(path)


@pytest.fixture
def stores(build, save, listed, tmp_path):
    """Two stores of one list, of a dense and a sparse file; the second file lacks g2 and has x1."""
    one, two = build(seed=1), thinned(build(seed=2))
    one.X = sp.csr_matrix(one.X.toarray() + 1)
    two.X = (two.X + sp.csr_matrix(np.eye(30)[[2] * two.n_obs])).astype(np.float32)  # x1 has values
    two.var_names = ["x1" if name == "g2" else name for name in two.var_names]
    two.obs_names = [f"two-{name}" for name in two.obs_names]
    options = {"genes": listed, "absent_genes": "zero"}
    return [
        run(save(cells, f"{name}.h5ad"), tmp_path / name, **options)[0]
        for name, cells in (("one", one), ("two", two))
    ]


def changed(store, **facts):
    """Writes other facts into the manifest."""
    manifest = json.loads((store.path / "manifest.json").read_text())
    (store.path / "manifest.json").write_text(json.dumps({**manifest, **facts}))
    return Store.open(store.path)


@pytest.mark.parametrize("genes", [1, 7, 8, 9, 4001])
def test_masks_are_read_as_they_were_written(genes):
    masks = np.random.default_rng(genes).random((4, genes)) < 0.4
    masks[2] = masks[0]
    kept = json.loads(json.dumps(measured.written(masks)))
    assert len(kept["sets"]) == len(np.unique(masks, axis=0)), "each set is written once"
    manifest = {"genes": [""] * genes, "sources": [{}] * 4, "measured": kept}
    np.testing.assert_array_equal(measured.measured_of(manifest, "s"), masks)


def test_a_store_that_says_nothing_measures_all(stores):
    manifest = json.loads((stores[0].path / "manifest.json").read_text())
    for name in ("measured", "gene_list"):
        del manifest[name]
    (stores[0].path / "manifest.json").write_text(json.dumps(manifest))
    old = Store.open(stores[0].path)
    assert old.measured.shape == (1, 7) and old.measured.all()
    assert "sound" in old.verify() and old.genes == LISTED


def test_stores_of_one_list_merge_and_keep_what_each_measures(stores, tmp_path):
    lines = []
    index = merge([store.path for store in stores], tmp_path / "index", echo=lines.append)
    assert index.genes == LISTED
    expected = [
        [name in own for name in LISTED] for own in (("g9", "g2", "g4", "g7"), ("g9", "g4", "x1", "g7"))
    ]
    for store in (index, Store.open(tmp_path / "index"), regroup(index, "cell_type")):
        np.testing.assert_array_equal(store.measured, expected)
    text = "\n".join(lines)
    assert "measured    5 of 7 genes (71.4%) by any of 2 files, 3 by all" in text
    assert f"4 of 7 genes (57.1%): {tmp_path / 'two.h5ad'}" in text
    assert "2 parts" in index.verify()
    cells = index.to_anndata([0, 1])
    assert cells.var["measured"].tolist() == [True, False, True, True, True, True, False]


def test_anndata_reads_which_genes_are_measured(stores):
    back = anndata.read_zarr(stores[0].path)
    assert back.var_names.tolist() == LISTED
    assert back.var["measured"].tolist() == [True, False, True, True, False, True, False]


def test_lists_that_differ_are_refused_with_the_way_out(stores, build, save, listed, tmp_path):
    other, _ = run(save(build(seed=1), "o.h5ad"), tmp_path / "other", genes=listed)
    with pytest.raises(RequestError, match="--absent-genes zero"):
        merge([stores[0].path, other.path], tmp_path / "index", echo=lambda line: None)
    assert not (tmp_path / "index").exists()


def test_values_of_genes_that_are_not_measured_are_damage(stores, build, save, listed, tmp_path):
    for store in stores:
        assert store.is_dense == (store is stores[0]), "one of each layout"
        assert "sound" in store.verify()
        mask, place = store.measured.copy(), int(store.load().sum(axis=0).argmax())
        mask[0, place] = False
        with pytest.raises(
            RequestError, match=f"value of gene '{LISTED[place]}', which manifest.json says is not"
        ):
            changed(store, measured=measured.written(mask)).verify()
    parts = [tmp_path / "one.h5ad", tmp_path / "two.h5ad"]
    both, _ = run(parts, tmp_path / "both", genes=listed, absent_genes="zero")
    assert "sound" in both.verify()
    with pytest.raises(RequestError, match=r"value of gene '(x1|g2)', which"):
        changed(both, measured=measured.written(both.measured[::-1])).verify()


@pytest.mark.parametrize(
    "kept",
    [
        {"sets": ["00"], "of_source": [0, 0]},
        {"sets": ["0000"], "of_source": [0]},
        {"sets": ["zz"], "of_source": [0]},
        {"sets": ["00"], "of_source": [1]},
        {"sets": ["00"]},
        [],
    ],
)
def test_damaged_facts_are_named(stores, kept):
    store = changed(stores[0], measured=kept)
    with pytest.raises(RequestError, match=r"one: the store is damaged: .*(cannot be read|are listed)"):
        store.verify()


def test_an_account_of_many_files_is_short():
    rng = np.random.default_rng(0)
    masks = rng.random((30, 50)) < 0.5
    masks[3], masks[4, 1:], masks[4, 0] = True, False, True
    manifest = {"genes": ["g"] * 50, "sources": [{"path": f"f{n}.h5ad"} for n in range(30)]}
    lines = measured.account(manifest, masks)
    assert len(lines) == 3
    assert (
        lines[1] == "least 1 of 50 genes (2.0%): f4.h5ad"
        and lines[2] == "most 50 of 50 genes (100.0%): f3.h5ad"
    )
    assert measured.account(manifest, np.ones((30, 50), dtype=bool)) == []


def test_an_option_without_its_list_is_refused(build, save, listed, tmp_path):
    path = save(build())
    for options in ({}, {"all_genes": True}, {"genes": listed, "all_genes": True}):
        assert "give --genes" in refusal(path, tmp_path / "s", absent_genes="zero", **options)
    message = refusal(path, tmp_path / "s", genes=listed, absent_genes="nil")
    assert "unknown --absent-genes 'nil'" in message and "drop, zero" in message


def test_the_sha_of_a_whole_list_is_that_of_a_store_without_the_option(build, save, tmp_path):
    path = save(build())
    (tmp_path / "some.txt").write_text("g3\ng1\ng20\n")
    sums = []
    for how in ("drop", "zero"):
        store, said = run(path, tmp_path / how, genes=str(tmp_path / "some.txt"), absent_genes=how)
        sums.append(hashlib.sha256(json.dumps(store.manifest["checksums"]).encode()).hexdigest())
        assert "measured    3 of 3 listed genes (100.0%)" in said
    assert sums[0] == sums[1]

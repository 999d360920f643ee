"""From two files that share half of their genes, named in two ways, to one vocabulary, two stores and mixed batches."""

import anndata
import numpy as np
import pandas as pd
import pytest
from conftest import make_adata

from perturbdiff_jax import cli
from perturbdiff_jax.data.loader import SetSource
from perturbdiff_jax.data.loading.mixture import Mixture
from perturbdiff_jax.data.store import Store

GENES, SHARED = 60, 24
SYMBOLS = [f"SYM{i:02d}" for i in range(GENES)]
IDS = {name: f"ENSG{i:011d}" for i, name in enumerate(SYMBOLS)}
KEYS = [
    "--perturbation-key",
    "pert",
    "--control",
    "control",
    "--cell-type-key",
    "kind",
    "--batch-key",
    "donor",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, cells by file, the lines printed by each command): 42 genes by id, 42 by symbol, 24 in both."""
    folder = tmp_path_factory.mktemp("one-vocabulary")
    cells = {"ids": make_adata(seed=1, genes=42), "symbols": make_adata(seed=2, genes=42, cells=9)}
    own = {"ids": SYMBOLS[:42], "symbols": SYMBOLS[: GENES - 42 - 1 : -1]}
    assert len(set(own["ids"]) & set(own["symbols"])) == SHARED
    for name, adata in cells.items():
        adata.var_names = own[name]
        copy = adata.copy()
        if name == "ids":
            copy.var_names = [f"{IDS[gene]}.{n % 5 + 1}" for n, gene in enumerate(own[name])]
        copy.write_h5ad(folder / f"{name}.h5ad")
    table = "".join(f"{IDS[name]},{name}\n" for name in SYMBOLS)
    (folder / "map.csv").write_text("ensembl_id,symbol\n" + table)
    files, said = [str(folder / f"{name}.h5ad") for name in cells], {}
    words = ["genes", "--input", *files, "--composites", "2", "--hvg", "20", "--map", str(folder / "map.csv")]
    run(said, "genes", *words, "--output", str(folder / "vocabulary.txt"))
    for name, file in zip(cells, files):
        words = ["prepare", "--input", file, "--output", str(folder / name), *KEYS, "--workers", "1"]
        words += ["--genes", str(folder / "vocabulary.txt"), "--absent-genes", "zero"]
        run(said, name, *words, "--map", str(folder / "map.csv"))
    return folder, cells, said


def run(said, name, *words):
    """One command line; what it prints is kept under `name`."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.run(list(words)) == 0
    said[name] = out.getvalue()


def log1p_of(adata, genes):
    """log1p(10,000 x count / total over all of the file's genes), by hand; columns of zeros where it has no gene."""
    counts = pd.DataFrame(
        adata.X.toarray().astype(np.float64), index=adata.obs_names, columns=adata.var_names
    )
    return np.log1p(1e4 * counts.div(counts.sum(axis=1), axis=0)).reindex(columns=genes, fill_value=0.0)


def test_the_stores_have_the_vocabulary_in_its_order(made):
    folder, cells, said = made
    vocabulary = (folder / "vocabulary.txt").read_text().split()
    assert vocabulary == sorted(vocabulary) and set(vocabulary) <= set(SYMBOLS)
    for name, adata in cells.items():
        store = Store.open(folder / name)
        assert store.genes == vocabulary
        has = np.isin(vocabulary, adata.var_names)
        assert 0 < has.sum() < len(vocabulary), "neither file has the whole vocabulary"
        np.testing.assert_array_equal(store.measured, [has])
        share = f"{has.sum()} of {len(vocabulary)} listed genes ({has.mean():.1%})"
        assert f"measured    {share}" in said[name]
        # `genes` has told the same share of the vocabulary for the file.
        line = next(line for line in said["genes"].splitlines() if f"file {name}.h5ad" in line)
        assert line.split()[-2:] == [str(has.sum()), f"{has.mean():.1%}"]


def test_expression_is_that_of_the_files(made):
    folder, cells, _ = made
    for name, adata in cells.items():
        store = Store.open(folder / name)
        found = pd.DataFrame(store.load().toarray(), index=store.obs.index, columns=store.genes)
        wanted = log1p_of(adata, store.genes)
        assert sorted(found.index) == sorted(wanted.index)
        np.testing.assert_allclose(found.loc[wanted.index], wanted, rtol=1e-6)
        back = anndata.read_zarr(store.path)
        assert back.var["measured"].tolist() == store.measured[0].tolist()
        assert "sound" in store.verify()


def test_a_mixture_gives_sets_of_both(made):
    folder, cells, _ = made
    stores = [Store.open(folder / name) for name in cells]
    options = {"cells_per_set": 4, "sets_per_batch": 8}
    sources = [SetSource(store, seed=seed, **options) for seed, store in enumerate(stores)]
    mixture, seen = Mixture(sources, [1, 1], sets_per_batch=8, seed=0), set()
    expression = [log1p_of(adata, stores[0].genes).to_numpy() / 10 for adata in cells.values()]
    for step in range(4):
        batch = mixture[step]
        assert batch.perturbed.shape == (8, 4, len(stores[0].genes))
        for side in (batch.perturbed, batch.control):
            for number, cells_of_set in zip(batch.source.tolist(), np.asarray(side)):
                seen.add(number)
                away = np.abs(cells_of_set[:, None] - expression[number][None]).max(axis=2).min(axis=1)
                assert (away < 1e-6).all(), "every cell of the set is one of its file's"
                assert not cells_of_set[:, ~stores[number].measured[0]].any()
    assert seen == {0, 1}


def test_the_two_stores_are_one_by_an_index(made, tmp_path):
    folder, cells, _ = made
    said = {}
    run(
        said,
        "merge",
        "prepare",
        "--merge",
        *(str(folder / name) for name in cells),
        "--output",
        str(tmp_path / "all"),
    )
    index = Store.open(tmp_path / "all")
    assert index.n_cells == sum(adata.n_obs for adata in cells.values())
    np.testing.assert_array_equal(index.measured, [Store.open(folder / name).measured[0] for name in cells])
    assert "by any of 2 files" in said["merge"]

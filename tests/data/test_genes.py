"""Gene choice: equal to scanpy's highly variable genes, block size for block size, ties included; gene
lists."""

import json
import pathlib
import pickle
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from released.checkpoint_files import write_pickle_calling

from perturbdiff_jax.data.genes import (
    highly_variable,
    match_genes,
    normalised_dispersions,
    read_gene_list,
)
from perturbdiff_jax.data.h5ad import H5ad
from perturbdiff_jax.data.preparation.moments import Moments
from perturbdiff_jax.data.values import normalise, read_checked, scales
from perturbdiff_jax.errors import RequestError


def moments_of(lognorm, rows):
    moments = Moments(lognorm.shape[1])
    for start in range(0, lognorm.shape[0], rows):
        moments.add(lognorm[start : start + rows])
    return moments


def scanpy_table(lognorm, count):
    scanpy = pytest.importorskip("scanpy", reason="scanpy is the oracle of this test (extra [test])")
    import anndata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return scanpy.pp.highly_variable_genes(
            anndata.AnnData(lognorm), flavor="seurat", n_top_genes=count, inplace=False
        )


def sample(cells=80, genes=400, seed=0):
    """Sparse log values with constant, never seen and repeated genes, so that bins of one and ties occur."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.3, 1.0, size=genes), size=(cells, genes)).astype(np.float32)
    counts[:, 5] = 0
    counts[:, 100:120] = counts[:, 20:40]  # ties, exactly
    counts[:, -1] = 40 * (1 + np.arange(cells) % 2)  # alone in its bin
    scale = (50.0 / np.maximum(1, counts.sum(axis=1))).astype(np.float32)
    return normalise(sp.csr_matrix(counts), scale)


@pytest.mark.parametrize("count", [1, 7, 50, 120, 399])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_selection_equals_scanpy_with_ties(count, seed):
    lognorm = sample(seed=seed)
    oracle = scanpy_table(lognorm, count)
    moments = moments_of(lognorm, rows=13)
    np.testing.assert_array_equal(highly_variable(moments, count), oracle["highly_variable"].to_numpy())
    ours = normalised_dispersions(*moments.mean_and_variance())
    np.testing.assert_allclose(ours, oracle["dispersions_norm"].to_numpy(), rtol=1e-9)


def test_moments_do_not_depend_on_the_blocks():
    lognorm = sample()
    whole, parts = moments_of(lognorm, 1000), moments_of(lognorm, 7)
    np.testing.assert_array_equal(whole.total, parts.total)
    np.testing.assert_array_equal(whole.squares, parts.squares)
    mean, variance = parts.mean_and_variance()
    dense = np.expm1(lognorm.toarray().astype(np.float64))
    np.testing.assert_allclose(mean, dense.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(variance, dense.var(axis=0, ddof=1), rtol=1e-5, atol=1e-9)


def test_more_than_there_are_selects_all():
    assert highly_variable(moments_of(sample(), 50), 400).all()
    assert highly_variable(moments_of(sample(), 50), 10**6).all()
    with pytest.raises(RequestError, match="--hvg 0"):
        highly_variable(moments_of(sample(), 50), 0)


@pytest.mark.parametrize("count", [200, 1000, 2000])
@pytest.mark.parametrize(
    "name", ["kang2018_ifnb_pbmc_scperb", "papalexi2021_thp1", "perturbench_devel_norman19_mcfaline23"]
)
def test_real_data_equal_scanpy(shared, name, count):
    with H5ad(shared / "data" / f"{name}.h5ad") as file:
        read = read_checked(file)
        scale = scales(file, read.totals, total_key="total_counts", target_sum=1e4)
        count = min(count, len(file.genes) - 1)
    lognorm = normalise(read.matrix, scale)
    oracle = scanpy_table(lognorm, count)["highly_variable"].to_numpy()
    np.testing.assert_array_equal(highly_variable(moments_of(lognorm, 500), count), oracle)


def test_gene_lists_in_every_form(tmp_path):
    names = ["g3", "g1", "MT-CO1"]
    forms = {
        "a.txt": "# panel\ng3\n\n g1 \nMT-CO1\n",
        "a.json": json.dumps(names),
        "task.json": json.dumps({"task": "x", "genes": names}),
        "named.csv": "id,gene\n1,g3\n2,g1\n3,MT-CO1\n",
        "bare.csv": "g3\ng1\nMT-CO1\n",
        "a.tsv": "Gene_Name\tn\ng3\t1\ng1\t2\nMT-CO1\t3\n",
    }
    for name, text in forms.items():
        (tmp_path / name).write_text(text)
        assert read_gene_list(tmp_path / name) == names, name


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("a.txt", "# nothing\n", "empty"),
        ("b.txt", "g1\ng2\ng1\n", "g1"),
        ("c.json", "{", "not valid JSON"),
        ("d.json", '{"gene": ["a"]}', "genes"),
        ("e.json", "[1, 2]", "strings"),
    ],
)
def test_wrong_gene_lists_are_refused(tmp_path, name, text, word):
    (tmp_path / name).write_text(text)
    with pytest.raises(RequestError, match=word) as caught:
        read_gene_list(tmp_path / name)
    assert name in str(caught.value)
    with pytest.raises(RequestError, match="no such file"):
        read_gene_list(tmp_path / "none.txt")


def test_pickled_gene_lists(tmp_path):
    names = ["g3", "g1", "MT-CO1"]
    forms = {
        "list": names,
        "tuple": tuple(names),
        "text": np.array(names),
        "objects": np.array(names, dtype=object),
        "scalars": list(np.array(names)),
        "set": set(names),
        "frozenset": frozenset(names),
        "scalars_set": set(np.array(names)),
    }
    for protocol in range(6):
        for form, content in forms.items():
            file = tmp_path / f"{form}.{'pkl' if protocol % 2 else 'PICKLE'}"
            file.write_bytes(pickle.dumps(content, protocol))
            found = read_gene_list(file)
            assert found == (sorted(names) if "set" in form else names), (form, protocol)
            assert {type(name) for name in found} == {str}


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ([], "empty"),
        (set(), "empty"),
        (["a", "b", "a"], "more than once: a"),
        (["a", 1], "among these is int"),
        (["a", None], "among these is NoneType"),
        ([["a"], ["b"]], "among these is list"),
        (np.arange(3), "among these is int"),
        (np.array([b"a"]), "among these is bytes"),
        (np.array([["a", "b"]]), "shape (1, 2)"),
        ({"a": 1}, "holds a dict"),
        ("ABC", "holds a str"),
        (pathlib.PurePosixPath("a"), "PurePosixPath; a list, set"),
    ],
)
def test_wrong_pickled_gene_lists_are_refused(tmp_path, content, word):
    file = tmp_path / "genes.pkl"
    file.write_bytes(pickle.dumps(content, 4))
    with pytest.raises(RequestError) as caught:
        read_gene_list(file)
    text = str(caught.value)
    assert text.startswith(f"{file}: ") and word in text and "\n" not in text


def test_a_pickled_gene_list_calls_nothing(tmp_path):
    made = tmp_path / "made"
    file = write_pickle_calling(tmp_path / "genes.pkl", "posix", "system", f"touch {made}")
    with pytest.raises(
        RequestError, match=r"genes\.pkl: asks to call posix\.system; nothing .* is executed\.$"
    ):
        read_gene_list(file)
    assert not made.exists()
    for content, word in [
        (b"", "0 bytes"),
        (pickle.dumps(["a"])[:-3], "damaged"),
        (b"g1\ng2\n", "not a pickle"),
    ]:
        file.write_bytes(content)
        with pytest.raises(RequestError, match=word):
            read_gene_list(file)


def test_listed_genes_come_in_the_order_of_the_list():
    found = match_genes(["c", "x", "a"], ["a", "b", "c"], source="list", file="file")
    assert found.tolist() == [2, 0]
    with pytest.raises(RequestError, match="none of its 2 genes") as caught:
        match_genes(["x", "y"], ["a", "b", "c"], source="list.txt", file="data.h5ad")
    assert "list.txt" in str(caught.value) and "data.h5ad" in str(caught.value)

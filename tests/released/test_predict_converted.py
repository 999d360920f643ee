"""Prediction from converted weights on a user's file of control cells: its genes, its names of batches, its layers."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from recorded_files import convert, recording
from tiny_run import said

import perturbdiff_jax
from perturbdiff_jax import cli
from perturbdiff_jax.diffusion.samplers import SamplerOptions
from perturbdiff_jax.errors import RequestError

SHORT = SamplerOptions(start=6, steps=2, guidance=1.0)
KEYS = {"cell_type_key": "kind", "batch_key": "plate"}
SCREEN = "Parse_10M_PBMC_cytokines_processed_Xselected"  # the data set that batches of case1 begin with


def cells(genes, batches=("a", "b"), kinds=("CT0", "CT2"), seed=0):
    """Raw counts of control cells, 12 of each context, genes named as the bundles of `converted` name them."""
    draw = np.random.default_rng(seed)
    rows = [(kind, batch) for kind in kinds for batch in batches for _ in range(12)]
    counts = draw.poisson(3.0, (len(rows), genes)) + (np.arange(genes) == 1)
    obs = pd.DataFrame(rows, columns=["kind", "plate"], index=[f"c{i}" for i in range(len(rows))])
    var = pd.DataFrame(index=[f"G{i:03d}" for i in range(genes)])
    return anndata.AnnData(X=sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)


@pytest.fixture(scope="module")
def model(converted):
    return perturbdiff_jax.load(converted("case1"))


@pytest.fixture(scope="module")
def screen():
    return cells(50)


def predict(model, adata, perturbations=("CYT01", "CYT03"), **more):
    """(AnnData, remarks)."""
    heard = []
    more = {"cells_per_condition": 6, "sampler": SHORT, **KEYS} | more
    perturbations = None if "design" in more else list(perturbations)
    return model.predict(adata, perturbations, echo=heard.append, **more), "\n".join(heard)


@pytest.fixture(scope="module")
def base(model, screen):
    return predict(model, screen)


def same(a, b, atol=1e-4):
    assert (a.obs_names == b.obs_names).all() and (a.var_names == b.var_names).all()
    np.testing.assert_allclose(a.X.toarray(), b.X.toarray(), atol=atol)


def test_populations_of_every_context_with_the_files_own_names(base, model):
    predicted, heard = base
    own = predicted.obs[predicted.obs["perturbation"] != "control"]
    assert own.groupby(["perturbation", "cell_type", "batch"], observed=True).size().to_dict() == {
        (p, c, b): 6 for p in ("CYT01", "CYT03") for c in ("CT0", "CT2") for b in ("a", "b")
    }
    assert "all 50 genes of the bundle are there" in heard and "raw counts, normalised to 10000" in heard
    assert own["seen_perturbation"].all()
    assert predicted.uns["perturbdiff"]["origin"] == {"file": "case1.ckpt", "weights": "ema"}
    by = predicted.X.toarray()[(predicted.obs["perturbation"] == "CYT01").to_numpy()]
    other = predicted.X.toarray()[(predicted.obs["perturbation"] == "CYT03").to_numpy()]
    assert by.min() >= 0 and by.max() > 0.1 and np.abs(by - other).max() > 1e-3
    assert model.perturbations == [f"CYT{i:02d}" for i in range(7)]
    assert model.cell_types == ["CT0", "CT1", "CT2", "CT3"]
    assert model.batches == [f"{SCREEN}_{letter}" for letter in "abc"]


def test_genes_are_found_by_name_wherever_they_are(model, screen, base, tmp_path):
    draw = np.random.default_rng(1)
    mixed = screen[:, draw.permutation(50)].copy()
    mixed.write_h5ad(tmp_path / "mixed.h5ad")
    same(predict(model, tmp_path / "mixed.h5ad")[0], base[0])
    mixed.var["symbol"] = list(mixed.var_names)
    mixed.var_names = [f"ENSG{i:05d}" for i in range(50)]
    same(predict(model, mixed, gene_key="symbol")[0], base[0])
    mixed.var["symbol"] = ["G007" if name == "G008" else name for name in mixed.var["symbol"]]
    with pytest.raises(
        RequestError, match="var column 'symbol' names 1 of the bundle's genes more than once"
    ):
        predict(model, mixed, gene_key="symbol")
    with pytest.raises(RequestError, match="has 0 of the bundle's 50 genes"):
        predict(model, mixed)


def test_log1p_cells_are_taken_as_they_are(model, screen, base):
    scaled = screen.copy()
    counts = screen.X.toarray()
    scaled.X = sp.csr_matrix(np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4))
    predicted, heard = predict(model, scaled)
    same(predicted, base[0])
    assert "raw counts" not in heard


def test_missing_genes_are_zero_and_said(model, screen):
    """As a file that has those genes and no count of them; too few genes are refused."""
    kept = np.arange(50) >= 5
    lacking, heard = predict(model, screen[:, kept].copy())
    silent = screen.copy()
    silent.X = sp.csr_matrix(screen.X.toarray() * kept)
    same(lacking, predict(model, silent)[0])
    assert "5 of 50 genes are missing and taken as zero" in heard and lacking.n_vars == 50
    with pytest.raises(RequestError, match=r"has 35 of the bundle's 50 genes .70%.; at least 80% are needed"):
        predict(model, screen[:, 15:].copy())


def test_cells_of_a_set_are_predicted_together(model, screen, base):
    """The released inference script predicts cells one by one; a set's cells see each other."""
    other = screen.copy()
    row = other.X[0].toarray()
    other.X = sp.vstack([sp.csr_matrix(row[:, ::-1]), other.X[1:]]).tocsr()
    changed = np.abs(predict(model, other)[0].X.toarray() - base[0].X.toarray()).max(axis=1) > 1e-5
    own = base[0].obs["perturbation"] == "CYT01"
    touched = own & (base[0].obs["cell_type"] == "CT0") & (base[0].obs["batch"] == "a")
    assert changed[touched.to_numpy()].sum() == 6 and not changed[(own & ~touched).to_numpy()].any()


def test_batches_go_by_their_full_names_as_well(model, screen, base):
    full = screen.copy()
    full.obs["plate"] = [f"{SCREEN}_{batch}" for batch in full.obs["plate"]]
    predicted, _ = predict(model, full)
    np.testing.assert_allclose(predicted.X.toarray(), base[0].X.toarray(), atol=1e-4)
    assert set(predicted.obs["batch"]) == {f"{SCREEN}_a", f"{SCREEN}_b"}
    design = pd.DataFrame([("CYT03", "CT2", "b")], columns=["perturbation", "cell_type", "batch"])
    rows = predict(model, screen, design=design)[0]
    assert set(rows.obs["batch"]) == {"b"}
    chosen = base[0].obs[["perturbation", "cell_type", "batch"]].agg(tuple, axis=1) == ("CYT03", "CT2", "b")
    mine = (rows.obs["perturbation"] == "CYT03").to_numpy()
    np.testing.assert_allclose(rows.X[mine].toarray(), base[0].X[chosen.to_numpy()].toarray(), atol=1e-4)


@pytest.mark.parametrize(
    ("column", "value", "asked", "message"),
    [
        ("kind", "CT9", "CYT01", r"column 'kind': unknown cell type 'CT9'. Did you mean"),
        ("plate", "A1", "CYT01", r"column 'plate': unknown batch 'A1'"),
        ("kind", "CT0", "cyt01", r"unknown perturbation 'cyt01'. Did you mean 'CYT01'\?"),
        ("kind", "CT0", "CYT 1", r"Did you mean 'CYT01'"),
    ],
)
def test_wrong_names_get_the_closest_ones(model, screen, column, value, asked, message):
    wrong = screen.copy()
    wrong.obs[column] = value if value != "CT0" else wrong.obs[column]
    with pytest.raises(RequestError, match=message):
        predict(model, wrong, [asked])


def test_genes_without_names_cannot_be_matched(released, screen, tmp_path):
    code, _, err = convert("--input", released("case1"), "--output", tmp_path / "b")
    assert (code, err) == (0, "")
    unnamed = perturbdiff_jax.load(tmp_path / "b")
    with pytest.raises(RequestError, match=r"no gene names, .* convert it again with --genes"):
        predict(unnamed, screen)
    arrays = unnamed.sample(recording("case1")["control"], start=1, steps=1)
    assert arrays.shape == recording("case1")["control"].shape


def test_a_pretrained_network_says_what_it_does_not_look_at(converted):
    """No perturbation, no control cells; its input layers are told by the batch, or named."""
    model = perturbdiff_jax.load(converted("by_name"))
    mine = cells(24, batches=("replogle_a",), kinds=("k562",))
    predicted, heard = predict(model, mine, ["CYT00", "ATP6V1G1"])
    assert "trained without looking at perturbations" in heard and "trained without control cells" in heard
    other, _ = predict(model, cells(24, ("replogle_a",), ("k562",), seed=5), ["CYT00", "ATP6V1G1"])
    own = (predicted.obs["perturbation"] != model.bundle.control).to_numpy()
    np.testing.assert_array_equal(predicted.X[own].toarray(), other.X[own].toarray())
    named, _ = predict(model, mine, ["CYT00", "ATP6V1G1"], source="replogle")
    same(named, predicted)
    elsewhere, _ = predict(model, mine, ["CYT00", "ATP6V1G1"], source="pbmc")
    assert np.abs(elsewhere.X[own].toarray() - predicted.X[own].toarray()).max() > 1e-3
    with pytest.raises(RequestError, match=r"unknown source 'pbmcs'. Did you mean 'pbmc'"):
        predict(model, mine, ["CYT00"], source="pbmcs")
    ambiguous = cells(24, batches=("a",), kinds=("k562",))
    with pytest.raises(RequestError, match=r"batch 'a' may be any of .*; give the full name"):
        predict(model, ambiguous, ["CYT00"])


def test_the_command_line_writes_what_python_returns(converted, model, screen, base, tmp_path):
    screen.write_h5ad(tmp_path / "controls.h5ad")
    words = (
        "--checkpoint",
        converted("case1"),
        "--input",
        tmp_path / "controls.h5ad",
        "--cell-type-key",
        "kind",
    )
    words += ("--batch-key", "plate", "--cells-per-condition", 6, "--start", 6, "--steps", 2, "--guidance", 1)
    out = tmp_path / "p.h5ad"
    code, said_, err = said(cli.run, "predict", *words, "--perturbations", "CYT01,CYT03", "--output", out)
    assert (code, err) == (0, "") and "all 50 genes" in said_
    written = anndata.read_h5ad(out)
    same(written, base[0])
    assert written.uns["perturbdiff"]["origin"]["weights"] == "ema"


def test_labels_with_commas_are_asked_for_on_the_command_line(converted, tmp_path):
    """The drug screen's labels are lists in text: [('Allantoin', 0.05, 'uM')]."""
    model = perturbdiff_jax.load(converted("chemberta"))
    two = model.perturbations[:2]
    plates = [model.batches[0]]
    cells(24, plates, model.cell_types[:1]).write_h5ad(tmp_path / "controls.h5ad")
    words = ("--checkpoint", converted("chemberta"), "--input", tmp_path / "controls.h5ad", "--cell-type-key")
    words += ("kind", "--batch-key", "plate", "--cells-per-condition", 4, "--start", 4, "--steps", 2)
    out = tmp_path / "p.h5ad"
    code, _, err = said(cli.run, "predict", *words, "--perturbations", ", ".join(two), "--output", out)
    assert (code, err) == (0, "")
    counts = anndata.read_h5ad(out).obs["drugname_drugconc"].value_counts().to_dict()
    assert {name: counts[name] for name in two} == dict.fromkeys(two, 4)

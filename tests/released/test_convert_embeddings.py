"""The embedding file of a released network: kept if it is the one of its table, and then new names are predicted."""

import pickle

import anndata
import numpy as np
import pandas as pd
import pytest
from recorded_files import convert, hyper_parameters, recording, tensors, write
from test_predict_converted import cells
from tiny_run import said

import perturbdiff_jax
from perturbdiff_jax import cli
from perturbdiff_jax.bundle import read_bundle
from perturbdiff_jax.prediction.unseen import extended

TABLE = "cov_encoder.pert_encoder.0.weight"
DRUGS = "cov_encoder.drug_encoder.0.weight"
NEW = ["ALIAS", "IL-99"]


def vectors_of(kind):
    """{name: vector} of a recording's own table, and two names besides: the first is told as CYT05 is."""
    names, table = list(hyper_parameters(kind)["cov_encoding_cfg"]["pert_dict"]), tensors(kind)[TABLE]
    found = dict(zip(names, table[-len(names) :]))
    far = np.random.default_rng(4).normal(size=table.shape[1]).astype(np.float32)
    return found | {"ALIAS": found[names[5]], "IL-99": far}


def given(path, vectors):
    np.savez(path, names=np.array(list(vectors)), vectors=np.stack(list(vectors.values())))
    return f"perturbation=mine={path}"


@pytest.fixture(scope="module")
def told(released, tmp_path_factory):
    """The converted esm2 network with its file, whose rows are numbered beside a list of names."""
    folder = tmp_path_factory.mktemp("told")
    vectors = vectors_of("esm2")
    rows = {at: vector.astype(np.float16) for at, vector in enumerate(vectors.values())}
    (folder / "rows.pkl").write_bytes(pickle.dumps(rows))
    (folder / "names.txt").write_text("\n".join(vectors))
    (folder / "genes.txt").write_text("\n".join(f"G{i:03d}" for i in range(24)))
    words = ("--embeddings", f"perturbation=mine={folder}/rows.pkl@{folder}/names.txt")
    source = ("--input", released("esm2"), "--output", folder / "bundle", "--genes", folder / "genes.txt")
    code, out, err = convert(*source, *words)
    assert (code, err) == (0, "")
    assert f"{folder}/rows.pkl: agrees with the checkpoint for 82 of 82 perturbations" in out
    assert "; names in it that can be predicted besides: 2." in out
    (folder / "rows.pkl").unlink()  # the bundle needs nothing else
    return folder / "bundle"


def test_facts_and_weights_are_those_of_the_checkpoint_and_the_file_besides(told, converted):
    found, plain = read_bundle(told), read_bundle(converted("esm2"))
    table = found.tables["perturbation"]
    assert {name: table[name] for name in ("name", "shape", "sha256")} == plain.tables["perturbation"]
    assert (table["onehot"], len(table["parts"])) == (False, 1)
    assert {name: table["parts"][0][name] for name in ("name", "width", "names")} == {
        "name": "mine",
        "width": 10,
        "names": 84,
    }
    one, other = (perturbdiff_jax.load(path).params["covariates"] for path in (told, converted("esm2")))
    np.testing.assert_array_equal(one["frozen_perturbation"], other["frozen_perturbation"])


def denoised(model, name):
    """One pass told `name`."""
    record = recording("esm2")
    known = extended(model, pd.DataFrame({"perturbation": [name]}))
    sets = len(record["x_t"])
    codes = {"perturbation": np.full(sets, known.bundle.perturbations.index(name))}
    codes |= {role: np.zeros(sets, np.int64) for role in ("cell_type", "batch")}
    return known.denoise(record["x_t"], record["t"], record["control"], **codes)


def test_a_new_name_is_told_by_its_vector(told):
    model = perturbdiff_jax.load(told)
    alias, known, other = (denoised(model, name) for name in ("ALIAS", "CYT05", "IL-99"))
    # The file was rounded to half precision.
    np.testing.assert_allclose(alias, known, atol=2e-3)
    assert np.abs(other - known).max() > 0.05


def test_a_new_name_is_told_by_its_vector_where_the_table_has_rows_to_spare(tmp_path):
    """The rows behind the vocabulary are nobody's: the first new name must not fall on them."""

    def longer(arrays, facts):
        arrays[TABLE] = np.concatenate([arrays[TABLE], 50 + arrays[TABLE][:3]])

    source = write(tmp_path / "longer.ckpt", "esm2", longer)
    words = ("--embeddings", given(tmp_path / "t.npz", vectors_of("esm2")))
    code, out, err = convert("--input", source, "--output", tmp_path / "b", *words)
    assert (code, err) == (0, "") and "the esm2 table has 85 rows; the first 82 are perturbations" in out
    model = perturbdiff_jax.load(tmp_path / "b")
    np.testing.assert_array_equal(denoised(model, "ALIAS"), denoised(model, "CYT05"))


def test_the_commands(told, converted, tmp_path):
    cells(24, batches=("a",), kinds=("CT0",)).write_h5ad(tmp_path / "controls.h5ad")
    words = ("--input", tmp_path / "controls.h5ad", "--cell-type-key", "kind", "--batch-key", "plate")
    words += ("--cells-per-condition", 3, "--start", 4, "--steps", 2, "--perturbations", "CYT05,IL-99")
    command = ("predict", "--checkpoint", told, "--output", tmp_path / "p.h5ad")
    code, out, err = said(cli.run, *command, *words)
    assert (code, err) == (0, "") and "IL-99 was never trained: told by its vector, nearest to CYT" in out
    written = anndata.read_h5ad(tmp_path / "p.h5ad")
    seen = written.obs.groupby("perturbation", observed=True)["seen_perturbation"].first()
    assert seen["CYT05"] and not seen["IL-99"]
    assert list(written.uns["perturbdiff"]["unseen"]["perturbation"]) == ["IL-99"]
    code, _, err = said(cli.run, "predict", "--checkpoint", converted("esm2"), *command[3:], *words)
    assert code == 2 and "unknown perturbation 'IL-99'" in err


def test_drugs_are_told_by_name_and_by_a_trained_dose(tmp_path):
    labels = list(hyper_parameters("chemberta")["cov_encoding_cfg"]["pert_dict"])
    drugs = sorted({label.split("'")[1] for label in labels})
    vectors = dict(zip(drugs, np.random.default_rng(1).normal(size=(len(drugs), 11)).astype(np.float32)))

    def by_drug(arrays, facts):
        rows = [vectors[label.split("'")[1]] for label in labels]
        rows[labels.index("[('DMSO_TF', 0.0, 'uM')]")] = np.full(11, 7.0)  # the control's row is no drug's
        arrays[DRUGS] = np.stack(rows)

    source = write(tmp_path / "drugs.ckpt", "chemberta", by_drug)
    asked = given(tmp_path / "t.npz", vectors | {"NEW": -vectors[drugs[0]]})
    code, out, err = convert("--input", source, "--output", tmp_path / "b", "--embeddings", asked)
    assert (code, err) == (0, "") and "for 12 of 12 perturbations" in out and "besides: 1." in out
    model = perturbdiff_jax.load(tmp_path / "b")
    asked = pd.DataFrame({"perturbation": ["[('NEW', 0.5, 'uM')]"]})
    known = extended(model, asked)
    at = labels.index("[('Allantoin', 0.5, 'uM')]")
    assert known.bundle.doses["codes"][-1] == known.bundle.doses["codes"][at]
    with pytest.raises(perturbdiff_jax.errors.RequestError, match=r"its dose 3\.0 was never trained"):
        extended(model, pd.DataFrame({"perturbation": ["[('NEW', 3.0, 'uM')]"]}))


def test_names_that_the_file_lacks_are_told_of(released, tmp_path):
    vectors = {name: vector for name, vector in vectors_of("genept").items() if name != "NOTINTABLE"}
    asked = given(tmp_path / "t.npz", vectors)
    code, out, err = convert("--input", released("genept"), "--output", tmp_path / "b", "--embeddings", asked)
    assert (code, err) == (0, "")
    assert "for 5 of 6 perturbations" in out and " and lacks NOTINTABLE;" in out


def swapped():
    vectors = vectors_of("esm2")
    vectors["CYT07"], vectors["CYT08"] = vectors["CYT08"], vectors["CYT07"]
    return vectors


@pytest.mark.parametrize(
    ("kind", "vectors", "asked", "message"),
    [
        ("esm2", swapped, None, "was trained with: 2 of the 82 perturbations that both have differ, CYT0"),
        ("esm2", lambda: {"A": np.ones(10)}, None, "has none of the 82 perturbations of"),
        ("esm2", lambda: {"CYT01": np.ones(9)}, None, "vectors are 9 wide, those of"),
        ("case1", swapped, None, "tells perturbations apart by learned rows alone"),
        ("esm2", swapped, "cell_type=mine={}", "must be perturbation=NAME=FILE"),
        ("esm2", swapped, "{}", "must be perturbation=NAME=FILE"),
        ("esm2", swapped, "perturbation=onehot + mine={}", "a released network has one table"),
        ("esm2", swapped, "perturbation=mine={0} + other={0}", "a released network has one table"),
        ("esm2", swapped, "perturbation=esm2={}", "vectors are 10 wide; esm2 has 320"),
        ("esm2", swapped, "perturbation=mine=absent.npz", "absent.npz: no such file"),
    ],
)
def test_another_table_is_refused_and_nothing_written(released, tmp_path, kind, vectors, asked, message):
    given(tmp_path / "t.npz", vectors())
    words = ("--embeddings", (asked or "perturbation=mine={}").format(tmp_path / "t.npz"))
    code, _, err = convert("--input", released(kind), "--output", tmp_path / "b", *words)
    assert code == 2 and message in err and len(err.splitlines()) <= 2
    assert [path.name for path in tmp_path.iterdir()] == ["t.npz"]


def test_the_file_belongs_to_an_output(released):
    code, _, err = convert("--input", released("esm2"), "--inspect", "--embeddings", "perturbation=x")
    assert code == 2 and "--embeddings belongs to --output" in err

"""What evaluate refuses, by name, and how it finds and normalises the real cells that answer a prediction."""

import numpy as np
import pytest
import scipy.sparse as sp
from toy_cells import GENES, KEYS, lognorm, prediction, screen

from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.evaluation.evaluate import evaluate
from perturbdiff_jax.evaluation.inputs import Keys, read_predicted
from perturbdiff_jax.evaluation.real_cells import read_contexts, triples

ALL_KEYS = Keys("pert", "control", "type", "lot")


def changed(adata, value, cell=3, gene=2):
    out = adata.copy()
    dense = out.X.toarray()
    dense[cell, gene] = value
    out.X = sp.csr_matrix(dense)
    return out


def without_control(adata):
    return adata[(adata.obs["pert"] != "control").to_numpy()].copy()


def renamed(adata, what, names):
    out = adata.copy()
    setattr(out, what, names)
    return out


def relabelled(adata, old, new):
    out = adata.copy()
    out.obs["pert"] = [new if name == old else name for name in out.obs["pert"]]
    return out


TWICE = ["g1", "g1", *GENES[2:]]
CASES = {
    "negative": (lambda p: changed(p, -0.5), None, ["prediction", "negative", "'p3'", "'g2'", "-0.5"]),
    "nan": (lambda p: changed(p, np.nan), None, ["prediction", "not finite", "'p3'", "'g2'"]),
    "raw prediction": (lambda p: renamed_raw(p), None, ["prediction", "raw counts"]),
    "beyond log": (lambda p: changed(p, 99.5), None, ["prediction", "99.5", "log1p"]),
    "other genes": (lambda p: renamed(p, "var_names", ["other", *GENES[1:]]), None, ["real", "'g0'|other"]),
    "missing perturbation": (lambda p: relabelled(p, "P2", "P9"), None, ["real", "'pert'", "P9", "P2"]),
    "no control in prediction": (without_control, None, ["prediction", "'pert'", "'control'"]),
    "no control in real": (None, without_control, ["real", "'pert'", "'control'"]),
    "genes twice in prediction": (
        lambda p: renamed(p, "var_names", TWICE),
        None,
        ["prediction", "gene", "g1"],
    ),
    "genes twice in real": (None, lambda r: renamed(r, "var_names", TWICE), ["real", "gene", "g1"]),
    "cells twice in real": (None, lambda r: renamed(r, "obs_names", ["c"] * r.n_obs), ["real", "cell", "c"]),
    "negative real": (None, lambda r: changed(r, -1.0, cell=200), ["real", "negative"]),
    "real not log": (None, lambda r: changed(r, 77.5, cell=200), ["real", "77.5"]),
    "nothing to score": (
        lambda p: p[(p.obs["pert"] == "control").to_numpy()].copy(),
        None,
        ["prediction", "control"],
    ),
}


def renamed_raw(pred):
    out = pred.copy()
    out.X = sp.csr_matrix(np.round(np.expm1(pred.X.toarray())))
    return out


@pytest.mark.parametrize("case", CASES)
def test_refused_by_name_and_nothing_written(case, tmp_path):
    change_pred, change_real, words = CASES[case]
    real = screen()
    pred = prediction(real)
    pred = change_pred(pred) if change_pred else pred
    real = change_real(real) if change_real else real
    with pytest.raises(RequestError) as error:
        evaluate(
            pred, real, tmp_path / "out", perturbation_key="pert", control="control", echo=lambda _: None
        )
    message = str(error.value)
    assert len(message.splitlines()) <= 2
    for word in words:
        assert any(part in message for part in word.split("|")), (word, message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("side", ["prediction", "real"])
def test_missing_columns_and_files_are_named(side, tmp_path):
    real = screen()
    pred = prediction(real)
    target = pred if side == "prediction" else real
    target.obs = target.obs.drop(columns="type")
    options = {"perturbation_key": "pert", "control": "control", "echo": lambda _: None}
    with pytest.raises(RequestError, match=f"(?s){side}.*'type'"):
        evaluate(pred, real, tmp_path / "out", cell_type_key="type", **options)
    paths = {"prediction": (tmp_path / "no.h5ad", real), "real": (pred, tmp_path / "no.h5ad")}
    with pytest.raises(RequestError, match=r"no\.h5ad does not exist"):
        evaluate(*paths[side], tmp_path / "out", **options)
    (tmp_path / "no.h5ad").write_text("this is text")
    with pytest.raises(RequestError, match=r"no\.h5ad cannot be read"):
        evaluate(*paths[side], tmp_path / "out", **options)


def contexts(real, pred, **changes):
    side, facts = read_predicted(pred, ALL_KEYS)
    options = {"target_sum": facts.get("target_sum"), "total_key": None, "echo": lambda _: None, **changes}
    return read_contexts(real, ALL_KEYS, triples(side.conditions), side.genes, **options)


def test_real_cells_are_those_of_the_predicted_triples():
    real = screen()
    pred = prediction(real, held_out=[("A", "y")])
    pred = pred[(pred.obs["pert"] != "P3").to_numpy()].copy()
    (context,), said = contexts(real, pred)
    assert context.cell_type == "A" and sorted(context.real) == [("y", "P1"), ("y", "P2")]
    assert "raw counts" in said and "10000" in said
    here = (real.obs["type"] == "A") & (real.obs["lot"] == "y")
    for key, name in ((context.real["y", "P1"], "P1"), (context.control["y"], "control")):
        wanted = lognorm(real)[(here & (real.obs["pert"] == name)).to_numpy()].X.toarray()
        np.testing.assert_allclose(key.toarray(), wanted, rtol=1e-5)


def test_genes_are_aligned_by_name_and_totals_are_over_all_genes_or_a_column():
    real = screen()
    pred = prediction(real, held_out=[("A", "y")])[:, ["g7", "P1", "g3"]].copy()
    (context,), _ = contexts(real, pred)
    rows = ((real.obs["type"] == "A") & (real.obs["lot"] == "y") & (real.obs["pert"] == "P2")).to_numpy()
    wanted = lognorm(real)[rows][:, ["g7", "P1", "g3"]].X.toarray()
    np.testing.assert_allclose(context.real["y", "P2"].toarray(), wanted, rtol=1e-5)
    real.obs["total"] = np.arange(real.n_obs) + 500.0
    (context,), said = contexts(real, pred, total_key="total", target_sum=300.0)
    counts = real[rows][:, ["g7", "P1", "g3"]].X.toarray()
    wanted = np.log1p(counts * 300.0 / real.obs["total"].to_numpy()[rows][:, None])
    np.testing.assert_allclose(context.real["y", "P2"].toarray(), wanted, rtol=1e-5)
    assert "'total'" in said
    with pytest.raises(RequestError, match="'nope'"):
        contexts(real, pred, total_key="nope")


def test_lognormalised_real_cells_stay_as_they_are():
    real = lognorm(screen())
    (context,), said = contexts(real, prediction(screen(), held_out=[("B", "y")]))
    assert "log1p-normalised already" in said
    rows = ((real.obs["type"] == "B") & (real.obs["lot"] == "y") & (real.obs["pert"] == "P1")).to_numpy()
    np.testing.assert_array_equal(context.real["y", "P1"].toarray(), real[rows].X.toarray())


def test_a_context_without_controls_borrows_them_and_says_so():
    real = screen()
    pred = prediction(real, held_out=[("A", "y")])
    pred.obs.loc[pred.obs["pert"] == "control", "type"] = "B"
    own = (real.obs["type"] == "A") & (real.obs["lot"] == "y") & (real.obs["pert"] == "control")
    said = []
    (context,), _ = contexts(real[~own.to_numpy()].copy(), pred, echo=said.append)
    other = (real.obs["type"] == "B") & (real.obs["lot"] == "y") & (real.obs["pert"] == "control")
    wanted = lognorm(real)[other.to_numpy()].X.toarray()
    np.testing.assert_allclose(context.control["y"].toarray(), wanted, rtol=1e-5)
    assert any("no control cells" in line and "other cell types" in line for line in said)


def test_h5ad_backed_and_in_memory_give_the_same(tmp_path):
    real, pred = screen(), prediction(screen())
    real.write_h5ad(tmp_path / "real.h5ad")
    pred.write_h5ad(tmp_path / "pred.h5ad")
    a, _ = contexts(real, pred)
    b, _ = contexts(tmp_path / "real.h5ad", tmp_path / "pred.h5ad")
    for one, two in zip(a, b, strict=True):
        for key in one.real:
            np.testing.assert_array_equal(one.real[key].toarray(), two.real[key].toarray())


def test_a_dose_column_is_part_of_the_condition():
    pred = prediction(screen(), held_out=[("A", "y")])
    pred.obs["dose"] = [2.5 if i % 2 else 5.0 for i in range(pred.n_obs)]
    keys = Keys(*(KEYS["perturbation"], "control", KEYS["cell_type"], KEYS["batch"]), dose="dose")
    side, _ = read_predicted(pred, keys)
    assert {triple[0] for triple in triples(side.conditions)} == {
        f"{name} @ {dose}" for name in ("P1", "P2", "P3") for dose in ("2.5", "5")
    }

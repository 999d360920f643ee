"""Names and files of predictions that are refused, on one or two lines, and the command line's words for them."""

import argparse

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from toy_cells import evaluated, foreign, numbered, prediction, screen

from perturbdiff_jax.commands.evaluate import fill, predictions
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.evaluation import celleval, predicted


@pytest.fixture(autouse=True)
def no_cell_eval(monkeypatch):
    """What is tested here depends on no differential expression, which takes seconds."""
    monkeypatch.setattr(celleval, "installed", lambda: False)


NAMES = {
    "a baseline's": ({"ridge": 1}, "baseline"),
    "the new baseline's": ({"Linear": 1}, "baseline"),
    "the ceiling's": ({"ceiling": 1}, "ceiling"),
    "the control's": ({"control": 1}, "baseline"),
    "empty": ({"": 1}, "not allowed"),
    "a path": ({"../a": 1}, "not allowed"),
    "two lines": ({"a\nb": 1}, "not allowed"),
    "the same but for case": ({"A": 1, "a": 2}, "are the same"),
    "none": ({}, "no prediction"),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_that_are_refused(case):
    pred, words = NAMES[case]
    with pytest.raises(RequestError, match=words) as error:
        predicted.named(pred)
    assert len(str(error.value).splitlines()) == 1


def other_scale(adata):
    out = adata.copy()
    out.uns["perturbdiff"] = {"target_sum": 1e3}
    return out


def integers(adata):
    out = adata.copy()
    out.X = np.round(np.expm1(adata.X.toarray())).astype(np.int64)
    return out


def negative(adata):
    out = adata.copy()
    dense = out.X.toarray()
    dense[7, 2] = -0.25
    out.X = sp.csr_matrix(dense)
    return out


def strangers(adata):
    out = adata.copy()
    out.var_names = [f"ENSG{i}" for i in range(adata.n_vars)]
    return out


BROKEN = {
    "counts": (integers, ["'state'", "state.h5ad", "X", "whole numbers", "log1p"]),
    "negative": (negative, ["'state'", "state.h5ad", "X", "'p7'", "'g2'", "-0.25", ">= 0"]),
    "other gene names": (strangers, ["var_names", "only 0 genes", "ENSG0", "g0"]),
    "no control": (
        lambda p: p[(p.obs["pert"] != "control").to_numpy()].copy(),
        ["'state'", "state.h5ad", "'pert'", "'control'", "P1"],
    ),
    "other perturbations": (
        lambda p: p[p.obs["pert"].isin(["control"]).to_numpy()].copy(),
        ["'state'", "only control cells"],
    ),
    "another scale": (other_scale, ["target_sum", "ours 10000", "state 1000"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_among_several_is_named_and_nothing_is_written(case, tmp_path):
    raw = screen()
    change, words = BROKEN[case]
    change(foreign(raw)).write_h5ad(tmp_path / "state.h5ad")
    sources = {"ours": prediction(raw), "state": tmp_path / "state.h5ad"}
    with pytest.raises(RequestError) as error:
        evaluated(tmp_path / "out", sources)
    message = str(error.value)
    for word in words:
        assert word in message, (word, message)
    assert len(message.splitlines()) <= 2 and not (tmp_path / "out").exists()


def test_words_of_the_command_line(tmp_path, monkeypatch):
    assert predictions(["a.h5ad"]) == "a.h5ad"
    assert predictions(["runs/lr=3/a.h5ad"]) == "runs/lr=3/a.h5ad"
    assert predictions(["ours=a.h5ad", "state=x=y.h5ad"]) == {"ours": "a.h5ad", "state": "x=y.h5ad"}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "k=1.h5ad").write_text("")
    assert predictions(["k=1.h5ad"]) == "k=1.h5ad"
    parser = argparse.ArgumentParser()
    fill(parser)
    rest = ["--real", "r", "--output", "o", "--perturbation-key", "p", "--control", "c"]
    twice = parser.parse_args(["--pred", "a=1.h5ad", "--pred", "b=2.h5ad", "c=3.h5ad", *rest])
    assert predictions(twice.pred) == {"a": "1.h5ad", "b": "2.h5ad", "c": "3.h5ad"}
    for words, said in (
        (["a.h5ad", "state=b.h5ad"], "NAME=PRED.h5ad"),
        (["a=1.h5ad", "a=2.h5ad"], "'a' is given to"),
        (["a=", "b=2.h5ad"], "no path"),
    ):
        with pytest.raises(RequestError, match=said):
            predictions(words)


def test_the_command_scores_several_and_refuses_with_code_2(tmp_path, capsys):
    from perturbdiff_jax import cli

    raw = screen()
    raw.write_h5ad(tmp_path / "real.h5ad")
    prediction(raw).write_h5ad(tmp_path / "a.h5ad")
    numbered(foreign(raw)).write_h5ad(tmp_path / "b.h5ad")
    words = ["evaluate", "--pred", f"ours={tmp_path}/a.h5ad", f"state={tmp_path}/b.h5ad"]
    words += ["--real", f"{tmp_path}/real.h5ad", "--output", f"{tmp_path}/out"]
    words += ["--perturbation-key", "pert", "--control", "control"]
    assert cli.run(words) == 2
    assert "b.h5ad" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert cli.run([*words, "--genes-by-position"]) == 0
    assert set(pd.read_csv(tmp_path / "out" / "metrics.csv")["model"]) == {"ours", "state"}

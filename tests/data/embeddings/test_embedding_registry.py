"""Encodings as a config writes them: parts, files, known families with their widths."""

import numpy as np
import pytest

from perturbdiff_jax.data.embeddings.registry import parts_of, read_encoding
from perturbdiff_jax.errors import RequestError

KEY = "config.covariates.perturbation"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("onehot", [("onehot", "")]),
        ("genept=/data/GenePT.pkl", [("genept", "/data/GenePT.pkl")]),
        ("/data/my table.npz", [("my table", "/data/my table.npz")]),
        ("onehot + genept=g.pkl", [("onehot", ""), ("genept", "g.pkl")]),
        ("onehot+genept=g.pkl", [("onehot", ""), ("genept", "g.pkl")]),
        ("onehot+/data/x.npz", [("onehot", ""), ("x", "/data/x.npz")]),
        ("genept=g.pkl+onehot", [("genept", "g.pkl"), ("onehot", "")]),
        ("a=x+y/a.csv + b=b.csv.gz", [("a", "x+y/a.csv"), ("b", "b.csv.gz")]),
    ],
)
def test_parts(text, wanted):
    assert parts_of(text, KEY, "perturbation") == wanted


@pytest.mark.parametrize(
    ("text", "role", "message"),
    [
        ("", "perturbation", "names no file"),
        (
            "genept",
            "perturbation",
            r"'genept' names no file\. Allowed are onehot, NAME=FILE \(here genept=FILE\)",
        ),
        ("one-hot", "perturbation", "known names are esm2: ESM-2 .*; genept: .*; chemberta: .*; llm: "),
        ("onehot=x.npz", "perturbation", "onehot takes no file"),
        ("onehot + onehot", "perturbation", "onehot stands there twice"),
        ("esm2=x.npz", "cell_type", r"esm2 \(.*\) is for perturbation, not for cell_type"),
    ],
)
def test_what_is_no_encoding_is_refused(text, role, message):
    with pytest.raises(RequestError, match=message) as caught:
        parts_of(text, f"config.covariates.{role}", role)
    assert f"config.covariates.{role}" in str(caught.value)


def test_known_families_have_known_widths(tmp_path):
    np.savez(tmp_path / "t.npz", A=np.ones(10), B=np.zeros(10))
    with pytest.raises(
        RequestError, match=r"vectors are 10 wide; genept has 1536, 3072 \(give other vectors"
    ):
        read_encoding(f"genept={tmp_path / 't.npz'}", KEY, "perturbation")
    found = read_encoding(f"onehot + mine={tmp_path / 't.npz'} + {tmp_path / 't.npz'}", KEY, "perturbation")
    assert found.onehot and [name for name, _ in found.tables] == ["mine", "t"]
    assert found.name == "onehot + mine + t"
    np.savez(tmp_path / "wide.npz", A=np.ones(16_385))
    with pytest.raises(RequestError, match="at most 16384"):
        read_encoding(str(tmp_path / "wide.npz"), KEY, "perturbation")

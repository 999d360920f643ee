"""Embedding files: every kind gives the same vectors; what is wrong is named by file, name and value."""

import gzip
import pickle

import numpy as np
import pandas as pd
import pytest

from perturbdiff_jax.data.embeddings.files import read_vectors
from perturbdiff_jax.errors import RequestError

NAMES = ["KLF1", "IFN-γ", "Erlotinib"]
WANTED = np.array([[1.0, -2.5, 3e-3], [0.0, 7.0, -1e4], [0.1, 0.2, 0.3]], dtype=np.float32)


def table():
    return pd.DataFrame(WANTED, columns=["d0", "d1", "d2"]).assign(name=NAMES)[["name", "d0", "d1", "d2"]]


def npz(path, **arrays):
    with path.open("wb") as file:
        np.savez(file, **arrays)


WRITERS = {
    "pair.npz": lambda path: npz(path, names=np.array(NAMES), vectors=WANTED.astype(np.float64)),
    "embeddings.npz": lambda path: npz(path, names=np.array(NAMES), embeddings=WANTED),
    "each.npz": lambda path: npz(path, **dict(zip(NAMES, WANTED))),
    "t.csv": lambda path: table().to_csv(path, index=False),
    "named.csv": lambda path: table()[["d0", "d1", "name", "d2"]].to_csv(path, index=False),
    "first.csv": lambda path: table().rename(columns={"name": "protein"}).to_csv(path, index=False),
    "t.tsv": lambda path: table().to_csv(path, index=False, sep="\t"),
    "t.csv.gz": lambda path: path.write_bytes(gzip.compress(table().to_csv(index=False).encode())),
    "t.parquet": lambda path: table().to_parquet(path),
    "index.parquet": lambda path: table().set_index("name").to_parquet(path),
    "lists.parquet": lambda path: pd.DataFrame({"gene": NAMES, "v": list(WANTED)}).to_parquet(path),
    "arrays.pkl": lambda path: path.write_bytes(pickle.dumps(dict(zip(NAMES, WANTED)))),
    "lists.pkl": lambda path: path.write_bytes(pickle.dumps(dict(zip(NAMES, WANTED.tolist())))),
    "pair.pickle": lambda path: path.write_bytes(pickle.dumps((NAMES, WANTED))),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_gives_the_same_vectors(tmp_path, name):
    WRITERS[name](tmp_path / name)
    found = read_vectors(tmp_path / name)
    assert list(found.names) == NAMES and found.vectors.dtype == np.float32 and found.width == 3
    np.testing.assert_array_equal(found.vectors, WANTED)
    assert found.rows == {"KLF1": 0, "IFN-γ": 1, "Erlotinib": 2}


def text(name, content):
    return name, lambda path: path.write_text(content)


class Harmful:
    def __reduce__(self):
        return (open, ("broken-in", "w"))


def pickled(value):
    return "x.pkl", lambda path: path.write_bytes(pickle.dumps(value))


def arrays(**content):
    return "x.npz", lambda path: npz(path, **content)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (text("x.csv", "name,a\nA,1\nB,2\nA,3\n"), r"1 name\(s\) stand there more than once: A\."),
        (text("x.csv", "name,a,b\nA,1,2\nB,2,\n"), r"1 vector\(s\) have NaN or infinite values: B\."),
        (text("x.csv", "name,a,b\nA,1,2\nB,2,inf\n"), r"NaN or infinite values: B\."),
        (
            text("x.csv", "name,a,b\nA,1,2\nB,2,many\n"),
            "column 'b' holds 'many' for 'B'; vectors are numbers",
        ),
        (text("x.csv", "name,a\nA,1\n,2\n"), "column 'name' has no name in row 2"),
        (text("x.csv", "name\nA\n"), r"1 column\(s\); needed are one of names"),
        (text("x.csv", ""), "cannot be read as a table"),
        (text("x.csv", "name,a\n"), "holds no vector"),
        (text("x.npz", "PK no"), "cannot be read as npz"),
        (text("x.parquet", "PAR no"), "cannot be read as parquet"),
        (text("x.pkl", "no"), "damaged, or not a pickle"),
        (
            text("x.pt", ""),
            r"embeddings are read from \.npz, \.npy, \.csv, \.tsv, \.parquet, \.pkl, \.pickle",
        ),
        (text("x", ""), "embeddings are read from"),
        (pickled({"A": [1.0, 2.0], "B": [1.0]}), r"the vector of 'B' has shape \(1,\), that of 'A' \(2,\)"),
        (pickled({"A": 1.0}), "'A' is a float; each name needs a list or an array of numbers"),
        (pickled({0: [1.0], 1: [2.0]}), r"2 of 2 names are no strings \(first 0\)"),
        (pickled([1.0, 2.0]), "holds a list; a dict of name -> vector is needed"),
        (pickled({}), "holds a dict; a dict of name -> vector is needed"),
        (pickled({"A": ["x", "y"]}), "vectors are numbers; among these is 'x'"),
        (pickled({"A": Harmful()}), r"open"),
        (
            arrays(names=np.array(["A", "B"]), vectors=np.ones((3, 2))),
            r"2 names, but vectors of shape \(3, 2\)",
        ),
        (arrays(names=np.array(["A"]), vectors=np.array([["x"]])), "vectors are numbers; among these is 'x'"),
        (arrays(A=np.ones(2), B=np.ones((1, 2))), r"the vector of 'B' has shape \(1, 2\)"),
        (arrays(A=np.array([object()], dtype=object)), "cannot be read as npz"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, monkeypatch, file, message):
    monkeypatch.chdir(tmp_path)
    name, write = file
    write(tmp_path / name)
    with pytest.raises(RequestError, match=message) as caught:
        read_vectors(tmp_path / name)
    assert name in str(caught.value) and len(str(caught.value).splitlines()) <= 2
    assert not (tmp_path / "broken-in").exists()


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RequestError, match="no such file"):
        read_vectors(tmp_path / "x.npz")

"""Tables without names beside a list of names: FILE@NAMES in an encoding, in whatever order the rows are numbered."""

import json
import pickle
import re

import numpy as np
import pytest

from perturbdiff_jax.data.embeddings.files import read_vectors
from perturbdiff_jax.data.embeddings.registry import parts_of, read_encoding
from perturbdiff_jax.data.embeddings.row_names import split_names
from perturbdiff_jax.errors import RequestError

KEY = "config.covariates.perturbation"
NAMES = ["IL-2", "IFN-γ", "TNF-α", "4-1BBL"]
WANTED = np.arange(12, dtype=np.float32).reshape(4, 3)
ORDER = [2, 0, 3, 1]


def pickled(path, content):
    path.write_bytes(pickle.dumps(content))


def text(path, rows):
    path.write_text("id,a,b,c\n" + "".join(f"{at},{','.join(map(str, WANTED[at]))}\n" for at in rows))


WRITERS = {
    "numbered.pkl": lambda path: pickled(path, {at: WANTED[at] for at in ORDER}),
    "numpy_numbers.pkl": lambda path: pickled(path, dict(zip(np.arange(4), WANTED.tolist()))),
    "digits.pkl": lambda path: pickled(path, {str(at): WANTED[at] for at in ORDER}),
    "pair.pkl": lambda path: pickled(path, (ORDER, WANTED[ORDER])),
    "array.pkl": lambda path: pickled(path, WANTED),
    "array.npy": lambda path: np.save(path, WANTED),
    "array.npz": lambda path: np.savez(path, WANTED),
    "vectors.npz": lambda path: np.savez(path, vectors=WANTED, version=np.array([1])),
    "numbered.csv": lambda path: text(path, ORDER),
}


@pytest.mark.parametrize("name", WRITERS)
def test_rows_get_the_names_of_their_numbers(tmp_path, name):
    WRITERS[name](tmp_path / name)
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n\n", encoding="utf-8")
    found = read_vectors(tmp_path / name, str(tmp_path / "names.txt"))
    assert list(found.names) == NAMES
    np.testing.assert_array_equal(found.vectors, WANTED)


def test_an_encoding_names_both_files(tmp_path):
    WRITERS["numbered.pkl"](tmp_path / "esm.pkl")
    (tmp_path / "cytokines.json").write_text(json.dumps(NAMES))
    both = f"{tmp_path}/esm.pkl@{tmp_path}/cytokines.json"
    for asked, onehot in ((f"onehot + mine={both}", True), (f"mine={both} + onehot", True), (both, False)):
        found = read_encoding(asked, KEY, "perturbation")
        ((name, vectors),) = found.tables
        assert (name, found.onehot) == ("mine" if onehot else "esm", onehot)
        assert list(vectors.names) == NAMES and vectors.path == f"{tmp_path}/esm.pkl"
        np.testing.assert_array_equal(vectors.vectors, WANTED)
    assert parts_of(f"esm2={both}", KEY, "perturbation") == [("esm2", both)]
    with pytest.raises(
        RequestError, match=re.escape(f"{tmp_path}/esm.pkl: vectors are 3 wide; esm2 has 320")
    ):
        read_encoding(f"esm2={both}", KEY, "perturbation")


def test_a_mark_in_a_path_counts_where_a_list_stands_behind_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me@home").mkdir()
    for name in ("me@home/t.npz", "me@home/n.txt", "n.txt", "t.npz", "a@n.txt", "two@n.txt"):
        (tmp_path / name).touch()
    for path, wanted in (
        ("t.npz", ("t.npz", None)),
        ("me@home/t.npz", ("me@home/t.npz", None)),
        ("me@home/t.npz@n.txt", ("me@home/t.npz", "n.txt")),
        ("t.npz@me@home/n.txt", ("t.npz", "me@home/n.txt")),
        ("me@home/t.npz@me@home/n.txt", ("me@home/t.npz", "me@home/n.txt")),
        ("t.npz@a@n.txt", ("t.npz@a", "n.txt")),  # the last mark, though "a@n.txt" is a file as well
        ("two@n.txt", ("two@n.txt", None)),
        ("t.npz@absent.txt", ("t.npz", "absent.txt")),
        ("me@home/absent.npz", ("me@home/absent.npz", None)),
    ):
        assert split_names(path) == wanted, path


def names(content):
    return lambda folder: (folder / "n.txt").write_bytes(content)


FOUR = names("\n".join(NAMES).encode())


@pytest.mark.parametrize(
    ("table", "write", "message"),
    [
        ("numbered.pkl", names(b"A\nB\nC\n"), r"n\.txt: 3 names for the 4 vectors of .*numbered\.pkl"),
        ("array.npy", names(b"A\nB\nC\nD\nE"), r"n\.txt: 5 names for the 4 vectors of"),
        ("numbered.pkl", names(b"A\nB\nA\nD"), r"n\.txt: 1 name\(s\) stand there more than once: A\."),
        ("numbered.pkl", names(b"A\n\nC\nD"), r"n\.txt: name 2 is empty"),
        ("numbered.pkl", names(b"A\n \nC\nD"), r"n\.txt: name 2 is empty"),
        ("numbered.pkl", names(b"A\nB \nB\nD"), r"n\.txt: 1 name\(s\) stand there more than once: B\."),
        ("numbered.pkl", names(b"\n"), r"n\.txt: holds no name"),
        ("numbered.pkl", names(b"\xff\xfe\x00A"), r"n\.txt: cannot be read as a list of names"),
        ("numbered.pkl", lambda folder: None, r"n\.txt: no such file \(FILE@NAMES takes"),
        ({"A": [1.0], "B": [2.0]}, FOUR, r"has names of its own \(such as 'A'\); leave out @.*n\.txt"),
        ({0: [1.0], True: [2.0]}, FOUR, "has names of its own"),
        ({1: [1.0], 2: [2.0]}, FOUR, "2 row numbers from 1 to 2; a list of names needs each of 0 to 1 once"),
        (([0, 0], np.ones((2, 3))), FOUR, "2 row numbers from 0 to 0"),
        (np.ones(3), FOUR, r"an array of shape \(3,\); \[names, width\] is needed"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(tmp_path, table, write, message):
    path = tmp_path / (table if isinstance(table, str) else "t.pkl")
    WRITERS[table](path) if isinstance(table, str) else pickled(path, table)
    write(tmp_path)
    with pytest.raises(RequestError, match=message) as caught:
        read_encoding(f"mine={path}@{tmp_path}/n.txt", KEY, "perturbation")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", ["{}", '["A", 1]', '["A", "B"'])
def test_a_json_list_is_a_list_of_strings(tmp_path, content):
    WRITERS["array.npy"](tmp_path / "t.npy")
    (tmp_path / "n.json").write_text(content)
    with pytest.raises(RequestError, match=r"n\.json: (a list of names|cannot be read)"):
        read_encoding(f"{tmp_path}/t.npy@{tmp_path}/n.json", KEY, "perturbation")


@pytest.mark.parametrize("name", ["numbered.pkl", "array.pkl", "array.npy", "array.npz", "vectors.npz"])
def test_without_a_list_a_table_without_names_is_refused(tmp_path, name):
    WRITERS[name](tmp_path / name)
    with pytest.raises(RequestError, match=r"4 of 4 names are no strings \(first \d\).*@NAMES\.txt"):
        read_encoding(f"mine={tmp_path / name}", KEY, "perturbation")

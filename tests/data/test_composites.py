"""Which file goes into which composite: even, whatever the order of the files, or as a table says."""

import numpy as np
import pytest

from perturbdiff_jax.data.gene_selection.composites import balanced, in_order, read_composites
from perturbdiff_jax.errors import RequestError


def test_even_by_cells():
    cells = [10, 80, 20, 40, 30, 60]
    found = balanced(cells, 3)
    assert [some.name for some in found] == ["1", "2", "3"]
    assert sorted(sum(cells[file] for file in some.files) for some in found) == [80, 80, 80]
    assert [some.files for some in found] == [[0, 4, 3], [1], [2, 5]] or all(
        some.files == sorted(some.files) for some in found
    )
    assert [some.files[0] for some in found] == sorted(some.files[0] for some in found)


@pytest.mark.parametrize("seed", range(5))
def test_no_composite_is_empty_and_none_is_far_above_the_mean(seed):
    rng = np.random.default_rng(seed)
    cells = rng.integers(1, 1000, size=50).tolist()
    for count in (1, 2, 7, 49, 50):
        found = balanced(cells, count)
        assert sorted(file for some in found for file in some.files) == list(range(50))
        sums = [sum(cells[file] for file in some.files) for some in found]
        # Greedy, the largest first: at most a file above the mean.
        assert len(found) == count and min(sums) > 0
        assert max(sums) <= max(sum(cells) / count + max(cells), max(cells))


def test_a_file_larger_than_a_composite_is_alone():
    found = balanced([5, 1000, 5, 5], 2)
    assert [some.files for some in found] == [[0, 2, 3], [1]]
    assert [some.files for some in balanced([7, 7, 7], 3)] == [[0], [1], [2]]


def test_the_order_is_that_of_names():
    paths = ["z/a.h5ad", "b/c.h5ad", "b/a.h5ad", "a/b.h5ad"]
    assert in_order(paths) == in_order(paths[::-1]) == ["b/a.h5ad", "z/a.h5ad", "a/b.h5ad", "b/c.h5ad"]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_tables_name_files_by_path_or_name(tmp_path, name):
    files = [str(tmp_path / part) for part in ("a/x.h5ad", "b/x.h5ad", "y.h5ad")]
    rows = [["file", "note", "composite"], ["a/x.h5ad", "", "blood"], [files[1], "-", "lung"], []]
    rows += [["y.h5ad", "n", "blood"], ["y.h5ad", "again", "blood"]]
    (tmp_path / name).write_text("\n".join(("\t" if name == "t.tsv" else ",").join(row) for row in rows))
    found = read_composites(tmp_path / name, files)
    assert [(some.name, some.files) for some in found] == [("blood", [0, 2]), ("lung", [1])]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,composite\nx.h5ad,1\nz.h5ad,1\ny.h5ad,2\n", ["line 3", "'z.h5ad'", "none of the files"]),
        ("file,composite\nx.h5ad,1\ny.h5ad,2\nx.h5ad,2\n", ["line 4", "'1' and '2'"]),
        ("file,composite\nx.h5ad,1\n", ["1 of the files", "y.h5ad"]),
        ("file,composite\nx.h5ad,\n", ["line 2", "missing"]),
        ("name,composite\nx.h5ad,1\n", ["columns file and composite", "name"]),
        ("", ["columns file and composite", "none"]),
    ],
)
def test_wrong_tables(tmp_path, text, words):
    files = [str(tmp_path / "x.h5ad"), str(tmp_path / "y.h5ad")]
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(RequestError) as caught:
        read_composites(tmp_path / "t.csv", files)
    assert all(word in str(caught.value) for word in ("t.csv", *words)), str(caught.value)


def test_a_name_that_two_files_have(tmp_path):
    (tmp_path / "t.csv").write_text("file,composite\nx.h5ad,1\n")
    with pytest.raises(RequestError, match="name of several files"):
        read_composites(tmp_path / "t.csv", ["a/x.h5ad", "b/x.h5ad"])
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match="not a text file"):
        read_composites(tmp_path / "t.csv", ["a/x.h5ad"])

"""Every wrong request or file that a gene vocabulary refuses: one or two lines, and nothing left behind."""

import numpy as np
import pytest
from vocabulary_runs import cells_of, refusal, run

from perturbdiff_jax.data.gene_selection import selection
from perturbdiff_jax.data.gene_selection.moments import MeasuredMoments
from perturbdiff_jax.data.gene_selection.notes import Notes
from perturbdiff_jax.data.gene_selection.options import VocabularyOptions
from perturbdiff_jax.data.gene_selection.selection import choose
from perturbdiff_jax.errors import RequestError


@pytest.fixture
def two(tmp_path):
    for number in range(2):
        cells_of(20, 40, number).write_h5ad(tmp_path / f"f{number}.h5ad")
    return [tmp_path / "f0.h5ad", tmp_path / "f1.h5ad"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hvg": 0}, ["--hvg 0", "1 or more"]),
        ({"composites": 0}, ["--composites 0", "1 or more"]),
        ({"composites": -2}, ["--composites -2"]),
        ({"composites": 3}, ["--composites 3", "2 file(s)", "never cut", "1 to 2"]),
        ({"composites": "2.5"}, ["--composites 2.5", "columns file and composite"]),
        ({"values": "raw"}, ["--values", "lognorm"]),
        ({"target_sum": 0.0}, ["--target-sum"]),
        ({"min_measured": 1.5}, ["--min-measured 1.5", "0 to 1"]),
        ({"map_to": "symbol"}, ["--map-to", "--map"]),
        ({"map": "none.csv"}, ["none.csv", "no such file"]),
        ({"layer": "counts"}, ["f0.h5ad", "'counts'", "no layers"]),
        ({"gene_key": "symbol"}, ["f0.h5ad", "--gene-key", "'symbol'"]),
        ({"total_key": "totals"}, ["f0.h5ad", "--total-key", "'totals'", "'total'"]),
        ({"include": ["none.txt"]}, ["none.txt", "no such file", "--include"]),
        ({"workers": 0}, ["--workers 0"]),
    ],
)
def test_wrong_requests(two, tmp_path, options, words):
    message = refusal(two, tmp_path / "g.txt", **options)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no/g.txt", ["there is no folder", "no"]),
        ("g.json", ["g.json", "text file", ".json"]),
        ("g.csv", ["g.csv", "genes.txt"]),
        ("own.txt", ["own.txt", "is read by this command"]),
        ("f0.h5ad", [".h5ad"]),
        ("folder", ["is a folder"]),
        ("old.txt", ["old.txt", "--overwrite"]),
        ("stale.txt", ["stale.txt.report.json", "--overwrite"]),
    ],
)
def test_wrong_outputs(two, tmp_path, name, words):
    for file in ("own.txt", "old.txt", "stale.txt.report.json"):
        (tmp_path / file).write_text("g001\n")
    (tmp_path / "folder").mkdir()
    message = refusal(two, tmp_path / name, include=[tmp_path / "own.txt"])
    assert all(word in message for word in words), message
    assert (tmp_path / "old.txt").read_text() == "g001\n"


def test_wrong_files(two, tmp_path):
    output = tmp_path / "g.txt"
    assert "no file given" in refusal([], output)
    assert "none.h5ad: no such file" in refusal([*two, tmp_path / "none.h5ad"], output)
    assert "f0.h5ad is given twice" in refusal([*two, tmp_path / "." / "f0.h5ad"], output)
    (tmp_path / "text.h5ad").write_text("no")
    assert "text.h5ad: not an h5ad file" in refusal([*two, tmp_path / "text.h5ad"], output)
    own = tmp_path / "own.txt"
    own.write_text("g001\n")
    assert "own.txt is given twice" in refusal(two, output, include=[own, own])
    assert "not a text file (--include" in refusal(two, output, include=[two[0]])
    twice = cells_of(20, 40, 5)
    twice.var_names = ["g001", *twice.var_names[1:]]
    twice.write_h5ad(tmp_path / "twice.h5ad")
    assert "twice.h5ad: 1 duplicated gene name(s) in var: g001" in refusal([tmp_path / "twice.h5ad"], output)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (-1.0, ["1 negative value", "'c7'", "'g003'", "0 or above"]),
        (np.nan, ["1 NaN or infinite", "'c7'"]),
        (1000.5, ["not log1p values", "raw counts"]),
    ],
)
def test_wrong_values_are_found_in_a_long_file(two, tmp_path, value, words):
    adata = cells_of(20, 40, 5)
    adata.X = adata.X.toarray()
    adata.X[7, 3] = value
    adata.write_h5ad(tmp_path / "wrong.h5ad")
    message = refusal([*two, tmp_path / "wrong.h5ad"], tmp_path / "g.txt", composites=2)
    assert "wrong.h5ad: X has" in message and all(word in message for word in words), message


def test_wrong_totals_and_empty_cells(two, tmp_path):
    adata = cells_of(20, 40, 5)
    adata.obs["total"] = 1.0
    adata.write_h5ad(tmp_path / "low.h5ad")
    message = refusal([tmp_path / "low.h5ad"], tmp_path / "g.txt", total_key="total")
    assert "low.h5ad: column 'total' is 1 at cell 'c0'" in message
    adata.X = adata.X.toarray()
    adata.X[4] = 0
    adata.write_h5ad(tmp_path / "empty.h5ad")
    assert "1 all-zero cell(s), first cell 'c4'" in refusal([tmp_path / "empty.h5ad"], tmp_path / "g.txt")


def test_genes_that_no_file_can_choose_from(two, tmp_path, monkeypatch):
    split = cells_of(20, 40, 6)[:, 20:].copy()
    first = cells_of(20, 40, 7)[:, :21].copy()
    for name, some in (("s", split), ("t", first)):
        some.write_h5ad(tmp_path / f"{name}.h5ad")
    paths = [tmp_path / "s.h5ad", tmp_path / "t.h5ad"]
    found, _ = run(paths, tmp_path / "g.txt", hvg=1, min_measured=1.0)
    assert found.genes == ["g020"]
    first.var_names = [*first.var_names[:-1], "other"]
    first.write_h5ad(tmp_path / "t.h5ad")
    paths.append(two[0])
    message = refusal(paths, tmp_path / "h.txt", hvg=1, min_measured=1.0)
    assert "none of its 41 genes is in files with 100% of its 60 cells (--min-measured)" in message
    moments, notes = MeasuredMoments(30), Notes(print)
    moments.cells[:], moments.total[:], moments.squares[:] = 4, 4 * 3.0, 4 * 9.0
    for _ in range(2):
        with pytest.raises(RequestError, match="composite 1: no gene varies over its 4 cells"):
            options = VocabularyOptions(composites=1, hvg=5)
            choose("composite 1", np.arange(30), moments, 4, options, notes)
        # Rounding may leave scores that nothing reaches.
        monkeypatch.setattr(selection, "highly_variable", lambda moments, count: np.zeros(30, bool))


def test_a_file_stored_by_genes_needs_its_memory(tmp_path):
    adata = cells_of(400, 400, 5)
    adata.X = adata.X.tocsc()
    adata.write_h5ad(tmp_path / "c.h5ad")
    message = refusal([tmp_path / "c.h5ad"], tmp_path / "g.txt", memory=1024 * 1024)
    assert "c.h5ad" in message and "CSC" in message and "--memory" in message

"""The words of `perturbdiff genes`: what reaches the job, exit codes, and the printed table."""

import re

import pytest
from vocabulary_runs import cells_of, run

from perturbdiff_jax import cli
from perturbdiff_jax.data.gene_selection.account import MOST_FILES, table
from perturbdiff_jax.data.preparation import progress


def test_what_is_asked_reaches_the_making(monkeypatch):
    got = []
    monkeypatch.setattr(
        "perturbdiff_jax.data.gene_vocabulary.gene_vocabulary", lambda *given: got.append(given)
    )
    words = ["genes", "--input", "a", "b", "--input", "c", "--output", "g.txt", "--composites"]
    assert cli.run([*words, "2"]) == 0
    inputs, output, options = got.pop()
    assert (inputs, output, options.composites, options.hvg) == (["a", "b", "c"], "g.txt", 2, 2000)
    assert tuple(options.include) == () and options.min_measured == 0.5 and 1 <= options.workers <= 8
    more = ["--include", "x.txt", "y.json", "--include", "z.pkl", "--map", "m.csv", "--map-to", "symbol"]
    more += ["--hvg", "500", "--layer", "L", "--values", "counts", "--total-key", "T", "--target-sum", "1e6"]
    more += ["--gene-key", "K", "--min-measured", "0.1", "--memory", "1GiB", "--workers", "3", "--overwrite"]
    assert cli.run([*words, "t.csv", *more]) == 0
    options = got.pop()[2]
    assert options.composites == "t.csv" and options.include == ["x.txt", "y.json", "z.pkl"]
    assert (options.map, options.map_to, options.hvg, options.layer) == ("m.csv", "symbol", 500, "L")
    assert (options.values, options.total_key, options.target_sum) == ("counts", "T", 1e6)
    assert (options.gene_key, options.min_measured, options.memory) == ("K", 0.1, 1 << 30)
    assert (options.workers, options.overwrite) == (3, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--output", "g.txt", "--composites", "1"], "required: --input"),
        (["--input", "a.h5ad", "--output", "g.txt"], "required: --composites"),
        (["--input", "a.h5ad", "--composites", "1"], "required: --output"),
        (["--input", "a.h5ad", "--output", "g.txt", "--composites", "-1"], "--composites -1"),
        (["--input", "a.h5ad", "--output", "g.txt", "--composites", "1", "--workers", "0"], "--workers 0"),
        (["--input", "no.h5ad", "--output", "g.txt", "--composites", "1"], "no.h5ad: no such file"),
        (["--input", "a.h5ad", "--output", "g.txt", "--composites", "1", "--memory", "2G"], "512MiB"),
    ],
)
def test_wrong_words(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["genes", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and len(error.splitlines()) <= 3


def test_the_whole_command(tmp_path, capsys):
    for number in range(3):
        cells_of(20, 50, number).write_h5ad(tmp_path / f"f{number}.h5ad")
    files = [str(tmp_path / f"f{number}.h5ad") for number in range(3)]
    words = [
        "genes",
        "--input",
        *files,
        "--composites",
        "2",
        "--hvg",
        "9",
        "--output",
        str(tmp_path / "g.txt"),
    ]
    assert cli.run(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [
        ["composite", "1"],
        ["composite", "2"],
        ["mean", "of"],
        ["file", "f0.h5ad"],
        ["file", "f1.h5ad"],
        ["file", "f2.h5ad"],
    ]
    assert len((tmp_path / "g.txt").read_text().split()) == int(lines[0].split()[-2])
    assert cli.run(words) == 2 and "--overwrite" in capsys.readouterr().err
    assert cli.run([*words, "--overwrite"]) == 0


def test_long_work_says_how_much_time_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", -1.0)
    for number in range(3):
        cells_of(20, 50, number).write_h5ad(tmp_path / f"f{number}.h5ad")
    _, said = run([tmp_path / f"f{number}.h5ad" for number in range(3)], tmp_path / "g.txt", composites=2)
    for pattern in (
        r"opening: 2 of 3 files, [\d,]+ files/s, about \d+ s left",
        r"reading: 40 of 60 cells, .* left",
    ):
        assert re.search(pattern, said), said


def facts(files):
    one = {"cells": 5, "genes": 20_000, "shared": 12_478, "share": 12_478 / 12_626}
    return {
        "composites": [{"name": "1", "files": files, "chosen": 2000, "alone": 7, **one}],
        "include": [],
        "files": [{"name": f"d/f{number}.h5ad", **one} for number in range(files)],
    }


def test_the_table_says_the_share_as_the_paper_does():
    lines = table(facts(2), title="t", report="r.json")
    assert len(lines) == 5 and lines[0] == "t"
    assert lines[2].split() == ["composite", "1", "2", "5", "20,000", "2,000", "7", "12,478", "98.8%"]
    assert lines[3].split() == ["file", "f0.h5ad", "5", "20,000", "12,478", "98.8%"]
    same = facts(2)
    same["files"][1]["name"] = "e/f0.h5ad"
    assert "file d/f0.h5ad" in table(same, title="t", report="r.json")[3]


def test_many_files_are_in_the_report_only():
    lines = table(facts(MOST_FILES + 1), title="t", report="r.json")
    assert len(lines) == 4 and lines[-1] == f"  {MOST_FILES + 1} files: r.json"
    assert len(table(facts(MOST_FILES), title="t", report="r.json")) == 3 + MOST_FILES

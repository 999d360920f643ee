"""The report page of runs that lack files, baselines or values, or whose files are damaged."""

import json
import pathlib
import sys

import pytest

from perturbdiff_jax.evaluation.page import drawing, run_files
from perturbdiff_jax.evaluation.page.report import write_report

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from fake_run import write_run
from html_document import SECTIONS, read


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(drawing, "available", lambda: False)


@pytest.mark.parametrize("name", run_files.FILES)
def test_an_absent_file_is_a_sentence(tmp_path, no_pictures, name):
    run = write_run(tmp_path, perturbations=("A", "B"), cell_types=("T",), genes=5, cells=3)
    (run / name).unlink()
    page = read(write_report(run))
    assert [a["id"] for tag, a in page.tags if tag == "section"] == list(SECTIONS)
    assert f"{name} is not there" in page.words()


@pytest.mark.parametrize("name", run_files.FILES)
def test_a_damaged_file_is_a_sentence(tmp_path, no_pictures, name):
    run = write_run(tmp_path, perturbations=("A", "B"), cell_types=("T",), genes=5, cells=3)
    (run / name).write_bytes(b"\x1f\x8b[1, not a table\n\xff")
    assert f"{name} is there but could not be read" in read(write_report(run)).words()


@pytest.mark.parametrize("content", ["", "a,b\n", "perturbation,model,gene\n"])
def test_an_empty_table_is_a_sentence(tmp_path, no_pictures, content):
    run = write_run(tmp_path, perturbations=("A", "B"), cell_types=("T",), genes=5, cells=3)
    for name in ("metrics.csv", "metrics_all.csv", "pca.csv"):
        (run / name).write_text(content)
    assert read(write_report(run)).words().count("could not be read") >= 3


def test_without_baselines(tmp_path):
    run = write_run(tmp_path, baselines=(), perturbations=("A", "B", "C"), genes=10, cells=4)
    words = read(write_report(run)).words()
    assert words.count("--baselines STORE") == 3  # verdict, metrics, conditions
    assert "A radar needs three models" in words
    assert "There are no baselines to compare with" in words and "no baseline to compare with" in words


@pytest.mark.parametrize("missing", [0.0, 1.0])
def test_one_condition_with_and_without_values(tmp_path, missing):
    run = write_run(
        tmp_path, perturbations=("A",), cell_types=("T",), genes=3, cells=2, steps=3, missing=missing
    )
    page = read(write_report(run))
    assert ("no metric has a value" in page.words()) == bool(missing)
    assert ">nan<" not in (run / "report.html").read_text() and " nan " not in page.words()


def test_null_and_strange_summaries(tmp_path, no_pictures):
    run = write_run(tmp_path, perturbations=("A", "B"), genes=5, cells=3)
    models = {
        "perturbdiff": {"energy": {"mean": 0.1, "low": None, "high": None}, "r2": None},
        "odd": {"new": {}},
    }
    (run / "summary.json").write_text(
        json.dumps({"models": models, "settings": ["a note"], "versions": None})
    )
    words = read(write_report(run)).words()
    assert "Energy distance" in words and "a note" in words
    (run / "summary.json").write_text("{}")
    assert "summary.json" in read(write_report(run)).words()


def test_a_log_with_a_torn_line_and_a_resumed_run(tmp_path):
    (tmp_path / "logs").mkdir()
    lines = [
        '{"step": 1, "kind": "train", "loss/total": 3.0}',
        '{"step": 2, "kind": "train", "loss/total": 9.0}',
    ]
    lines += ['{"step": 2, "kind": "train", "loss/total": 2.0}', '{"step": 3, "kind": "tr']
    (tmp_path / "logs" / "metrics.jsonl").write_text("\n".join(lines))
    results = run_files.read_results(tmp_path)
    assert results.log[["step", "loss/total"]].to_numpy().tolist() == [[1, 3.0], [2, 2.0]]
    assert "1 line(s)" in results.notes[0]
    words = read(write_report(tmp_path)).words()
    assert "holds no validation" in words and "1 line(s)" in words

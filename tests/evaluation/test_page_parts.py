"""Parts of the page that not every run has: pooled rows, two maps of cells, several predictions; colours by night."""

import json
import pathlib
import re
import sys

import pandas as pd
import pytest

from perturbdiff_jax.evaluation.page import drawing, glossary, markup
from perturbdiff_jax.evaluation.page.report import write_report

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from fake_run import write_run
from html_document import read


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "available", lambda: False)
    return write_run(tmp_path, perturbations=("A", "B", "C"), genes=4, cells=3)


def test_pooled_rows_and_means_are_shown(run):
    text = write_report(run).read_text()
    rows = re.search(r'<table id="pooled-rows">.*?</table>', text, re.S).group().split("<tbody>")[1]
    table = pd.read_csv(run / "metrics_pooled.csv").set_index(["model", "perturbation"])
    found = dict(re.findall(r'<th scope="row">(\w)</th>.*?<td data-v="[^"]*">([\d.]+)</td>', rows))
    wanted = table.loc["perturbdiff", "discrimination_score_l1"]
    assert found == {name: f"{value:.3f}" for name, value in wanted.items()}
    means = re.search(r'<table id="pooled">.*?</table>', text, re.S).group()
    assert means.count('<th scope="row">') == 10


def test_why_there_is_no_umap(run):
    (run / "umap.csv").unlink()
    summary = json.loads((run / "summary.json").read_text())
    summary["settings"]["no_umap"] = "UMAP is not drawn: of 60 cells it shows little."
    (run / "summary.json").write_text(json.dumps(summary))
    words = read(write_report(run)).words()
    assert "of 60 cells it shows little" in words and "umap.csv" not in words


def test_a_second_prediction_is_a_rival_and_has_its_pooled_rows(run):
    for name in ("metrics_all.csv", "metrics_pooled.csv"):
        table = pd.read_csv(run / name)
        pd.concat([table, table[table["model"] == "ridge"].assign(model="other")]).to_csv(
            run / name, index=False
        )
    summary = json.loads((run / "summary.json").read_text())
    summary["settings"]["predictions"] = {"perturbdiff": {}, "other": {}}
    summary["models"]["other"] = summary["models"]["ridge"]
    (run / "summary.json").write_text(json.dumps(summary))
    text = write_report(run).read_text()
    scores = json.loads(re.search(r'id="scores">(.*?)</script>', text).group(1))
    assert {"name": "other", "kind": "prediction"} in scores["models"]
    assert {"name": "ceiling", "kind": "ceiling"} in scores["models"] and scores["ours"] == "perturbdiff"
    wins = re.search(r'<table id="wins">.*?</table>', text, re.S).group().split("<tbody>")[1]
    assert "<span>other</span>" in wins and wins.count("<tr>") == 10
    pooled = re.search(r'<table id="pooled-rows">.*?</table>', text, re.S).group().split("<tbody>")[1]
    assert pooled.count("<tr>") == 6 and pooled.count("<span>other</span>") == 3


def test_every_colour_of_a_model_has_one_for_the_night():
    night = markup._asset("theme.css").split("prefers-color-scheme: dark")[1]
    colors = [color for color, _ in glossary.MODEL_STYLE.values()]
    colors += [color for color, _ in glossary.OTHER_STYLES] + [
        glossary.style("?")[0],
        drawing.INK,
        drawing.MUTED,
    ]
    for color in (*colors, drawing.RULE, *glossary.KIND_STYLE.values()):
        assert f"--c{color[1:]}: #" in night, color
    assert drawing.themed("#0067a5") == "var(--c0067a5,#0067a5)"

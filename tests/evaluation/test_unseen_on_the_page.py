"""What the page says of covariates, and of test perturbations that the model was never trained on."""

import json
import math
import pathlib
import sys

import numpy as np
import pytest
from toy_cells import evaluated, prediction, screen

from perturbdiff_jax.evaluation import celleval
from perturbdiff_jax.evaluation.page import covariates, facts, run_files, unseen
from perturbdiff_jax.evaluation.page.report import write_report
from perturbdiff_jax.evaluation.unseen import read_unseen

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from browser import launched, needs_browser, visits
from fake_run import NASTY, write_run
from html_document import read

NEW = {
    "perturbation": ["TNF", NASTY[1], "1.0"],
    "nearest": ["IL6", NASTY[0], ""],
    "distance": [0.25, 1.5, None],
}


def columns(names, nearest, distance):
    return {
        "perturbation": np.array(names, dtype=object),
        "nearest": np.array(nearest, dtype=object),
        "distance": np.array(distance, dtype=float),
    }


@pytest.mark.parametrize("written", [False, True])
def test_predictions_tell_the_evaluation_of_what_is_scored(tmp_path, monkeypatch, written):
    monkeypatch.setattr(celleval, "installed", lambda: False)
    raw = screen()
    new, plain = prediction(raw), prediction(raw)
    told = columns(["P3", "P1", "NOT-SCORED"], ["P2", "", "P2"], [0.125, math.nan, 0.5])
    new.uns["perturbdiff"]["unseen"] = told
    if written:
        new.write_h5ad(tmp_path / "new.h5ad")
        new = str(tmp_path / "new.h5ad")
    evaluated(tmp_path / "run", {"ours": new, "plain": plain})
    record = json.loads((tmp_path / "run/summary.json").read_text())["settings"]["predictions"]
    wanted = {"perturbation": ["P3", "P1"], "nearest": ["P2", ""], "distance": [0.125, None]}
    assert record["ours"]["unseen"] == wanted and "unseen" not in record["plain"]


@pytest.mark.parametrize(
    "found",
    [
        None,
        "P1",
        {"perturbation": ["P1"]},
        columns(["P1", "P2"], ["P3"], [0.1]),
        columns(["P9"], ["P3"], [0.1]),
        columns([], [], []),
    ],
)
def test_what_another_tool_has_put_there_is_passed_over(found):
    assert read_unseen({"unseen": found}, {"P1", "P2"}) == {} == read_unseen({}, {"P1"})


def test_a_distance_that_is_none_is_none():
    given = columns(["P1"], [""], [math.nan]) | {"distance": [math.nan]}
    assert read_unseen({"unseen": given}, {"P1"})["distance"] == [None]
    assert read_unseen({"unseen": given | {"distance": ["far"]}}, {"P1"})["distance"] == [None]


def told_run(path, accounts):
    write_run(path, genes=25, cells=6)
    record = json.loads((path / "summary.json").read_text())
    record["settings"]["predictions"] = accounts
    (path / "summary.json").write_text(json.dumps(record))
    write_report(path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return told_run(tmp_path_factory.mktemp("told") / "run", {"perturbdiff": {"unseen": NEW}})


def test_conditions_and_facts_are_marked(run):
    page = read(run / "report.html")
    text, titles = (
        page.words(),
        [attrs.get("title") for tag, attrs in page.tags if attrs.get("class") == "tag"],
    )
    near = "Never trained on; told by its vector. Nearest trained perturbation: IL6, cosine distance 0.250."
    assert titles.count(near) == 2  # one row for each cell type
    assert sum(NASTY[0] in title for title in titles) == 2
    assert titles.count("Never trained on, and no table has a vector of it.") == 2 and len(titles) == 6
    assert "TNF unseen" in text and "IL6 unseen" not in text
    assert "18 (9 perturbations, 2 cell types; 6 are of perturbations never trained on)" in text
    assert "3 perturbations that perturbdiff was never trained on" in text
    assert "perturbation or cell type, or unseen" in [attrs.get("placeholder") for _, attrs in page.tags]
    for words in ("trained on no cell of this perturbation", "0 is the same direction, 1 nothing in common"):
        assert words in text
    rows = text[text.index("3 perturbations that perturbdiff") :]
    assert "TNF IL6 0.250" in rows and f"{NASTY[1]} {NASTY[0]} 1.500" in rows and "1.0 – –" in rows


def test_a_run_without_any_says_nothing_of_it(tmp_path):
    for accounts in (
        {},
        {"perturbdiff": {"unseen": "odd"}},
        {"perturbdiff": {"unseen": {"perturbation": []}}},
        [],
    ):
        page = read(told_run(tmp_path / "run", accounts) / "report.html")
        assert "tag" not in [attrs.get("class") for _, attrs in page.tags]
        assert "never trained on" not in page.words() and "or unseen" not in str(page.tags)


def test_a_row_is_marked_by_its_own_model(tmp_path):
    path = tmp_path / "run"
    write_run(path, perturbations=("TNF", "IL6"), cell_types=("T",), genes=5, cells=6)
    record = json.loads((path / "summary.json").read_text())
    record["models"]["other"] = record["models"]["perturbdiff"]
    record["settings"]["predictions"] = {"perturbdiff": {}, "other": {"unseen": NEW}}
    (path / "summary.json").write_text(json.dumps(record))
    lines = (path / "metrics.csv").read_text().splitlines()
    both = [
        f"model,{lines[0]}",
        *(f"{name},{line}" for name in ("perturbdiff", "other") for line in lines[1:]),
    ]
    (path / "metrics.csv").write_text("\n".join(both))
    write_report(path)
    page = read(path / "report.html")
    assert sum(attrs.get("class") == "tag" for _, attrs in page.tags) == 1
    assert (
        "2 perturbations that other was never trained on" not in page.words()
    )  # 3: it scores what it scores
    assert "3 perturbations that other was never trained on" in page.words()
    assert unseen.strangers(run_files.read_results(path), "perturbdiff") == {}


@needs_browser
def test_the_box_tells_of_it(run):
    with launched() as browser, visits(browser, run / "report.html") as go:
        page = go()
        page.fill("#look-perturbation", "TNF")
        said = (
            "Never trained on; told by its vector. Nearest trained perturbation: IL6, cosine distance 0.250."
        )
        assert page.inner_text("#look-perturbation-result p") == f"unseen {said}"
        page.fill("#look-perturbation", "IL6")
        assert page.query_selector("#look-perturbation-result p") is None
        page.fill("#find", "unseen")
        assert page.inner_text("#every-found") == "6 of 18 shown"


NOTED = {
    "perturbation": {"onehot": True, "tables": [{"name": "genept", "file": "GenePT.pkl", "width": 1536}]},
    "cell_type": {"onehot": True, "tables": []},
    "batch": True,
    "combinations_as_sums": False,
    "doses": [],
}


@pytest.mark.parametrize(
    ("noted", "wanted"),
    [
        (
            {},
            "perturbations: one-hot + genept (GenePT.pkl, 1,536 wide); cell types: one-hot; batches: one-hot",
        ),
        (
            {"combinations_as_sums": True, "cell_type": None, "batch": False},
            "perturbations: one-hot + genept (GenePT.pkl, 1,536 wide), combinations as sums of their parts; "
            "cell types: not told; batches: not told",
        ),
        (
            {"perturbation": {"onehot": True, "tables": []}, "doses": [0.5, 5.0]},
            "perturbations: one-hot, 2 doses learned; cell types: one-hot; batches: one-hot",
        ),
    ],
)
def test_the_run_says_how_covariates_are_told(noted, wanted):
    run = {"covariates": NOTED | noted}
    assert covariates.told(run, {"covariates": {"perturbation": "onehot", "cell_type": "onehot"}}) == wanted
    assert ("Covariates", wanted) in facts.headline(run, {})


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (
            {"covariates": {"perturbation": "onehot + esm2=/a/e.pkl@/b/n.txt", "cell_type": "onehot"}},
            "perturbations: one-hot + esm2 (e.pkl@n.txt); cell types: one-hot",
        ),
        (
            {
                "covariates": {"perturbation": "?", "cell_type": "onehot"},
                "model": {"use_cell_type": "auto", "use_perturbation": "yes"},
            },
            "perturbations: ?",
        ),
        (
            {
                "covariates": {"perturbation": "onehot", "cell_type": "llm=x/t.npz"},
                "model": {"use_perturbation": "no"},
            },
            "perturbations: not told; cell types: llm (t.npz)",
        ),
        ({}, None),
        ({"covariates": {}}, None),
        ({"covariates": 3}, None),
    ],
)
def test_older_runs_say_what_was_asked_for(config, wanted):
    assert covariates.told({}, config) == wanted
    assert covariates.told({"covariates": "odd"}, config) == wanted

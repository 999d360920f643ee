"""Splits from JSON files and drawn ones against loops over the conditions; the unknown is always an error."""

import hashlib
import json

import numpy as np
import pytest
from split_cases import TRIPLES, conditions, refusal, splits_of

from perturbdiff_jax.data.conditions import SPLITS, Conditions
from perturbdiff_jax.data.splits import assign, check_no_leak
from perturbdiff_jax.errors import RequestError


def test_without_a_split_everything_trains():
    got = splits_of(assign(conditions()))
    assert all(value == ("control" if triple[2] == "PBS" else "train") for triple, value in got.items())


@pytest.mark.parametrize("kinds", [[], ["T"], ["T", "NK"]])
@pytest.mark.parametrize("batches", [[], ["d2"]])
def test_holdout_json_is_an_and_of_lists_with_empty_meaning_any(split_file, kinds, batches):
    lists = {"validation": ["P3"], "test": ["P1", "P2"]}
    path = split_file(
        {
            "dataset": "x",
            "pert_col": "other",
            "holdout_cell_types": kinds,
            "holdout_batches": batches,
            "holdout_perturbations": lists,
        }
    )
    assignment = assign(conditions(), split=path)
    for (kind, batch, name), value in splits_of(assignment).items():
        held = (not kinds or kind in kinds) and (not batches or batch in batches)
        expected = "train"
        if name == "PBS":
            expected = "control"
        elif held and name in lists["test"]:
            expected = "test"
        elif held and name in lists["validation"]:
            expected = "validation"
        assert value == expected, (kind, batch, name)
    assert assignment.info == {
        "name": "s",
        "source": str(path),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def test_holdout_json_without_perturbations_holds_out_the_contexts(split_file):
    assignment = assign(conditions(), split=split_file({"holdout_cell_types": ["NK"]}))
    got = splits_of(assignment)
    assert {t for t, value in got.items() if value == "test"} == {t for t in TRIPLES if t[0] == "NK"} - {
        ("NK", "d1", "PBS"),
        ("NK", "d2", "PBS"),
    }
    assert "all of the held-out contexts" in assignment.notes[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"holdout_cell_types": ["NKT"]}, ["cell type", "'kind'", "'NKT'", "'NK'"]),
        ({"holdout_batches": ["d9"]}, ["batch", "'donor'", "'d9'"]),
        ({"holdout_perturbations": {"test": ["P9"]}}, ["perturbation", "'cytokine'", "'P9'"]),
        ({"holdout_perturbations": {"test": ["PBS"]}}, ["control"]),
        ({"holdout_perturbations": {"test": ["P1"], "validation": ["P1"]}}, ["both", "P1"]),
        ({"holdout_perturbations": {"val": ["P1"]}}, ["'val'", "validation"]),
        ({"holdout_celltypes": ["NK"]}, ["'holdout_celltypes'", "'holdout_cell_types'"]),
        ({"holdout_cell_types": []}, ["nothing"]),
        ({"holdout_cell_types": "NK"}, ["list"]),
        ({"holdout_cell_types": ["NK"], "holdout_perturbations": {"test": ["P4"]}}, ["none of the test"]),
        ({"holdout_perturbations": {"test": ["P1", "P2", "P3", "P4"]}}, ["no group for training"]),
        ([], ["object"]),
    ],
)
def test_wrong_holdout_json(split_file, content, words):
    message = refusal(split_file(content))
    assert all(word in message for word in words), message


def test_listed_conditions(split_file):
    rows = {"validation": [["T", "d1", "P1"]], "test": [["T", "d2", "P1"], ["NK", "d2", "P3"]]}
    got = splits_of(
        assign(conditions(), split=split_file({"columns": ["cell_type", "batch", "perturbation"], **rows}))
    )
    for triple, value in got.items():
        expected = next((key for key, lists in rows.items() if list(triple) in lists), "train")
        assert value == ("control" if triple[2] == "PBS" else expected)
    # The columns may go by the data's own names, or by those of the file, and need not name the batch.
    for names in (["kind", "cytokine"], ["line", "drug"]):
        content = {
            "columns": names,
            "cell_type_key": "line",
            "perturbation_key": "drug",
            "test": [["T", "P2"]],
        }
        got = splits_of(assign(conditions(), split=split_file(content)))
        assert [t for t, value in got.items() if value == "test"] == [("T", "d1", "P2"), ("T", "d2", "P2")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"columns": ["cell_type", "batch", "perturbation"], "test": [["T", "d1", "P11"]]},
            ["'P11'", "row 1"],
        ),
        ({"columns": ["cell_type", "batch", "perturbation"], "test": [["T", "d1"]]}, ["3 columns"]),
        ({"columns": ["cell_type", "perturbation"], "test": [["NK", "P4"]]}, ["no cell has"]),
        ({"columns": ["cell_type", "perturbation"], "test": [["T", "PBS"]]}, ["control"]),
        ({"columns": ["cell_type", "pert"], "test": [["T", "P1"]]}, ["'pert'", "perturbation"]),
        ({"columns": ["cell_type"], "test": [["T"]]}, ["perturbation"]),
        (
            {"columns": ["cell_type", "perturbation"], "test": [["T", "P1"]], "validation": [["T", "P1"]]},
            ["validation too"],
        ),
        ({"columns": ["cell_type", "perturbation"], "test": []}, ["nothing"]),
        ({"columns": ["perturbation"], "tests": []}, ["'tests'", "'test'"]),
    ],
)
def test_wrong_lists_of_conditions(split_file, content, words):
    message = refusal(split_file(content))
    assert all(word in message for word in words), message


def test_held_out_fraction_is_the_same_in_every_matching_context():
    rule = {"fraction": 0.5, "context": {"batch": "d2"}, "validation_fraction": 0.25, "seed": 0}
    got = splits_of(assign(conditions(), holdout=rule))
    held = {}
    for (_, batch, name), value in got.items():
        if name != "PBS":
            assert value == "train" or batch == "d2"
            if batch == "d2":
                assert held.setdefault(name, value) == value
    assert sorted(held.values()) == ["test", "test", "train", "validation"]
    assert splits_of(assign(conditions(), holdout=rule)) == got
    draws = {tuple(assign(conditions(), holdout={**rule, "seed": seed}).codes) for seed in range(8)}
    assert len(draws) > 1, "the seed changes nothing"
    one = {"cell_type": "T", "batch": "d1"}
    got = splits_of(assign(conditions(), holdout={"fraction": 0.25, "context": one}))
    assert [t[:2] for t, value in got.items() if value == "test"] == [("T", "d1")]
    both = {"batch": ["d1", "d2"], "cell_type": "T"}
    got = splits_of(assign(conditions(), holdout={"fraction": 0.25, "context": both}))
    tests = [t for t, value in got.items() if value == "test"]
    assert len(tests) == 2 and {t[0] for t in tests} == {"T"}


def test_the_draw_does_not_depend_on_the_order_of_the_data():
    rule = {"fraction": 0.5, "seed": 4}
    backwards = TRIPLES[::-1]
    got = splits_of(assign(conditions(backwards), holdout=rule), backwards)
    assert got == splits_of(assign(conditions(), holdout=rule))


@pytest.mark.parametrize(
    ("rule", "word"),
    [
        ({"fraction": 0}, "fraction"),
        ({"fraction": 30}, "fraction"),
        ({"fraction": 0.75, "validation_fraction": 0.5}, "ask for"),
        ({"fraction": 0.5, "context": {"donor": "d2"}}, "'donor'"),
        ({"fraction": 0.5, "context": {"batch": "d3"}}, "'d3'"),
        ({"fraction": 1.0}, "no group for training"),
        ({"frac": 0.5}, "'frac'"),
        ({"seed": 1}, "'fraction' is missing"),
    ],
)
def test_wrong_holdout_rules(rule, word):
    assert word in refusal(holdout=rule)


def test_other_files_and_both_at_once(split_file, tmp_path):
    assert ".json or .toml" in refusal(split_file({}, name="s.yaml"))
    assert "no such file" in refusal(tmp_path / "none.json")
    assert "not valid JSON" in refusal(split_file("{", name="bad.json"))
    assert "one of them" in refusal(split_file({}), holdout={"fraction": 0.5})


def test_leaks_are_found():
    twice = conditions([*TRIPLES, TRIPLES[1]])
    codes = np.zeros(len(TRIPLES) + 1, np.int8)
    check_no_leak(twice, codes)
    codes[-1] = SPLITS.index("test")
    with pytest.raises(RequestError, match="leak"):
        check_no_leak(twice, codes)


def test_a_bare_perturbation_means_all_of_its_doses(split_file):
    triples = [("T", "d1", name) for name in ("PBS", "A @ 1", "A @ 10", "B @ 1")]
    given = conditions(triples)
    got = splits_of(assign(given, split=split_file({"holdout_perturbations": {"test": ["A"]}})), triples)
    assert list(got.values()) == ["control", "test", "test", "train"]
    got = splits_of(assign(given, split=split_file({"holdout_perturbations": {"test": ["A @ 10"]}})), triples)
    assert list(got.values()) == ["control", "train", "test", "train"]


@pytest.mark.parametrize(
    ("name", "counts"), [("pbmc", (4, 62)), ("replogle", (104, 624)), ("tahoe100m", (54, 735))]
)
def test_the_papers_splits(shared, name, counts):
    path = shared / "splits" / f"{name}.json"
    content = json.loads(path.read_text())
    lists = content["holdout_perturbations"]
    control = content["control"]
    names = list(dict.fromkeys([control, "other", *lists["validation"], *lists["test"]]))
    kinds = [*(content["holdout_cell_types"] or ["k"]), "other cells"]
    batches = [*(content["holdout_batches"] or ["b"]), "other batch"]
    triples = [(kind, batch, name) for kind in kinds for batch in batches for name in names]
    kind, batch, perturbation = zip(*triples, strict=True)
    assignment = assign(Conditions(perturbation, kind, batch, control=control), split=path)
    repeats = len(lists["test"]) - len(set(lists["test"]))
    assert bool(repeats) == bool(assignment.notes)  # tahoe's list of 777 has 42 names twice
    for code, expected in zip((1, 2), counts, strict=True):
        held = [triples[i] for i in np.flatnonzero(assignment.codes == code)]
        assert len({name for _, _, name in held}) == expected
        contexts = max(1, len(content["holdout_cell_types"])) * max(1, len(content["holdout_batches"]))
        contexts *= 2 if not content["holdout_cell_types"] else 1
        contexts *= 2 if not content["holdout_batches"] else 1
        assert len(held) == expected * contexts

"""Two models condition by condition: counts against a loop, and the record for the page's script."""

import json
import math
import pathlib
import re
import sys

import numpy as np
import pandas as pd
import pytest

from perturbdiff_jax.evaluation.page import drawing, duels, embedded, glossary, lookup, run_files
from perturbdiff_jax.evaluation.page.report import write_report

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from fake_run import BASELINES, write_run


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_files.read_results(write_run(tmp_path_factory.mktemp("full"), missing=0.1))


def counted(table, metric, model, rival):
    """[wins, ties, losses] by a loop over the rows of metrics_all.csv."""
    sign = glossary.metric(metric).better
    score = {(r["model"], r["cell_type"], r["perturbation"]): r[metric] for r in table.to_dict("records")}
    count = [0, 0, 0]
    for (name, *condition), value in score.items():
        other = score.get((rival, *condition), math.nan)
        if name == model and not math.isnan(value) and not math.isnan(other):
            count[0 if sign * value > sign * other else 1 if value == other else 2] += 1
    return count


def test_wins_ties_and_losses_against_a_loop(results):
    table = results.metrics_all.copy()
    copied = table["model"].isin(["perturbdiff", "ridge"]) & (table["perturbation"] == "TNF")
    table.loc[copied, "pearson_delta"] = 0.5
    scores = duels.Scores.of(table)
    assert "de_spearman_sig" not in scores.metrics and scores.metrics[:3] == glossary.HEADLINE
    for metric in scores.metrics:
        for rival in (*BASELINES, "ceiling"):
            duel = scores.duel(metric, "perturbdiff", rival)
            wanted = counted(table, metric, "perturbdiff", rival)
            assert [duel.wins, duel.ties, duel.losses] == wanted
            assert duel.conditions == sum(wanted) <= 18 and duel.rate == wanted[0] / sum(wanted)
    assert scores.duel("pearson_delta", "perturbdiff", "ridge").ties == 2
    assert scores.duel("mse", "perturbdiff", "ridge").conditions < 18  # a tenth of the values is missing


def test_words_of_a_duel():
    def duel(*n):
        return duels.Duel("a", "b", "energy", *n).words

    assert duel(27, 0, 9) == "better in 27 of 36 conditions, 75 %"
    assert duel(0, 1, 0) == "better in 0 of 1 condition, 0 %; 1 tie"
    assert duel(1500, 2, 498) == "better in 1,500 of 2,000 conditions, 75 %; 2 ties"
    assert duel(0, 0, 0) == "no condition where both have a value"


def test_shortened_scores_keep_who_is_better(results):
    table = results.metrics_all.copy()
    energy = 0.123456 + 1e-9 * np.arange(len(table))  # the same to seven digits, never equal
    table["energy"] = energy
    scores = duels.Scores.of(table)
    record, left_out = duels.record(scores)
    assert not left_out
    json.loads(embedded.text_of(record))
    for m, metric in enumerate(record["metrics"]):
        short = np.array(record["values"][m], dtype=float)
        exact = scores.values[m]
        for a in range(len(exact)):
            for b in range(len(exact)):
                np.testing.assert_array_equal(np.sign(short[a] - short[b]), np.sign(exact[a] - exact[b]))
        assert metric["label"] == glossary.metric(metric["name"]).label
    ordinary = record["values"][[m["name"] for m in record["metrics"]].index("pearson_delta")]
    assert max(len(str(value)) for row in ordinary for value in row if value is not None) <= 8
    names = [record["perturbation"]["names"][code] for code in record["perturbation"]["codes"]]
    assert names == scores.conditions["perturbation"].tolist()


def test_too_many_scores_are_left_out_and_named(results, monkeypatch):
    monkeypatch.setattr(duels, "BUDGET", 2_500)
    record, left_out = duels.record(duels.Scores.of(results.metrics_all))
    assert 1 <= len(record["metrics"]) < 14 and len(record["metrics"]) + len(left_out) == 14
    assert record["metrics"][0]["name"] == "discrimination_score_l1" and "AUROC" in left_out


def test_changes_beyond_the_budget_are_left_out_and_the_page_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "available", lambda: False)
    monkeypatch.setattr(lookup, "BUDGET", 40_000)
    run = write_run(tmp_path, perturbations=[f"P{i}" for i in range(50)], genes=60, cells=1, steps=2)
    text = write_report(run).read_text()
    said = r"at most (\d+) genes of each of 100 conditions.* ([\d,]+) of 6,000 values were left out"
    most, left_out = (int(n.replace(",", "")) for n in re.search(said, text).groups())
    changes = re.search(r'id="changes">(.*?)</script>', text).group(1)
    kept = [len(row[0]) for row in json.loads(changes)["rows"]]
    assert len(changes) <= 40_000 and set(kept) == {most} and 10 < most < 60
    assert left_out == 6_000 - sum(kept)


def test_the_largest_changes_are_kept(monkeypatch):
    table = pd.DataFrame({"cell_type": "T", "perturbation": "A", "gene": list("abcd")})
    table = table.assign(real_change=[0.1, -0.9, 0.0, 0.2], pred_change=[0.0, 0.1, np.nan, -3.0])
    found, most = lookup.record(table)
    assert most is None and found["genes"] == list("abd") and "low" not in table
    assert found["rows"] == [[[0, 1, 2], [1000, -9000, 2000], [0, 1000, -30000]]]
    monkeypatch.setattr(lookup, "BUDGET", len(embedded.text_of(found)) - 1)
    found, most = lookup.record(table)
    assert most == 2 and found["genes"] == ["b", "d"]


def test_names_cannot_end_the_data():
    nasty = "</script><script>alert(1)</script>\"'&é\u2028"
    text = embedded.text_of([nasty])
    assert not set("<>&\u2028") & set(text) and json.loads(text) == [nasty]
    assert embedded.rounded(float("nan"), 4) is None and embedded.rounded(0.123456, 4) == 0.1235
    assert repr(embedded.rounded(1.0, 4)) == "1" and embedded.rounded(0.00012345, 4) == 0.0001234

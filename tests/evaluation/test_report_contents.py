"""What the report says in words and numbers, against loops: verdict, win rates, recovery, facts."""

import math
import pathlib
import sys

import numpy as np
import pandas as pd
import pytest

from perturbdiff_jax.evaluation.page import cell_figures, facts, figures, glossary, run_files, verdict

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from fake_run import write_run


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("full"), missing=0.1)


def models_of(**means):
    return {
        name.replace("_", " "): {"energy": dict(zip(("mean", "low", "high"), entry))}
        for name, entry in means.items()
    }


@pytest.mark.parametrize(
    ("ours", "rival", "words"),
    [
        (
            (0.01, 0.008, 0.012),
            (0.02, 0.015, 0.03),
            "is ahead of the best baseline, with intervals that do not",
        ),
        (
            (0.01, 0.008, 0.018),
            (0.02, 0.015, 0.03),
            "is ahead of the best baseline, but within the intervals, on energy distance",
        ),
        ((0.02, 0.01, 0.03), (0.02, 0.01, 0.03), "is level with the best baseline on energy distance"),
        (
            (0.02, 0.01, 0.03),
            (0.01, 0.005, 0.02),
            "is behind the best baseline, but within the intervals, on energy",
        ),
        (
            (0.03, 0.025, 0.04),
            (0.01, 0.005, 0.02),
            "is behind the best baseline, with intervals that do not overlap, on energy",
        ),
        (
            (0.01, math.nan, math.nan),
            (0.02, 0.015, 0.03),
            "is ahead of the best baseline, but within the intervals, on energy",
        ),
    ],
)
def test_verdict_words(ours, rival, words):
    models = models_of(perturbdiff=ours, ridge=rival, control=(0.5, 0.4, 0.6), ceiling=(0.005, 0.004, 0.006))
    said = verdict.sentences(models)
    assert words in said[0] and "best baseline" in said[0]
    assert "ceiling 0.0050" in said[-1]
    assert verdict.standing(models, "energy").rival == "ridge"


def test_recovery_against_a_loop(workdir):
    from scipy.stats import spearmanr

    de = run_files.read_results(workdir).de
    de.loc[::7, "pred_padj"] = np.nan
    rows = {(r["cell_type"], r["perturbation"]): r for r in cell_figures.recovery(de).to_dict("records")}
    assert len(rows) == len(de.drop_duplicates(["cell_type", "perturbation"]))
    for key, part in de.dropna(subset=["pred_padj"]).groupby(["cell_type", "perturbation"]):
        count = {"both": 0, "only_real": 0, "only_pred": 0, "neither": 0, "same_direction": 0}
        for gene in part.to_dict("records"):
            real, pred = gene["real_padj"] < 0.05, gene["pred_padj"] < 0.05
            name = {(1, 1): "both", (1, 0): "only_real", (0, 1): "only_pred", (0, 0): "neither"}[real, pred]
            count[name] += 1
            count["same_direction"] += name == "both" and gene["real_lfc"] * gene["pred_lfc"] > 0
        assert {name: rows[key][name] for name in count} == count
        # p values below 1e-300 are one strength, so compare where the cap does not bind
        if part[["real_padj", "pred_padj"]].min().min() > 1e-300:
            assert rows[key]["spearman"] == pytest.approx(
                spearmanr(-part["real_padj"], -part["pred_padj"]).statistic
            )


def test_rescaling_flips_what_is_better_when_low():
    models = {
        "perturbdiff": {"energy": {"mean": 0.1}, "r2": {"mean": 0.9}, "n_sig_pred": {"mean": 3}},
        "ridge": {"energy": {"mean": 0.3}, "r2": {"mean": 0.5}, "n_sig_pred": {"mean": 9}},
        "ceiling": {"energy": {"mean": 0.0}, "r2": {"mean": 0.9}, "n_sig_pred": {"mean": 5}},
    }
    scaled = figures.rescale(models)
    assert set(scaled.columns) == {"energy", "r2"}
    np.testing.assert_allclose(scaled.loc["perturbdiff", ["energy", "r2"]], [2 / 3, 1.0])
    np.testing.assert_allclose(scaled.loc["ridge"], 0.0)


def test_best_median_and_worst_are_chosen_by_energy():
    drawn = pd.DataFrame({"cell_type": "T", "perturbation": list("abcde")})
    metrics = drawn.assign(energy=[5.0, 1.0, np.nan, 2.0, 4.0])
    chosen = [(name, why.split(",")[0]) for _, name, why in cell_figures.chosen_conditions(metrics, drawn)]
    assert chosen == [("b", "best"), ("e", "median"), ("a", "worst")]
    assert [c[1] for c in cell_figures.chosen_conditions(metrics.head(2), drawn)] == ["b", "a"]
    assert [c[1] for c in cell_figures.chosen_conditions(None, drawn)] == ["a", "b", "c"]


def test_facts_are_found_wherever_they_are_nested():
    run = {
        "store": {"n_cells": 12345, "cell_types": ["T", "B"]},
        "seconds": {"train": 200.0},
        "a": {"b": {"parameters": 5}},
    }
    config = {"loader": {"cells_per_set": 32}, "model": {"depth": 4, "width": 128}}
    config |= {"data": {"store": "", "split": None}}
    config |= {
        "simulate": {"genes": 7},
        "holdout": {"fraction": 0.5, "validation_fraction": 0.125, "batch": "B4"},
    }
    config |= {"schedule": {"steps": 1000}, "train": {"steps": 20}, "sampler": {"steps": 10}}
    found = dict(facts.headline(run, config))
    assert found["Cells"] == "12,345" and found["Cell types"] == "2 (T, B)"
    assert found["Training time"] == "3 min 20 s" and found["Cells per set"] == "32"
    assert found["Trained on"] == "simulated cells" and "Genes" not in found and found["Steps"] == "20"
    assert found["Hold-out"] == "50 % of the perturbations in B4, 12.5 % for validation"
    assert found["Parameters"] == "5" and "Model FLOP utilisation" not in found
    assert found["Layers × width"] == "4 × 128"
    speed = {
        "cells_per_second": 12345.6,
        "data_wait_share": 0.0123,
        "mfu": 0.3761,
        "peak_flops": "2 x X: 5 TFLOP/s",
    }
    found = dict(facts.headline(speed, {}))
    assert found["Speed"] == "12,346 cells/s" and found["Waiting for data"] == "1.23 % of the training time"
    assert (found["Model FLOP utilisation"], found["Peak of the hardware"]) == ("37.6 %", "2 x X: 5 TFLOP/s")
    assert facts.duration(7500) == "2 h 5 min" and facts.show(0.0001) == "0.0001"


def test_directions_are_those_of_the_evaluation():
    from perturbdiff_jax.evaluation import metrics, summary

    assert set(glossary.METRICS) == set(metrics.METRICS)
    for name, known in glossary.METRICS.items():
        direction = 0 if name in metrics.COUNTS else -1 if name in metrics.LOWER_IS_BETTER else 1
        assert known.better == direction, name
    assert (glossary.OURS, glossary.CEILING) == (summary.OURS, summary.CEILING)

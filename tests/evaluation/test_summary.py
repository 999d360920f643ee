"""Bootstrap means, the comparison with the best baseline, the printed table."""

import math

import numpy as np
import pandas as pd
import pytest

from perturbdiff_jax.evaluation.metrics import METRICS
from perturbdiff_jax.evaluation.summary import (
    best_baseline,
    better,
    compare,
    interval,
    notes,
    summarise,
    table,
    undefined,
    verdict,
)


def rows(values):
    """values: model -> {metric: list over perturbations}; everything else NaN."""
    frames = []
    for model, given in values.items():
        count = len(next(iter(given.values())))
        frame = pd.DataFrame({metric: given.get(metric, [math.nan] * count) for metric in METRICS})
        frame.insert(0, "perturbation", [f"P{i}" for i in range(count)])
        frame.insert(0, "cell_type", ["A"] * (count - count // 2) + ["B"] * (count // 2))
        frame.insert(0, "model", model)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def test_interval_ignores_nan_and_matches_the_normal_approximation():
    values = np.random.default_rng(3).normal(2.0, 1.0, size=400)
    found = interval(np.concatenate([values, [math.nan, math.inf]]))
    error = values.std() / math.sqrt(400)
    assert found["count"] == 400
    assert found["mean"] == pytest.approx(values.mean())
    assert found["low"] == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found["high"] == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_interval_is_seeded_and_small_counts_have_none():
    assert interval(np.arange(9.0), seed=1) == interval(np.arange(9.0), seed=1)
    assert interval(np.arange(9.0), seed=1) != interval(np.arange(9.0), seed=2)
    one = interval(np.array([4.0, math.nan]))
    assert (one["mean"], one["count"]) == (4.0, 1)
    assert math.isnan(one["low"])
    assert math.isnan(interval(np.array([math.nan]))["mean"])


def test_a_metric_per_cell_type_counts_once_per_cell_type():
    found = summarise(rows({"perturbdiff": {"de_spearman_sig": [0.2, 0.2, 0.6, 0.6], "r2": [1, 2, 3, 4]}}))
    assert found["perturbdiff"]["de_spearman_sig"]["count"] == 2
    assert found["perturbdiff"]["de_spearman_sig"]["mean"] == pytest.approx(0.4)
    assert found["perturbdiff"]["r2"]["count"] == 4


SUMMARY = summarise(
    rows(
        {
            "perturbdiff": {"energy": [0.1, 0.11, 0.12, 0.1], "r2": [0.5, 0.6, 0.4, 0.5]},
            "control": {"energy": [0.2, 0.21, 0.22, 0.2], "r2": [0.5, 0.61, 0.42, 0.5]},
            "ridge": {"energy": [0.9, 0.9, 0.8, 0.9], "r2": [0.1, 0.1, 0.2, 0.1]},
            "mean overall": {"energy": [math.nan] * 4, "r2": [math.nan] * 4},
            "ceiling": {"energy": [0.0] * 4, "r2": [0.99] * 4},
        }
    )
)


def test_comparison_knows_the_direction_and_the_overlap():
    assert better("energy", 0.1, 0.2) and not better("r2", 0.1, 0.2)
    assert better("r2", -1.0, math.nan) and not better("r2", math.nan, -1.0)
    assert best_baseline(SUMMARY, "energy") == "control"
    found = compare(SUMMARY)
    assert found["energy"] == {"baseline": "control", "ahead": True, "separate": True}
    assert found["r2"] == {"baseline": "control", "ahead": False, "separate": False}
    assert "pearson_delta" not in found  # no values on either side
    assert verdict(found) == [
        "ahead of the best baseline, intervals apart: energy (control)",
        "behind the best baseline, intervals overlap or missing: r2 (control)",
    ]


def test_table_has_models_as_rows_and_stars_the_best_but_not_the_ceiling():
    lines = table(SUMMARY)
    ours = next(line for line in lines if line.startswith("perturbdiff"))
    ceiling = next(line for line in lines if line.startswith("ceiling"))
    assert "0.108* [0.100, 0.115]" in ours
    assert "*" not in ceiling
    assert "-" in next(line for line in lines if line.startswith("mean overall"))
    assert max(map(len, lines)) <= 130


def test_notes_name_what_is_missing():
    settings = {
        "conditions_with_other_cell_count": 2,
        "conditions": 5,
        "predicted_cells": 1234,
        "real_cells": 99,
        "undefined_rows": undefined(rows({"ridge": {"r2": [math.nan, 1.0]}, "control": {"r2": [1.0]}})),
        "problems": ["perturbdiff, cell type 'A': Error computing metric 'mse': no"],
    }
    said = "\n".join(notes(settings))
    assert "2 of 5 conditions" in said and "1,234" in said
    assert "ridge: undefined for 1 perturbation" in said and "control" not in said
    assert "metric 'mse'" in said

"""An evaluation of several draws: its table, its words and its section of the page."""

import json

import anndata
import numpy as np
import pandas as pd
import pytest
from toy_cells import evaluated, prediction, screen

from perturbdiff_jax.evaluation import celleval, neighbourhood
from perturbdiff_jax.evaluation.calibration import COLUMNS
from perturbdiff_jax.evaluation.inputs import Keys, read_predicted
from perturbdiff_jax.evaluation.page.report import write_report


@pytest.fixture(autouse=True)
def no_cell_eval(monkeypatch):
    """What is tested here depends on no differential expression and no UMAP, which take seconds."""
    for slow in (celleval, neighbourhood):
        monkeypatch.setattr(slow, "installed", lambda: False)


def drawn(raw, draws):
    """The toy prediction, made anew for every draw."""
    parts = [prediction(raw, seed=1 + k) for k in range(draws)]
    for k, part in enumerate(parts):
        part.obs["draw"] = np.int64(k)
        part.obs_names = [f"draw{k}-{name}" for name in part.obs_names]
    joined = anndata.concat(parts)
    joined.uns = parts[0].uns
    return joined


def test_several_draws_are_judged(tmp_path):
    raw, said = screen(), []
    evaluated(tmp_path, drawn(raw, 4), said=said)
    table = pd.read_csv(tmp_path / "calibration.csv")
    assert tuple(table.columns) == COLUMNS and len(table) == 6 and (table["draws"] == 4).all()
    summary = json.loads((tmp_path / "summary.json").read_text())["calibration"]
    assert summary["coverage_80"]["mean"] == pytest.approx(table["coverage_80"].mean(), abs=1e-5)
    assert summary["coverage_80"]["count"] == 6
    text = "\n".join(said)
    assert (
        "uncertainty: 6 conditions with 4 draws each" in text
        and "(its error is not known)" in text
        and "draws of a condition lie" in text
    )
    page = write_report(tmp_path).read_text()
    assert "Every condition was predicted 4 times" in page and "Do intervals hold what they say?" in page


def test_the_model_error_of_the_file_counts(tmp_path):
    raw, said = screen(), []
    cells = drawn(raw, 3)
    cells.uns["perturbdiff"] = dict(cells.uns.get("perturbdiff", {})) | {
        "model_error": {"cells": 0.3, "change": 0.01}
    }
    evaluated(tmp_path, cells, said=said)
    wide = pd.read_csv(tmp_path / "calibration.csv")["half_width_80"]
    evaluated(tmp_path / "plain", drawn(raw, 3))
    assert (wide > 1.2 * pd.read_csv(tmp_path / "plain" / "calibration.csv")["half_width_80"]).all()
    settings = json.loads((tmp_path / "summary.json").read_text())["settings"]
    assert settings["model_error"] == {"cells": 0.3, "change": 0.01}
    assert "% without the model's error" in "\n".join(said)
    page = write_report(tmp_path).read_text()
    assert (
        "as much as the mean of 3 cells, and by 10 % of a change" in page
        and "; without the model&#x27;s error " in page
    )
    assert "What the model errs is not known" in write_report(tmp_path / "plain").read_text()


def test_the_first_draw_is_scored(tmp_path):
    raw = screen()
    several, one = drawn(raw, 3), drawn(raw, 1)
    evaluated(tmp_path / "several", several[::-1].copy())
    evaluated(tmp_path / "one", one[::-1].copy())
    tables = [pd.read_csv(tmp_path / name / "metrics.csv") for name in ("several", "one")]
    pd.testing.assert_frame_equal(*tables)
    cells = [
        json.loads((tmp_path / name / "summary.json").read_text())["settings"]["predicted_cells"]
        for name in ("several", "one")
    ]
    assert cells[0] == cells[1]


def test_one_draw_is_judged_as_a_sample_and_a_file_without_draws_is_not(tmp_path):
    raw, said = screen(), []
    evaluated(tmp_path, drawn(raw, 1), said=said)
    table = pd.read_csv(tmp_path / "calibration.csv")
    assert (table["draws"] == 1).all() and table["energy_between_draws"].isna().all()
    assert "draws of a condition lie" not in "\n".join(said)
    said.clear()
    foreign = prediction(raw)
    foreign.obs = foreign.obs.drop(columns="draw", errors="ignore")
    evaluated(tmp_path, foreign, said=said)  # into the same directory
    assert not (tmp_path / "calibration.csv").exists()
    assert "calibration" not in json.loads((tmp_path / "summary.json").read_text())
    assert "uncertainty:" not in "\n".join(said)
    assert "Uncertainty is not judged" in write_report(tmp_path).read_text()


def test_a_column_of_other_meaning_is_not_taken_for_draws(tmp_path):
    raw = screen()
    cells = drawn(raw, 2)
    cells.obs["draw"] = [f"by {k % 3}" for k in range(cells.n_obs)]
    evaluated(tmp_path, cells)
    assert not (tmp_path / "calibration.csv").exists()
    side, _ = read_predicted(cells, Keys("pert", "control", "type", "lot"))
    assert "draw" not in side.conditions

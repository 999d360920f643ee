"""An evaluation of several draws: its table, its words and its section of the page."""

import json

import anndata
import numpy as np
import pandas as pd
import pytest
from toy_cells import evaluated, prediction, screen

from perturbdiff_jax.evaluation import celleval
from perturbdiff_jax.evaluation.calibration import COLUMNS
from perturbdiff_jax.evaluation.inputs import Keys, read_predicted
from perturbdiff_jax.evaluation.report import write_report


@pytest.fixture(autouse=True)
def no_cell_eval(monkeypatch):
    """What is tested here depends on no differential expression, which takes seconds."""
    monkeypatch.setattr(celleval, "installed", lambda: False)


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
    assert "draws: 6 conditions with 4 each" in text and "draws of a condition lie" in text
    page = write_report(tmp_path).read_text()
    assert "Every condition was predicted 4 times" in page and "Do intervals hold what they say?" in page


def test_one_draw_has_no_calibration_and_the_page_says_so(tmp_path):
    raw, said = screen(), []
    evaluated(tmp_path, drawn(raw, 3))
    evaluated(tmp_path, drawn(raw, 1), said=said)  # into the same directory
    assert not (tmp_path / "calibration.csv").exists()
    assert "calibration" not in json.loads((tmp_path / "summary.json").read_text())
    assert "draws:" not in "\n".join(said)
    assert "each condition was predicted once" in write_report(tmp_path).read_text()


def test_a_column_of_other_meaning_is_not_taken_for_draws(tmp_path):
    raw = screen()
    cells = drawn(raw, 2)
    cells.obs["draw"] = [f"by {k % 3}" for k in range(cells.n_obs)]
    evaluated(tmp_path, cells)
    assert not (tmp_path / "calibration.csv").exists()
    side, _ = read_predicted(cells, Keys("pert", "control", "type", "lot"))
    assert "draw" not in side.conditions

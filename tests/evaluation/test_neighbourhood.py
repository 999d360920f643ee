"""The UMAP of cells: the same for a seed, bounded, fitted on all, and explained where there is none."""

import json

import numpy as np
import pandas as pd
import pytest
from toy_cells import evaluated, prediction, screen

from perturbdiff_jax.evaluation import celleval, neighbourhood
from perturbdiff_jax.evaluation.projection import Drawn

needs_umap = pytest.mark.skipif(
    not neighbourhood.installed(), reason="umap-learn (extra [eval]) is not installed"
)


def cells_of(count, apart=0.0):
    """Control and real cells around 0, predicted cells `apart` from them in a direction of their own."""
    rng = np.random.default_rng(0)
    parts = [
        Drawn("A", name, kind, rng.normal(size=(count, 12)))
        for name, kind in (("control", "control"), ("P", "real"), ("P", "predicted"))
    ]
    parts[-1].cells[:, -1] += apart
    return parts


@needs_umap
def test_cells_unlike_all_real_ones_lie_apart_and_a_seed_gives_one_map(monkeypatch):
    monkeypatch.setattr(neighbourhood, "MOST", 300)
    far = neighbourhood.embed(cells_of(200, 30.0), seed=3)
    assert tuple(far.columns) == neighbourhood.UMAP_COLUMNS
    assert far["kind"].value_counts().to_dict() == {"control": 100, "real": 100, "predicted": 100}
    plane, predicted = far[["umap1", "umap2"]].to_numpy(), (far["kind"] == "predicted").to_numpy()
    between = np.linalg.norm(plane[predicted][:, None] - plane[~predicted][None], axis=2).min()
    spacing = np.linalg.norm(plane[~predicted][:, None] - plane[~predicted][None], axis=2)
    # No predicted cell is drawn among the real ones.
    assert between > 3 * np.median(np.sort(spacing, axis=1)[:, 1])
    again = neighbourhood.embed(cells_of(200, 30.0), seed=3)
    np.testing.assert_array_equal(plane, again[["umap1", "umap2"]].to_numpy())


def test_neighbours_against_a_loop():
    x = np.random.default_rng(1).normal(size=(40, 5))
    places, distances = neighbourhood._neighbours(x)
    for i in range(40):
        wanted = sorted(range(40), key=lambda j: np.linalg.norm(x[i] - x[j]))[: neighbourhood.NEIGHBOURS]
        assert places[i].tolist() == wanted
        np.testing.assert_allclose(distances[i], [np.linalg.norm(x[i] - x[j]) for j in wanted], atol=1e-6)


def test_why_there_is_none(monkeypatch):
    monkeypatch.setattr(neighbourhood, "installed", lambda: True)
    assert neighbourhood.why_not(cells_of(200)) is None
    assert "of 60 cells" in neighbourhood.why_not(cells_of(20))
    monkeypatch.setattr(neighbourhood, "installed", lambda: False)
    assert "umap-learn is not installed" in neighbourhood.why_not(cells_of(200))


@needs_umap
def test_an_evaluation_writes_it_and_takes_it_away_again(tmp_path, monkeypatch):
    monkeypatch.setattr(celleval, "installed", lambda: False)
    monkeypatch.setattr(neighbourhood, "LEAST", 100)
    raw = screen()
    evaluated(tmp_path, prediction(raw))
    table = pd.read_csv(tmp_path / "umap.csv")
    assert tuple(table.columns) == neighbourhood.UMAP_COLUMNS and len(table) > 300
    assert set(table["kind"]) == {"control", "real", "predicted"} and set(table["cell_type"]) == {"A", "B"}
    assert json.loads((tmp_path / "summary.json").read_text())["settings"]["no_umap"] is None
    monkeypatch.setattr(neighbourhood, "installed", lambda: False)
    evaluated(tmp_path, prediction(raw))
    assert not (tmp_path / "umap.csv").exists()
    settings = json.loads((tmp_path / "summary.json").read_text())["settings"]
    assert "umap-learn is not installed" in settings["no_umap"]

"""Runs that are compared with each other: a config with changes, its scores by condition, means with intervals.

What low_data.py and ablation.py have in common. A run that is finished is not trained again; one that was broken off
goes on.
"""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from perturbdiff_jax.evaluation.metrics import METRICS
from perturbdiff_jax.evaluation.summary import interval
from perturbdiff_jax.main import parse
from perturbdiff_jax.train import train_and_evaluate

ROOT = Path(__file__).resolve().parents[1]
OURS = "perturbdiff"
# Rivals that know the training cells of the same share, and what no model can exceed.
RIVALS = ("control", "control cells + mean delta", "ridge", "ceiling")
# The laptop's recipe (configs/own_data.py) in the released form: whole cells are predicted, not changes.
CURVE = "energy"
RELEASED_FORM = {
    "model.anchor": "none",
    "train.max_epochs": None,
    "train.best_metric": CURVE,
    "predict.calibration_draws": 0,
    "predict.draws": 1,
}
SHOWN = ("pearson_delta", "energy", "r2", "discrimination_score_l1", "overlap_at_N")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table: seeds of the same training, and what they found."""

    name: str
    fraction: float  # of the training cells
    scores: dict[str, dict[str, Any]]  # metric -> mean, low, high, count
    curves: list[list[tuple[int, float]]]  # of each seed: (step, validation score)


def changed(config, changes: dict[str, Any]):
    """A copy of the config with dotted keys set."""
    config = copy.deepcopy(config)
    for name, value in changes.items():
        section, _, key = name.rpartition(".")
        (config[section] if section else config)[key] = value
    return config


def config_at(path: Path):
    """The config of a file of configs/."""
    return parse([f"--config={path}", "--workdir=unused"])[0]


def finished(config, workdir: Path) -> Path:
    """The folder of the run, trained and scored if it is not yet."""
    if not (workdir / "report.html").is_file():
        train_and_evaluate(config, workdir)
    return workdir


def by_condition(folder: Path, model: str = OURS) -> pd.DataFrame:
    """Metrics of a finished evaluation, a row for each (cell type, perturbation)."""
    rows = pd.read_csv(folder / "metrics_all.csv", dtype={"perturbation": str, "cell_type": str})
    return rows[rows["model"] == model].set_index(["cell_type", "perturbation"])[list(METRICS)]


def scores_of(folders: list[Path], model: str = OURS) -> dict[str, dict[str, Any]]:
    """Means over conditions of the mean over seeds, with bootstrap intervals over conditions."""
    tables = [by_condition(folder, model) for folder in folders]
    mean = pd.concat(tables).groupby(level=[0, 1]).mean()
    return {metric: interval(mean[metric].to_numpy(dtype=float)) for metric in METRICS}


def curve_of(folder: Path, metric: str) -> list[tuple[int, float]]:
    """(step, validation score) of a run."""
    lines = (folder / "logs" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    name = f"validation/{metric}"
    return [(int(row["step"]), float(row[name])) for row in rows if name in row]


def apart(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two intervals do not overlap."""
    return bool(one["low"] > other["high"] or one["high"] < other["low"])


def told(score: dict[str, Any]) -> str:
    """A mean with its interval."""
    if not np.isfinite(score["mean"]):
        return "-"
    if not np.isfinite(score["low"]):
        return f"{score['mean']:.3f}"
    return f"{score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def table(rows: list[Row]) -> str:
    """Markdown: a line for each row."""
    lines = ["| cells | trained | " + " | ".join(SHOWN) + " |", "|---" * (2 + len(SHOWN)) + "|"]
    for row in rows:
        share = f"{100 * row.fraction:g} %" if row.fraction else "-"
        lines.append(f"| {share} | {row.name} | " + " | ".join(told(row.scores[m]) for m in SHOWN) + " |")
    return "\n".join(lines)

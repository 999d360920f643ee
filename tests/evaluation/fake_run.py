"""Writes a working directory as training and evaluation leave it, with invented but plausible numbers.

Run as a script it writes a large one, to look at the report: `python fake_run.py DIR`.
"""

import json
import pathlib
import sys

import numpy as np
import pandas as pd

NASTY = (
    "</script><script>alert(1)</script>\"'&é",
    "<b>&'\"</b>",
    "[('DMSO_TF', 0.0, 'uM')]",
    "a$b$_{c}",
    "NA",
    "1.0",
)
BASELINES = (
    "mean per perturbation",
    "mean per cell type",
    "mean per batch",
    "mean overall",
    "context mean + mean delta",
    "control cells + mean delta",
    "ridge",
    "control",
)
# metric: (worst, best, spread over conditions); a model's skill in [0, 1] places its mean in between.
SCALES = {
    "overlap_at_N": (0.0, 0.75, 0.10),
    "precision_at_N": (0.02, 0.76, 0.10),
    "de_spearman_sig": (0.0, 0.9, 0.0),
    "de_direction_match": (0.5, 1.0, 0.06),
    "de_spearman_lfc_sig": (0.0, 0.98, 0.08),
    "pr_auc": (0.02, 0.84, 0.1),
    "roc_auc": (0.5, 0.99, 0.05),
    "pearson_delta": (0.0, 0.92, 0.10),
    "mse": (0.06, 0.002, 0.001),
    "mae": (0.13, 0.02, 0.003),
    "discrimination_score_l1": (0.5, 1.0, 0.1),
    "discrimination_score_l2": (0.5, 1.0, 0.1),
    "discrimination_score_cosine": (0.5, 1.0, 0.1),
    "r2": (0.6, 0.99, 0.02),
    "energy": (0.18, 0.006, 0.002),
}
SKILL = dict(
    zip(("perturbdiff", *BASELINES, "ceiling"), (0.84, 0.5, 0.3, 0.32, 0.2, 0.6, 0.72, 0.62, 0.1, 0.97))
)


def write_run(
    path: pathlib.Path,
    *,
    perturbations=("IFNG", "TNF", "IL6", *NASTY),
    cell_types=("B cell", "T & <NK>"),
    baselines=BASELINES,
    genes: int = 30,
    cells: int = 12,
    steps: int = 200,
    missing: float = 0.0,
    seed: int = 0,
) -> pathlib.Path:
    """Writes every file of the report's contract under `path`; `missing` is the share of NaN scores."""
    rng = np.random.default_rng(seed)
    (path / "logs").mkdir(parents=True, exist_ok=True)
    conditions = pd.DataFrame(
        [(c, p) for c in cell_types for p in perturbations], columns=["cell_type", "perturbation"]
    )
    _scores(path, conditions, ("perturbdiff", *baselines, "ceiling"), rng, missing)
    _cells(path, conditions, rng, cells)
    _changes(path, conditions, rng, genes)
    _genes(path, conditions, rng, genes)
    _draws(path, conditions, rng)
    _log(path, rng, steps)
    _records(path, steps, len(conditions), genes)
    return path


def _scores(path, conditions, models, rng, missing):
    ease = rng.normal(size=len(conditions))
    tables, summary = [], {}
    for model in models:
        table = conditions.copy()
        for name, (worst, best, spread) in SCALES.items():
            skill = SKILL[model] + 0.05 * np.sin(len(name) * len(model))
            if name == "energy" and ("mean" in model or model == "ridge") and "cells" not in model:
                skill = 0.02
            noise = 0.5 * ease + rng.normal(size=len(table)) * 0.8
            values = worst + skill * (best - worst) + np.sign(best - worst) * spread * noise
            values = np.clip(values, 1e-4, 1.0) if best <= 1 else values
            table[name] = np.where(rng.random(len(table)) < missing, np.nan, values)
        table["n_sig_real"] = rng.poisson(25, len(table))
        table["n_sig_pred"] = rng.poisson(270 if "mean" in model else 40, len(table))
        tables.append(table.assign(model=model))
        summary[model] = {name: _mean(table[name].to_numpy(float), rng) for name in table.columns[2:]}
    every = pd.concat(tables)
    every[["model", *every.columns.drop("model")]].to_csv(path / "metrics_all.csv", index=False)
    tables[0].drop(columns="model").to_csv(path / "metrics.csv", index=False)
    pooled = every.drop_duplicates(["model", "perturbation"]).drop(columns="cell_type")
    pooled.to_csv(path / "metrics_pooled.csv", index=False)
    record = {
        "versions": {"cell-eval": "0.8.2", "pdex": "0.3.0"},
        "settings": {"seed": 0, "resamples": 2000, "controls": "real control cells on both sides"},
        "models": summary,
        "pooled": summary,
    }
    (path / "summary.json").write_text(json.dumps(record))


def _mean(values, rng):
    values = values[~np.isnan(values)]
    if not values.size:
        return {"mean": float("nan"), "low": float("nan"), "high": float("nan"), "count": 0}
    means = rng.choice(values, (200, values.size)).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": values.mean(), "low": low, "high": high, "count": int(values.size)}


def _cells(path, conditions, rng, cells):
    rows = []
    for place, (cell_type, perturbation) in enumerate(conditions.itertuples(index=False)):
        corner = np.array([4.0 * (len(cell_type) % 3), 2.0 * np.sin(len(cell_type))])
        shift = 2.5 * np.array([np.cos(place), np.sin(place)])
        for kind, centre in (("real", shift), ("predicted", 0.8 * shift + 0.2)):
            points = corner + centre + rng.normal(size=(cells, 2)) * [0.8, 0.6]
            rows += [(cell_type, perturbation, kind, *point) for point in points]
    for cell_type in conditions["cell_type"].unique():
        corner = np.array([4.0 * (len(cell_type) % 3), 2.0 * np.sin(len(cell_type))])
        points = corner + rng.normal(size=(4 * cells, 2)) * [0.8, 0.6]
        rows += [(cell_type, "control", "control", *point) for point in points]
    keys = ["cell_type", "perturbation", "kind"]
    for name in ("pc", "umap"):
        table = pd.DataFrame(rows, columns=[*keys, f"{name}1", f"{name}2"])
        table.to_csv(path / ("pca.csv" if name == "pc" else "umap.csv"), index=False)


def _changes(path, conditions, rng, genes):
    parts = []
    for cell_type, perturbation in conditions.itertuples(index=False):
        real = np.round(rng.normal(size=genes), 4)
        pred = np.round(0.7 * real + 0.3 * rng.normal(size=genes), 4)
        names = {
            "cell_type": cell_type,
            "perturbation": perturbation,
            "gene": [f"GENE{i}" for i in range(genes)],
        }
        columns = {"real_change": real, "pred_change": pred, "low": pred - 0.25, "high": pred + 0.25}
        parts.append(pd.DataFrame({**names, **columns}))
    pd.concat(parts).to_csv(path / "mean_changes.csv.gz", index=False)


def _draws(path, conditions, rng):
    table = conditions.assign(batch="B1", draws=8, genes=20)
    for name, level in (("coverage_50", 0.4), ("coverage_80", 0.7), ("coverage_95", 0.9)):
        table[name] = np.clip(level + 0.1 * rng.normal(size=len(table)), 0, 1)
    for name in ("plain_50", "plain_80", "plain_95"):
        table[name] = 0.8 * table[name.replace("plain", "coverage")]
    for name in (
        "half_width_80",
        "spread",
        "error",
        "energy_between_draws",
        "energy_between_batches",
        "energy_to_real",
    ):
        table[name] = rng.uniform(0.01, 0.1, len(table))
    table.to_csv(path / "calibration.csv", index=False)


def _genes(path, conditions, rng, genes):
    parts = []
    for cell_type, perturbation in conditions.itertuples(index=False):
        effect = rng.normal(size=genes) * (rng.random(genes) < 0.12) * 1.5
        guess = 0.75 * effect + 0.06 * rng.normal(size=genes)
        real = 10 ** -np.clip(12 * effect**2 + rng.exponential(0.15, genes), 0, 320)
        pred = 10 ** -np.clip(12 * guess**2 + rng.exponential(0.3, genes), 0, 320)
        part = pd.DataFrame(
            {"gene": [f"GENE{i}" for i in range(genes)], "real_padj": real, "pred_padj": pred}
        )
        parts.append(
            part.assign(cell_type=cell_type, perturbation=perturbation, real_lfc=effect, pred_lfc=guess)
        )
    columns = ["cell_type", "perturbation", "gene", "real_padj", "pred_padj", "real_lfc", "pred_lfc"]
    pd.concat(parts)[columns].to_csv(path / "de.csv.gz", index=False)


def _log(path, rng, steps):
    lines = []
    for step in range(0, steps, max(1, steps // 100)):
        decay = np.exp(-4 * step / steps)
        mse, energy = (
            0.01 * (0.2 + decay) * rng.lognormal(0, 0.08),
            0.05 * (0.1 + decay) * rng.lognormal(0, 0.1),
        )
        loss = {"loss/total": mse + energy, "loss/mse": mse, "loss/energy": energy}
        lines.append(
            {"step": step, "time": 1e9 + step, "kind": "train", **loss, "speed/cells_per_second": 5e3}
        )
        if step % max(1, steps // 10) == 0:
            scores = {
                "r2": 0.97 - 0.3 * decay,
                "pearson_delta": 0.8 - 0.7 * decay,
                "energy": 0.008 + 0.1 * decay,
            }
            scores = {f"validation/{name}": value + rng.normal() * 0.004 for name, value in scores.items()}
            lines.append({"step": step, "time": 1e9 + step, "kind": "validation", **scores})
    (path / "logs" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _records(path, steps, conditions, genes):
    config = {
        "seed": 0,
        "data": {"store": "", "input": "", "genes": None, "split": None},
        "holdout": {"fraction": 0.5, "validation_fraction": 0.125, "batch": "B4", "cell_type": None},
        "simulate": {"perturbations": 24, "genes": 500},
        "loader": {"cells_per_set": 32, "sets_per_batch": 8},
        "model": {"depth": 4, "width": 128, "heads": 4},
        "optim": {"learning_rate": 1e-3, "warmup_steps": 100},
        "train": {"steps": steps, "best_metric": "energy"},
        "sampler": {"name": "ddim", "steps": 10, "start": 100},
    }
    run = {
        "versions": {"perturbdiff_jax": "0.1.0", "jax": "0.10.2", "flax": "0.12.0"},
        "devices": ["cpu:0"],
        "parameters": 1_234_567,
        "cells_per_second": 5000,
        "data_wait_share": 0.0123,
        "mfu": 0.376,
        "peak_flops": "1 x cpu, float32: 0.142 TFLOP/s (measured)",
        "seconds": {"prepare": 6.1, "train": 171.4, "predict": 22.0, "evaluate": 31.2},
        "store": {"n_cells": 20_160, "genes": genes},
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "run.json").write_text(json.dumps(run))


if __name__ == "__main__":
    names = (
        "IFNG",
        "TNF",
        "IL6",
        "STAT1",
        "JAK2",
        "SMAD4",
        "BRD4",
        "MYC",
        "CAV1",
        "ETV7",
        "UBE2L6",
        "POU2F2",
        *NASTY,
    )
    target = pathlib.Path(sys.argv[1])
    types = ("B cell", "CD4 T cell", "T & <NK>")
    write_run(target, perturbations=names, cell_types=types, genes=500, cells=60, steps=4000, missing=0.03)

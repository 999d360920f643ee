"""Our baseline rows on two real screens against rows that were measured independently, to the printed digits.

Rows without drawn cells must agree exactly; the row of shifted control cells draws cells and must agree
within noise. The measured table computed its fold changes with one logarithm too many (cell-eval's allow_discrete);
so the columns that rank by fold change are checked in that mode.
"""

import json
import pathlib

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from perturbdiff_jax.evaluation import celleval
from perturbdiff_jax.evaluation.baselines import Ridge, Training, TrainingGroup, trained_baselines
from perturbdiff_jax.evaluation.contexts import Context, as_cells, pool
from perturbdiff_jax.evaluation.scoring import Scorer

SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared"
COLUMNS = {
    "ovN": "overlap_at_N",
    "prN": "precision_at_N",
    "spSig": "de_spearman_sig",
    "dir": "de_direction_match",
    "lfcSp": "de_spearman_lfc_sig",
    "prauc": "pr_auc",
    "rocauc": "roc_auc",
    "pdelta": "pearson_delta",
    "mse": "mse",
    "mae": "mae",
    "dsL1": "discrimination_score_l1",
    "dsL2": "discrimination_score_l2",
    "dsCos": "discrimination_score_cosine",
    "R2": "r2",
    "energy": "energy",
    "nSigR": "n_sig_real",
    "nSigP": "n_sig_pred",
}
DRAWN = "control cells + mean delta"
NOISE = {"r2": 0.02, "mae": 0.05, "mse": 0.1, "energy": 0.05, "pearson_delta": 0.2, "n_sig_pred": 0.05}


def published(task):
    """model -> {our column: (value, tolerance of the last printed digit)}."""
    if not (SHARED / "anchors" / "quality.md").is_file():
        pytest.skip("the measured rows (../shared/anchors/quality.md) are not here")
    rows, heads = {}, None
    for line in (SHARED / "anchors" / "quality.md").read_text().split(f"## {task}:")[1].splitlines()[1:]:
        if line.startswith("## "):
            break
        cells = [cell.strip().strip("*") for cell in line.strip().strip("|").split("|")]
        if cells[0] == "system":
            heads = cells
        elif heads and len(cells) == len(heads) and not cells[0].startswith("---"):
            rows[cells[0]] = {
                COLUMNS[head]: (float(text), 0.75 * 10.0 ** -len(text.split(".")[1]))
                for head, text in zip(heads[1:], cells[1:])
                if text != "-"
            }
    return rows


def world(task):
    """(contexts, training) of a task's file, by its own split, log1p(count / total * 10,000)."""
    facts = json.loads((SHARED / "tasks" / f"{task}.json").read_text())
    adata = ad.read_h5ad(SHARED / facts["file"])
    totals = adata.obs[facts["total_key"]].to_numpy(dtype=np.float64)
    x = (sp.diags(1e4 / totals) @ sp.csr_matrix(adata.X, dtype=np.float64)).tocsr()
    x.data = np.log1p(x.data)
    genes = facts.get("genes", list(adata.var_names))
    x = as_cells(x[:, adata.var_names.get_indexer(genes)])
    groups = adata.obs.groupby(["cell_type", "batch", "perturbation"], observed=True).indices
    groups = {tuple(map(str, key)): rows for key, rows in groups.items()}
    test = {tuple(key) for key in facts["test"]}
    held_out = test | {tuple(key) for key in facts["validation"]}
    means = {key: np.asarray(x[rows].mean(axis=0, dtype=np.float64)).ravel() for key, rows in groups.items()}
    training = Training(
        tuple(
            TrainingGroup(*key, key[2] == "control", len(rows), means[key], means[(*key[:2], "control")])
            for key, rows in groups.items()
            if key not in held_out
        )
    )
    contexts = []
    for cell_type in sorted({key[0] for key in test}):
        # Sorted: a set's order changes from run to run, and with it which control cells a seed draws.
        mine = sorted(key for key in test if key[0] == cell_type)
        contexts.append(
            Context(
                cell_type,
                tuple(genes),
                {batch: x[groups[cell_type, batch, "control"]] for _, batch, _ in mine},
                {(batch, name): x[groups[cell_type, batch, name]] for _, batch, name in mine},
            )
        )
    return contexts, training


@pytest.mark.parametrize("task", ["papalexi", "kang"])
def test_baseline_rows_agree_with_the_measured_ones(task):
    if not celleval.installed():
        pytest.skip("cell-eval (extra [eval]) is not installed")
    rows = published(task)
    contexts, training = world(task)
    ridge = Ridge.fit(training)
    means = {}
    for context in contexts:
        scorer = Scorer(context, "control", use_celleval=True, is_log1p=False)
        for model, prediction in trained_baselines(context, training, ridge, None, np.random.default_rng(0)):
            if model == "linear":
                continue  # nobody measured it there
            frame, _, problems = scorer.score(pool(prediction))
            assert problems == []
            means.setdefault(model, []).append(frame[list(COLUMNS.values())].mean())
    wrong = []
    for model, parts in means.items():
        found = sum(parts) / len(parts)
        for column, (wanted, tolerance) in rows[model].items():
            if model == DRAWN:
                if column not in NOISE:
                    continue  # ranks of few genes or perturbations: too noisy between draws
                tolerance = NOISE[column] * abs(wanted)
            elif column == "energy":
                tolerance = 2e-4  # the spread of a point mass: its smallest distance, or rounding noise
            elif column == "overlap_at_N":
                tolerance = max(tolerance, 0.01)  # one gene: infinite fold changes tie in the ranking
            if not abs(found[column] - wanted) <= tolerance:
                wrong.append(f"{model}, {column}: {found[column]:.4f}, measured {wanted}")
    assert wrong == []
    assert len(means) == 7

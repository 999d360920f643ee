"""The wrapper around cell-eval against cell-eval on all cells with its own differential expression."""

import tempfile

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from toy_cells import GENES, PERTURBATIONS, lognorm, prediction, screen

from perturbdiff_jax.evaluation.contexts import Context, as_cells, pool
from perturbdiff_jax.evaluation.metrics import DE_METRICS, MEAN_METRICS

cell_eval = pytest.importorskip("cell_eval")
from perturbdiff_jax.evaluation import celleval  # noqa: E402


def sides():
    """(context of cell type A, batch y; our prediction for it)."""
    raw = screen()
    log, pred = lognorm(raw), prediction(raw)

    def cells(adata, name):
        rows = (adata.obs["pert"] == name) & (adata.obs["type"] == "A") & (adata.obs["lot"] == "y")
        return as_cells(adata[rows.to_numpy()].X)

    context = Context(
        cell_type="A",
        genes=tuple(GENES),
        control={"y": cells(log, "control")},
        real={("y", name): cells(log, name) for name in PERTURBATIONS},
    )
    return context, pool({("y", name): cells(pred, name) for name in PERTURBATIONS})


@pytest.fixture(scope="module")
def scored():
    context, predicted = sides()
    scorer = celleval.ContextScorer(context, "control")
    return context, predicted, scorer, scorer.score(predicted)


def test_numbers_are_those_of_cell_eval_on_the_cells(scored):
    context, predicted, _, (frame, _, problems) = scored
    control = context.pooled_control()

    def adata(parts):
        names = sorted(parts)
        sizes = [control.shape[0], *(parts[name].shape[0] for name in names)]
        x = np.concatenate([control.toarray(), *(parts[name].toarray() for name in names)])
        obs = pd.DataFrame({"p": np.repeat(["control", *names], sizes)}, index=np.arange(len(x)).astype(str))
        return ad.AnnData(x, obs=obs, var=pd.DataFrame(index=GENES))

    with celleval.quiet(), tempfile.TemporaryDirectory() as folder:
        wanted, _ = cell_eval.MetricsEvaluator(
            adata(predicted),
            adata(context.pooled_real()),
            control_pert="control",
            pert_col="p",
            outdir=folder,
        ).compute(
            write_csv=False, break_on_error=True, skip_metrics=["clustering_agreement", "pearson_edistance"]
        )
    assert problems == []
    order = wanted["perturbation"].to_list()
    for column in (*DE_METRICS, *MEAN_METRICS):
        np.testing.assert_allclose(
            frame.loc[order, column], wanted[column].to_numpy(), rtol=2e-5, err_msg=column
        )
    np.testing.assert_array_equal(frame.loc[order, "n_sig_pred"], wanted["de_nsig_counts_pred"].to_numpy())
    np.testing.assert_array_equal(frame.loc[order, "n_sig_real"], wanted["de_nsig_counts_real"].to_numpy())
    assert frame["n_sig_real"].min() > 0


def test_an_undefined_row_is_nan_and_leaves_the_others_alone(scored):
    _, predicted, scorer, (whole, _, _) = scored
    frame, _, problems = scorer.score({**predicted, "P2": None})
    assert frame.loc["P2"].isna().all() and problems == []
    same = [column for column in whole.columns if column != "de_spearman_sig"]  # over the perturbations left
    pd.testing.assert_frame_equal(frame.loc[["P1", "P3"], same], whole.loc[["P1", "P3"], same])
    nothing, table, _ = scorer.score(dict.fromkeys(predicted))
    assert nothing.isna().all(axis=None) and table is None


def test_a_swallowed_error_is_reported_and_its_column_stays(scored, monkeypatch):
    from cell_eval.metrics import metrics_registry

    _, predicted, scorer, _ = scored

    def broken(*_, **__):
        raise ValueError("no such thing")

    monkeypatch.setattr(metrics_registry.get_metric("mae"), "func", broken)
    frame, _, problems = scorer.score(predicted)
    assert frame["mae"].isna().all() and frame["mse"].notna().all()
    assert len(problems) == 1 and "mae" in problems[0] and "no such thing" in problems[0]


def test_nothing_is_printed(scored, capfd):
    _, predicted, scorer, _ = scored
    scorer.score(predicted)
    out, err = capfd.readouterr()
    assert out == "" and err == ""


def test_one_more_logarithm_changes_fold_changes_only(scored):
    context, predicted, scorer, (_, table, _) = scored
    again = celleval.ContextScorer(context, "control", is_log1p=False)
    other = again.score(predicted)[1]
    np.testing.assert_array_equal(table["fdr"].to_numpy(), other["fdr"].to_numpy())
    control = context.pooled_control().toarray().astype(float)
    cells = predicted["P1"].toarray().astype(float)
    for found, change in ((table, lambda x: x), (other, np.log1p)):
        lfc = found.filter(found["target"] == "P1")["log2_fold_change"].to_numpy()
        with np.errstate(divide="ignore", invalid="ignore"):
            wanted = np.log2(np.expm1(change(cells).mean(0)) / np.expm1(change(control).mean(0)))
        np.testing.assert_allclose(lfc, wanted, rtol=1e-3, atol=1e-5)
    assert scorer.is_log1p

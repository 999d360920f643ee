"""Scores of one model in one context: cell-eval's metrics if installed, ours beside them.

The real cells' part (differential expression, mean cells, spread) is computed once and serves every model.
One rule for all models: the real control cells on both sides.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from perturbdiff_jax.evaluation import celleval
from perturbdiff_jax.evaluation.contexts import Context
from perturbdiff_jax.evaluation.metrics import (
    METRICS,
    energy,
    mean_distance,
    mean_metrics,
    mean_of,
    r2,
)
from perturbdiff_jax.evaluation.populations import Population, written_out
from perturbdiff_jax.evaluation.real_tables import RealTables
from perturbdiff_jax.evaluation.stages import stage
from perturbdiff_jax.evaluation.threads import mapped

DE_COLUMNS = ("cell_type", "perturbation", "gene", "real_padj", "pred_padj", "real_lfc", "pred_lfc")


class Scorer:
    """Scores predictions against one context's real cells; `use_celleval` False leaves the DE metrics NaN.

    `tables` keeps the real cells' differential expression for later calls.
    """

    def __init__(
        self,
        context: Context,
        label: str,
        *,
        use_celleval: bool,
        is_log1p: bool = True,
        tables: RealTables | None = None,
    ):
        self.context = context
        self.real = context.pooled_real()
        self.control_mean = mean_of(context.pooled_control())
        self.real_means = {name: mean_of(cells) for name, cells in self.real.items()}
        with stage("energy distances"):
            spread = mapped(lambda cells: mean_distance(cells, cells), self.real.values(), context.values)
        self.spread = dict(zip(self.real, spread))
        self.celleval = celleval.ContextScorer(context, label, is_log1p, tables) if use_celleval else None

    def score(self, predicted: Mapping[str, Population | None]) -> tuple[pd.DataFrame, object, list[str]]:
        """(rows [perturbation x METRICS], predicted DE table or None, problems) of cells per perturbation.

        A perturbation whose prediction is None gets a row of NaN.
        """
        names = sorted(self.real)
        frame = pd.DataFrame(np.nan, index=names, columns=list(METRICS))
        table, problems = None, []
        if self.celleval is not None:
            scores, table, problems = self.celleval.score(predicted)
            frame[list(scores.columns)] = scores
        else:
            nothing = np.full(len(self.context.genes), np.nan)
            means = [
                nothing if predicted[name] is None else mean_of(written_out(predicted[name]))
                for name in names
            ]
            real = np.stack([self.real_means[name] for name in names])
            for column, values in mean_metrics(
                np.stack(means), real, self.control_mean, names, self.context.genes
            ).items():
                frame[column] = values

        def own(name: str) -> tuple[float, float]:
            if predicted[name] is None:
                return np.nan, np.nan
            cells = written_out(predicted[name])
            distance = energy(cells, self.real[name], self.spread[name])
            return r2(mean_of(cells), self.real_means[name]), distance

        with stage("energy distances"):
            frame[["r2", "energy"]] = mapped(own, names, self.context.values)
        frame.insert(0, "perturbation", names)
        frame.insert(0, "cell_type", self.context.cell_type)
        return frame.reset_index(drop=True), table, problems

    def expression_changes(self, table) -> pd.DataFrame:
        """Real beside predicted adjusted p and log2 fold change of every gene (DE_COLUMNS)."""
        columns = ["target", "feature", "fdr", "log2_fold_change"]
        real, pred = (
            pd.DataFrame({column: part[column].to_numpy() for column in columns})
            for part in (self.celleval.real_table, table)
        )
        joined = real.merge(pred, on=["target", "feature"], suffixes=("_real", "_pred"))
        return pd.DataFrame(
            {
                "cell_type": self.context.cell_type,
                "perturbation": joined["target"],
                "gene": joined["feature"],
                "real_padj": joined["fdr_real"],
                "pred_padj": joined["fdr_pred"],
                "real_lfc": joined["log2_fold_change_real"],
                "pred_lfc": joined["log2_fold_change_pred"],
            }
        )

"""cell-eval's metrics for one cell type after another, with the real side computed once (extra `[eval]`).

Differential expression is pdex's Wilcoxon rank-sum test of a perturbation against the real control cells with
Benjamini-Hochberg adjustment: the very call that cell_eval.MetricsEvaluator makes (log1p input, epsilon 0),
made here so that the table of the real cells serves every model. The other metrics are functions of the mean
cell, so the evaluator is given mean cells: the same numbers in a fraction of the time. It knows no models.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from perturbdiff_jax.evaluation.contexts import Context
from perturbdiff_jax.evaluation.expression import TEST, expression_table
from perturbdiff_jax.evaluation.metrics import COUNTS, DE_METRICS, MEAN_METRICS, mean_of
from perturbdiff_jax.evaluation.populations import Population, written_out
from perturbdiff_jax.evaluation.rank_test import Reference
from perturbdiff_jax.evaluation.real_tables import RealTables, content_key
from perturbdiff_jax.evaluation.stages import stage
from perturbdiff_jax.evaluation.threads import mapped

PACKAGES = ("cell-eval", "pdex")
MISSING = (
    "cell-eval is not installed: no differential-expression metrics (overlap, precision, AUCs, ...); "
    "install them with: pip install 'perturbdiff_jax[eval]'"
)
SIGNIFICANT = 0.05  # adjusted p-value, cell-eval's default
_KEY = "perturbation"
_COUNT_COLUMNS = {"de_nsig_counts_real": COUNTS[0], "de_nsig_counts_pred": COUNTS[1]}
_LOGGERS = ("cell_eval", "pdex")


def installed() -> bool:
    """Whether cell-eval can be imported."""
    return all(importlib.util.find_spec(name) is not None for name in ("cell_eval", "pdex"))


def versions() -> dict[str, str | None]:
    """Versions of cell-eval and pdex, None when absent: both change the numbers."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


class _Errors(logging.Handler):
    """Keeps the messages of errors that cell-eval swallows."""

    def __init__(self):
        super().__init__(level=logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextlib.contextmanager
def quiet() -> Iterator[list[str]]:
    """Hides progress bars, log lines and warnings of cell-eval and pdex; yields the errors they logged."""
    errors = _Errors()
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.propagate, logger.level, list(logger.handlers)) for logger in loggers]
    for logger in loggers:
        logger.propagate, logger.handlers = False, [errors]
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield errors.messages
    finally:
        for logger, (propagate, level, handlers) in zip(loggers, before):
            logger.propagate, logger.handlers = propagate, handlers
            logger.setLevel(level)


def _mean_cells(means: Mapping[str, np.ndarray], genes: tuple[str, ...]):
    import anndata as ad

    names = sorted(means)
    obs = pd.DataFrame({_KEY: names}, index=[str(i) for i in range(len(names))])
    return ad.AnnData(
        X=np.stack([means[name] for name in names]), obs=obs, var=pd.DataFrame(index=list(genes))
    )


@dataclasses.dataclass
class ContextScorer:
    """cell-eval on one context. `score` may be called once per model; the real side is computed once.

    `tables` keeps the real side's differential expression for later calls; without it nothing is kept.
    """

    context: Context
    label: str  # control label
    is_log1p: bool = True  # see expression_table
    tables: RealTables | None = None

    def __post_init__(self):
        control = self.context.pooled_control()
        self.reference = Reference.of(control)
        real = self.context.pooled_real()
        self.real_means = {name: mean_of(cells) for name, cells in real.items()}
        self.control_mean = mean_of(control)
        if self.tables is None:
            self.real_table = self._quiet_table(real)
        else:
            settings = {**TEST, "is_log1p": self.is_log1p, **versions()}
            key = content_key(real, control, self.context.genes, self.label, settings)
            self.real_table = self.tables.get(key, lambda: self._quiet_table(real))

    @stage("real differential expression")
    def _quiet_table(self, cells: Mapping[str, Population]):
        with quiet():
            return self._table(cells)

    def _table(self, cells: Mapping[str, Population]):
        return expression_table(cells, self.reference, self.context.genes, self.label, is_log1p=self.is_log1p)

    @stage("cell-eval's metrics")
    def score(self, predicted: Mapping[str, Population | None]) -> tuple[pd.DataFrame, object, list[str]]:
        """Metrics [perturbation x metric], the predicted side's pdex table and what went wrong.

        `predicted` has cells [n, G] for every perturbation of the context, or None where the model is
        undefined: such a row is NaN; its real effect stays a candidate of the discrimination scores.
        """
        import polars as pl

        with stage("start of cell-eval"):
            from cell_eval import MetricsEvaluator
            from cell_eval.metrics import metrics_registry

        defined = {name: cells for name, cells in predicted.items() if cells is not None}
        columns = [*DE_METRICS, *MEAN_METRICS, *COUNTS]
        frame = pd.DataFrame(np.nan, index=sorted(self.real_means), columns=columns)
        if not defined:
            return frame, None, []
        with stage("mean cells"):
            found = mapped(lambda name: mean_of(written_out(defined[name])), defined, self.context.values)
        means = {**dict.fromkeys(predicted, self.control_mean), **dict(zip(defined, found))}
        with quiet() as errors, tempfile.TemporaryDirectory() as folder:
            with stage("predicted differential expression"):
                table = self._table(defined)
            evaluator = MetricsEvaluator(
                _mean_cells({**means, self.label: self.control_mean}, self.context.genes),
                _mean_cells({**self.real_means, self.label: self.control_mean}, self.context.genes),
                de_pred=table,
                de_real=self.real_table.filter(pl.col("target").is_in(list(defined))),
                control_pert=self.label,
                pert_col=_KEY,
                outdir=folder,
                allow_discrete=True,  # never rescale: whole numbers would be normalised a second time
            )
            wanted = {*DE_METRICS, *MEAN_METRICS, "de_nsig_counts"}
            results, _ = evaluator.compute(
                profile="full",
                skip_metrics=[name for name in metrics_registry.list_metrics() if name not in wanted],
                write_csv=False,
            )
        rows = {name: list(results[name]) for name in results.columns}
        names = rows.pop(_KEY)
        for column, values in rows.items():
            column = _COUNT_COLUMNS.get(column, column)
            if column in frame.columns:
                frame.loc[names, column] = np.array([np.nan if v is None else v for v in values], dtype=float)
        frame.loc[[name for name in frame.index if name not in defined]] = np.nan
        # A metric that cell-eval does not know any more, or whose error it swallowed, would just be absent.
        unknown = sorted(wanted - set(metrics_registry.list_metrics()))
        errors = errors + [f"cell-eval has no metric {name!r}" for name in unknown]
        problems = [f"cell type {self.context.cell_type!r}: {message}" for message in errors]
        return frame, table, problems

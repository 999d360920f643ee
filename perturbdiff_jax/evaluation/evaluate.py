"""evaluate(): predictions against real cells, beside baselines and a ceiling, into a few small files.

The story in reading order: read both sides, score every model in every cell type, summarise, write, print.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Collection

import pandas as pd

from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.evaluation import (
    calibration,
    celleval,
    exports,
    model_rows,
    neighbourhood,
    outputs,
    spread,
)
from perturbdiff_jax.evaluation.account import settings_of
from perturbdiff_jax.evaluation.baselines import Training, training_of
from perturbdiff_jax.evaluation.columns import find_keys, open_store, real_look
from perturbdiff_jax.evaluation.contexts import pool
from perturbdiff_jax.evaluation.inputs import Keys
from perturbdiff_jax.evaluation.mean_changes import mean_changes
from perturbdiff_jax.evaluation.predicted import Predicted, named, read_all
from perturbdiff_jax.evaluation.projection import project, sample
from perturbdiff_jax.evaluation.real_cells import read_contexts
from perturbdiff_jax.evaluation.real_tables import FOLDER, RealTables
from perturbdiff_jax.evaluation.scored_genes import check_rivals, unmeasured_genes
from perturbdiff_jax.evaluation.stages import stage, timed
from perturbdiff_jax.evaluation.summary import (
    Summary,
    by_cell_type,
    compare,
    notes,
    summarise,
    table,
    verdict,
)
from perturbdiff_jax.evaluation.training_share import TrainingShare


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What evaluate() found: `rows` (model, cell_type, perturbation, metrics), `summary`, `settings`.

    `pooled`: the rows over all cell types together, None if not asked for.
    """

    rows: pd.DataFrame
    summary: Summary
    settings: dict
    output: pathlib.Path
    pooled: pd.DataFrame | None = None


@timed()
def evaluate(
    pred,
    real,
    output,
    *,
    perturbation_key: str,
    control: str,
    cell_type_key: str | None = None,
    batch_key: str | None = None,
    store=None,
    fraction: float | None = None,
    fraction_seed: int = 0,
    total_key: str | None = None,
    genes_by_position: bool = False,
    pooled: bool = False,
    export: Collection[str] = (),
    cache=None,
    seed: int = 0,
    is_log1p: bool = True,
    echo: Callable[[str], None] = print,
) -> Evaluation:
    """Scores `pred` against `real` and writes metrics.csv, metrics_all.csv, summary.json and more (outputs.write_all).

    About the first prediction: de.csv.gz, mean_changes.csv.gz, pca.csv, umap.csv, and with draws calibration.csv.

    pred: h5ad path or AnnData, log1p-normalised; its control cells are not scored, and of several draws only the
    first, so that both sides have as many cells. A mapping {name: path or AnnData} scores several at once, on the
    conditions and genes that all of them have; the first is the one that the gene table, the plane of cells, the
    calibration and the page are about. summary.json has the means over all rows ("models"), per cell type where there
    are several ("cell_types") and "pooled" ones.
    real: h5ad path, AnnData (log1p-normalised or raw counts) or a store directory (its test groups). Real
    cells are restricted to the (perturbation, cell type[, batch]) triples of pred; the real control cells of
    those contexts serve both sides, for every model. Raw counts are normalised to pred's
    uns["perturbdiff"]["target_sum"] (10,000 without) by obs[total_key] or the sum over the file's genes. Genes that a
    store has but does not measure are left out.
    cell_type_key, batch_key: obs columns; by default those that pred's uns["perturbdiff"]["keys"] or the
    store names, if all files have them. store: path or Store whose training groups give the baselines.
    fraction, fraction_seed: the share of the store's perturbed training cells that the baselines get
    (data/low_data.py); None: the share that the predictions were trained on, as pred's uns["perturbdiff"] tells.
    genes_by_position: predictions whose var_names are numbers (STATE's) have the real file's genes, in its order.
    pooled: also score the cells of all cell types together, one row per perturbation (metrics_pooled.csv); the
    time of one more cell type that is as large as all of them.
    export: of "cell-eval", "cell-eval2": the pairs of h5ad files that these tools score, in a folder of that name.
    cache: directory that keeps the real cells' differential expression for later calls; output/real_de if None.
    is_log1p: False computes DE fold changes like cell-eval under allow_discrete=True (one logarithm more);
    only for comparing with tables made that way.
    The row "ceiling" scores one random half of the real cells as the prediction of the other.
    Raises RequestError for input that cannot be scored; then nothing is written.
    """
    started = time.monotonic()
    output = pathlib.Path(output)
    if output.exists() and not output.is_dir():
        raise RequestError(f"output {output} is a file; give a directory.")
    export = (export,) if isinstance(export, str) else tuple(export)
    exports.check_formats(export)
    tables = RealTables(output / FOLDER if cache is None else cache, echo)
    sources = named(pred)
    share = TrainingShare.asked(fraction, fraction_seed, store)
    store = open_store(store)
    columns, real_genes, manifest = real_look(real)
    keys = find_keys(
        sources,
        columns,
        manifest if store is None else store.manifest["keys"] | manifest,
        Keys(perturbation_key, control, cell_type_key, batch_key),
        echo,
    )
    lacking = unmeasured_genes(real, echo)
    predicted = read_all(sources, keys, real_genes, lacking, by_position=genes_by_position, echo=echo)
    contexts, normalisation = read_contexts(
        real,
        keys,
        set(predicted.conditions),
        predicted.genes,
        target_sum=predicted.target_sum,
        total_key=total_key,
        echo=echo,
    )
    echo(normalisation)
    order = predicted.order_check(contexts)
    for name, correlation in order.items():
        echo(
            f"genes by position: {name}: its mean correlates {correlation:g} over genes with the real control cells "
            "(a wrong order of genes gives about 0)"
        )
    if not celleval.installed():
        echo(celleval.MISSING)
    cells = _by_name(predicted, contexts)
    training = None
    if store is not None:
        share = share or TrainingShare.of_predictions(predicted.shares)
        training = _training(store, predicted.genes, share, echo)
    rivals = model_rows.Rivals.fit(training, predicted.genes)

    rule = model_rows.Rule(control, celleval.installed(), is_log1p, tables)
    found = model_rows.score_all(contexts, cells, rivals, rule, seed=seed, pooled=pooled, echo=echo)
    if tables.read:
        known = f"{tables.read} of {tables.read + tables.computed} tables"
        echo(f"real cells' differential expression: {known} read from {tables.directory}")
    summary = summarise(found.rows, seed)
    summaries = {"models": summary}
    if len(contexts) > 1:
        summaries["cell_types"] = by_cell_type(found.rows, seed)
    if found.pooled is not None:
        summaries["pooled"] = summarise(found.pooled, seed)
    first = next(iter(cells))
    error = predicted.errors.get(first, spread.TRUSTED)
    draws = {one.cell_type: predicted.draws_for(first, one) for one in contexts}
    drawn = pd.concat(calibration.calibrate(draws[one.cell_type], one, error=error) for one in contexts)
    if len(drawn):
        summaries["calibration"] = calibration.summary(drawn, seed)
    shown = sample(
        contexts,
        {name: pool(part) for name, part in cells[first].items()},
        control,
        model_rows.generator(seed, "projection"),
    )
    no_umap = neighbourhood.why_not(shown)
    pictured = {
        outputs.PCA_FILE: project(shown),
        outputs.UMAP_FILE: None if no_umap else neighbourhood.embed(shown, seed),
        outputs.CHANGES_FILE: mean_changes(contexts, cells[first], draws, error),
        outputs.CALIBRATION_FILE: drawn,
    }
    settings = settings_of(
        predicted,
        contexts,
        cells,
        found,
        keys=keys,
        seed=seed,
        is_log1p=is_log1p,
        normalisation=normalisation,
        linear=rivals.linear,
        share=share,
        order=order,
        error=predicted.errors.get(first),
        tables=tables,
        no_umap=no_umap,
        seconds=time.monotonic() - started,
    )
    outputs.write_all(output, found, summaries, settings, pictured)
    exports.write_exports(output, export, contexts, cells, keys, echo)
    told = calibration.lines(drawn, error) if len(drawn) else []
    for line in [*table(summary), *_verdicts(summary, list(cells)), *told, *notes(settings)]:
        echo(line)
    echo(f"results: {output}")
    return Evaluation(found.rows, summary, settings, output, found.pooled)


@stage("training cells")
def _training(store, genes: tuple[str, ...], share: TrainingShare, echo) -> Training:
    check_rivals(store, genes, echo)
    return training_of(share.cells_of(store, echo), genes)


def _by_name(predicted: Predicted, contexts) -> dict[str, dict]:
    """{name: {cell type: cells per (batch, perturbation)}} of the predictions."""
    parts = {context.cell_type: predicted.cells_for(context) for context in contexts}
    return {name: {kind: part[name] for kind, part in parts.items()} for name in predicted.sides}


def _verdicts(summary: Summary, names: list[str]) -> list[str]:
    if len(names) == 1:
        return verdict(compare(summary, names[0], names))
    return [line for name in names for line in verdict(compare(summary, name, names), name)]

"""evaluate(): predictions against real cells, beside baselines and a ceiling, into a few small files.

The story in reading order: read both sides, score every model in every cell type, summarise, write, print.
"""

import dataclasses
import pathlib
import time
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from perturbdiff_jax.errors import RequestError, shorten
from perturbdiff_jax.evaluation import celleval
from perturbdiff_jax.evaluation.baselines import (
    Ridge,
    Training,
    control_cells,
    trained_baselines,
    training_of,
)
from perturbdiff_jax.evaluation.contexts import Context, Prediction, halves, pool
from perturbdiff_jax.evaluation.inputs import Keys, Side, closing, open_file, read_predicted
from perturbdiff_jax.evaluation.metrics import METRICS
from perturbdiff_jax.evaluation.outputs import write_all
from perturbdiff_jax.evaluation.projection import project
from perturbdiff_jax.evaluation.real_cells import is_store, read_contexts, triples
from perturbdiff_jax.evaluation.scoring import Scorer
from perturbdiff_jax.evaluation.summary import (
    CEILING,
    OURS,
    Summary,
    compare,
    notes,
    summarise,
    table,
    undefined,
    verdict,
)
from perturbdiff_jax.evaluation.threads import blas_threads


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What evaluate() found: `rows` (model, cell_type, perturbation, metrics), `summary`, `settings`."""

    rows: pd.DataFrame
    summary: Summary
    settings: dict
    output: pathlib.Path


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
    total_key: str | None = None,
    seed: int = 0,
    is_log1p: bool = True,
    echo: Callable[[str], None] = print,
) -> Evaluation:
    """Scores `pred` against `real` and writes metrics.csv, metrics_all.csv, summary.json, pca.csv, de.csv.gz.

    pred: h5ad path or AnnData, log1p-normalised, all draws pooled; its control cells are not scored.
    real: h5ad path, AnnData (log1p-normalised or raw counts) or a store directory (its test groups). Real
    cells are restricted to the (perturbation, cell type[, batch]) triples of pred; the real control cells of
    those contexts serve both sides, for every model. Raw counts are normalised to pred's
    uns["perturbdiff"]["target_sum"] (10,000 without) by obs[total_key] or the sum over the file's genes.
    cell_type_key, batch_key: obs columns; by default those that pred's uns["perturbdiff"]["keys"] or the
    store names, if both files have them. store: path or Store whose training groups give the baselines.
    is_log1p: False computes DE fold changes like cell-eval under allow_discrete=True (one logarithm more);
    only for comparing with tables made that way.
    The row "ceiling" scores one random half of the real cells as the prediction of the other.
    Raises RequestError for input that cannot be scored; then nothing is written.
    """
    started = time.monotonic()
    output = pathlib.Path(output)
    if output.exists() and not output.is_dir():
        raise RequestError(f"output {output} is a file; give a directory.")
    store = _opened(store)
    keys = _keys(pred, real, store, Keys(perturbation_key, control, cell_type_key, batch_key))
    predicted, facts = read_predicted(pred, keys)
    contexts, normalisation = read_contexts(
        real,
        keys,
        triples(predicted.conditions),
        predicted.genes,
        target_sum=facts.get("target_sum"),
        total_key=total_key,
        echo=echo,
    )
    echo(normalisation)
    if not celleval.installed():
        echo(celleval.MISSING)
    ours = {context.cell_type: _ours(predicted, context) for context in contexts}
    training = None if store is None else _training(store, predicted.genes)

    rows, changes, problems = _score_all(contexts, ours, training, control, seed, is_log1p, echo)
    summary = summarise(rows, seed)
    settings = {
        "keys": dataclasses.asdict(keys),
        "seed": seed,
        "de_is_log1p": is_log1p,
        "genes": len(predicted.genes),
        "control_rule": "real control cells of the same contexts on both sides, for every model",
        "scored_per": "cell type (its batches pooled)",
        "normalisation": normalisation,
        "energy": "half energy distance on log1p / 10, V-statistic",
        "ceiling": "real cells split in two random halves, controls whole; truth is half the cells",
        **_cell_counts(contexts, ours),
        "problems": problems,
        "undefined_rows": undefined(rows),
        "seconds": round(time.monotonic() - started, 1),
    }
    plane = project(
        contexts, {name: pool(cells) for name, cells in ours.items()}, control, _generator(seed, "projection")
    )
    write_all(output, rows, summary, settings, plane, changes)
    for line in [*table(summary), *verdict(compare(summary)), *notes(settings)]:
        echo(line)
    echo(f"results: {output}")
    return Evaluation(rows, summary, settings, output)


def _opened(store):
    if store is None or hasattr(store, "groups"):
        return store
    from perturbdiff_jax.data.store import Store

    return Store.open(store)


def _keys(pred, real, store, keys: Keys) -> Keys:
    """`keys`, with columns nobody named taken from the prediction's or the store's own account of them."""
    adata, _ = open_file(pred, "prediction")
    with closing(adata, pred):
        named = dict(dict(adata.uns.get("perturbdiff", {})).get("keys", {}))
        columns = set(adata.obs.columns)
    manifest = {} if store is None else store.manifest["keys"]
    if is_store(real):
        manifest = _opened(real).manifest["keys"]
        columns &= {column for column in manifest.values() if column}
    else:
        adata, _ = open_file(real, "real")
        with closing(adata, real):
            columns &= set(adata.obs.columns)
    found = {}
    for field in ("cell_type", "batch"):
        guesses = [column for column in (named.get(field), manifest.get(field)) if column in columns]
        found[field] = getattr(keys, field) or (str(guesses[0]) if guesses else None)
    return dataclasses.replace(keys, **found, dose=named.get("dose") or manifest.get("dose"))


def _training(store, genes: tuple[str, ...]) -> Training:
    missing = [gene for gene in genes if gene not in set(store.genes)]
    if missing:
        raise RequestError(f"store {store.path}: lacks predicted genes: {shorten(missing, most=5)}.")
    return training_of(store, genes)


def _ours(predicted: Side, context: Context) -> Prediction:
    own = predicted.conditions
    found = own[own["cell_type"] == context.cell_type].groupby(["batch", "perturbation"]).indices
    rows = np.flatnonzero((own["cell_type"] == context.cell_type).to_numpy())
    return {key: predicted.cells[rows[at]] for key, at in found.items() if key in context.real}


def _generator(seed: int, *purpose: str) -> np.random.Generator:
    return np.random.default_rng([seed, *(zlib.crc32(word.encode()) for word in purpose)])


def _models(
    context: Context, ours: Prediction, training: Training | None, ridge: Ridge | None, seed: int
) -> Iterator[tuple[str, Prediction]]:
    yield OURS, ours
    if training is not None:
        yield from trained_baselines(
            context, training, ridge, _generator(seed, context.cell_type, "baselines")
        )
    yield "control", control_cells(context, _generator(seed, context.cell_type, "control"))


def _score_all(contexts, ours, training, control: str, seed: int, is_log1p: bool, echo):
    """(rows of every model, gene table of ours or None, problems), cell type after cell type."""
    ridge = None if training is None else Ridge.fit(training)
    how = {"use_celleval": celleval.installed(), "is_log1p": is_log1p}
    frames, changes, problems = [], [], []
    started = time.monotonic()

    def add(model: str, scorer: Scorer, prediction: Prediction):
        frame, found, errors = scorer.score(pool(prediction))
        frames.append(frame.assign(model=model))
        problems.extend(f"{model}, {error}" for error in errors)
        return found

    for number, context in enumerate(contexts, 1):
        with blas_threads(context.values):
            scorer = Scorer(context, control, **how)
            for model, prediction in _models(context, ours[context.cell_type], training, ridge, seed):
                found = add(model, scorer, prediction)
                if model == OURS and found is not None:
                    changes.append(scorer.expression_changes(found))
            truth, half = halves(context, _generator(seed, context.cell_type, CEILING))
            if half:
                add(CEILING, Scorer(truth, control, **how), half)
        spent = time.monotonic() - started
        left = spent / number * (len(contexts) - number)
        echo(
            f"[{number}/{len(contexts)}] cell type {context.cell_type!r}: {len(context.perturbations)} "
            f"perturbations scored; {spent:.0f} s, about {left:.0f} s left"
        )
    rows = pd.concat(frames, ignore_index=True)
    order = {model: i for i, model in enumerate(dict.fromkeys(rows["model"]))}
    order[CEILING] = len(order)
    rows = rows.sort_values("model", key=lambda names: names.map(order), kind="stable", ignore_index=True)
    rows = rows[["model", "cell_type", "perturbation", *METRICS]]
    return rows, pd.concat(changes, ignore_index=True) if changes else None, problems


def _cell_counts(contexts, ours) -> dict:
    """Cells on both sides: the rank-sum test's power, and so the DE metrics, depend on them."""
    real = sum(cells.shape[0] for context in contexts for cells in context.real.values())
    mine = sum(cells.shape[0] for parts in ours.values() for cells in parts.values())
    control = sum(cells.shape[0] for context in contexts for cells in context.control.values())
    differ = sum(
        ours[context.cell_type][key].shape[0] != cells.shape[0]
        for context in contexts
        for key, cells in context.real.items()
    )
    return {
        "predicted_cells": mine,
        "real_cells": real,
        "control_cells": control,
        "conditions": sum(len(context.real) for context in contexts),
        "conditions_with_other_cell_count": differ,
    }

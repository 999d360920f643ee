"""Every model's rows: predictions, rivals and ceiling, cell type after cell type and, if asked, all together.

Owns the order of the models and the seeds of what is drawn. It must not know files.
"""

import dataclasses
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from perturbdiff_jax.evaluation.baselines import Ridge, Training, control_cells, trained_baselines
from perturbdiff_jax.evaluation.contexts import Context, Prediction, halves, pool, together
from perturbdiff_jax.evaluation.linear import Linear
from perturbdiff_jax.evaluation.metrics import METRICS
from perturbdiff_jax.evaluation.real_tables import RealTables
from perturbdiff_jax.evaluation.scoring import Scorer
from perturbdiff_jax.evaluation.stages import stage
from perturbdiff_jax.evaluation.summary import CEILING
from perturbdiff_jax.evaluation.threads import one_blas_thread

POOLED = "all cell types together"  # cell_type of the pooled rows


@dataclasses.dataclass(frozen=True)
class Rivals:
    """What is needed for the rivals: the training groups (None: only "control") and the models fitted to them."""

    training: Training | None
    ridge: Ridge | None
    linear: Linear | None

    @classmethod
    @stage("training cells")
    def fit(cls, training: Training | None, genes: tuple[str, ...]) -> "Rivals":
        if training is None:
            return cls(None, None, None)
        return cls(training, Ridge.fit(training), training.linear(genes))


@dataclasses.dataclass(frozen=True)
class ModelRows:
    """`rows` (model, cell_type, perturbation, METRICS), the same `pooled` over cell types (None if not asked).

    `changes`: gene table (scoring.DE_COLUMNS) of the first prediction, None without cell-eval; `problems`:
    metrics that failed, in words.
    """

    rows: pd.DataFrame
    pooled: pd.DataFrame | None
    changes: pd.DataFrame | None
    problems: list[str]


@dataclasses.dataclass(frozen=True)
class Rule:
    """How everything is scored: the control's label, whether cell-eval is there, its fold changes, kept tables."""

    control: str
    use_celleval: bool
    is_log1p: bool
    tables: RealTables | None

    def scorer(self, context: Context) -> Scorer:
        return Scorer(
            context,
            self.control,
            use_celleval=self.use_celleval,
            is_log1p=self.is_log1p,
            tables=self.tables,
        )


def generator(seed: int, *purpose: str) -> np.random.Generator:
    """The generator of one purpose: what is drawn for it depends on nothing else."""
    return np.random.default_rng([seed, *(zlib.crc32(word.encode()) for word in purpose)])


def score_all(
    contexts: Sequence[Context],
    predicted: Mapping[str, Mapping[str, Prediction]],
    rivals: Rivals,
    rule: Rule,
    *,
    seed: int,
    pooled: bool,
    echo: Callable[[str], None],
) -> ModelRows:
    """Scores every model in every context; `predicted[name][cell type]` are the predictions, in their order."""
    first = next(iter(predicted))
    frames, changes, problems = [], [], []
    started = time.monotonic()
    for number, context in enumerate(contexts, 1):
        with one_blas_thread():
            scorer = rule.scorer(context)
            for model, prediction in _models(context, predicted, rivals, seed):
                frame, table, errors = scorer.score(pool(prediction))
                frames.append(frame.assign(model=model))
                problems.extend(f"{model}, {error}" for error in errors)
                if model == first and table is not None:
                    changes.append(scorer.expression_changes(table))
            truth, half = halves(context, generator(seed, context.cell_type, CEILING))
            if half:
                frame, _, errors = rule.scorer(truth).score(pool(half))
                frames.append(frame.assign(model=CEILING))
                problems.extend(f"{CEILING}, {error}" for error in errors)
        spent = time.monotonic() - started
        left = spent / number * (len(contexts) - number)
        echo(
            f"[{number}/{len(contexts)}] cell type {context.cell_type!r}: {len(context.perturbations)} "
            f"perturbations scored; {spent:.0f} s, about {left:.0f} s left"
        )
    rows = _ordered(frames)
    whole = None
    if pooled:
        if len(contexts) == 1:
            whole = rows.assign(cell_type=POOLED)
        else:
            whole = _score_together(contexts, predicted, rivals, rule, seed, problems)
            echo(f"{POOLED}: {whole['perturbation'].nunique()} perturbations scored")
    return ModelRows(rows, whole, pd.concat(changes, ignore_index=True) if changes else None, problems)


def _score_together(contexts, predicted, rivals, rule, seed, problems: list[str]) -> pd.DataFrame:
    """Rows of one context that holds the cells of all, for every model: the same cells as in the rows by type."""
    whole = together(POOLED, {context.cell_type: context for context in contexts})
    frames = []
    with one_blas_thread():
        scorer = rule.scorer(whole)
        # Every context yields the same models in the same order, so one model's parts come together.
        for parts in zip(*(_models(context, predicted, rivals, seed) for context in contexts), strict=True):
            model = parts[0][0]
            prediction = _joined(zip(contexts, (part for _, part in parts)))
            frame, _, errors = scorer.score(pool(prediction))
            frames.append(frame.assign(model=model))
            problems.extend(f"{model}, {error}" for error in errors)
        split = [halves(context, generator(seed, context.cell_type, CEILING)) for context in contexts]
        truth = together(POOLED, {part.cell_type: part for part, _ in split})
        if truth.real:
            frame, _, errors = rule.scorer(truth).score(pool(_joined(split)))
            frames.append(frame.assign(model=CEILING))
            problems.extend(f"{CEILING}, {error}" for error in errors)
    return _ordered(frames)


def _joined(parts: Iterable[tuple[Context, Prediction]]) -> Prediction:
    """One prediction for the context that `together` makes."""
    return {
        ((context.cell_type, batch), name): cells
        for context, prediction in parts
        for (batch, name), cells in prediction.items()
    }


def _models(
    context: Context, predicted: Mapping[str, Mapping[str, Prediction]], rivals: Rivals, seed: int
) -> Iterator[tuple[str, Prediction]]:
    for name, by_type in predicted.items():
        yield name, by_type[context.cell_type]
    if rivals.training is not None:
        yield from trained_baselines(
            context,
            rivals.training,
            rivals.ridge,
            rivals.linear,
            generator(seed, context.cell_type, "baselines"),
        )
    yield "control", control_cells(context, generator(seed, context.cell_type, "control"))


def _ordered(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """One table, model after model in the order of their appearance, the ceiling last."""
    rows = pd.concat(frames, ignore_index=True)
    order = {model: i for i, model in enumerate(dict.fromkeys(rows["model"]))}
    order[CEILING] = len(order)
    rows = rows.sort_values("model", key=lambda names: names.map(order), kind="stable", ignore_index=True)
    return rows[["model", "cell_type", "perturbation", *METRICS]]

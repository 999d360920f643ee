"""Simple rivals of a trained model, from the training groups of a store and the test context's control cells.

A training cell is a cell of a training group or a control cell (controls are in every split). Only means of
groups are needed, so a store of any size is read once, in blocks. Clipping at 0 keeps predictions in the
range of log1p expression. A baseline that is undefined for a condition (perturbation never trained, batch
unknown) says None and is scored NaN.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from perturbdiff_jax.evaluation.contexts import Context, Prediction, chosen_rows, resample
from perturbdiff_jax.evaluation.linear import Linear
from perturbdiff_jax.evaluation.metrics import mean_of
from perturbdiff_jax.evaluation.populations import Copies, Moved

TRAINED_BASELINES = (
    "mean per perturbation",
    "mean per cell type",
    "mean per batch",
    "mean overall",
    "context mean + mean delta",
    "control cells + mean delta",
    "ridge",
    "linear",
)
RIDGE_PENALTY = 1.0
_BLOCK = 65_536  # cells read from the store at once


@dataclasses.dataclass(frozen=True)
class TrainingGroup:
    """Mean log1p expression [G] of the `size` cells of one (cell type, batch, perturbation)."""

    cell_type: str
    batch: str
    perturbation: str
    is_control: bool
    size: int
    mean: np.ndarray
    control_mean: np.ndarray  # [G] of the control group that serves this group (its own mean for a control)


@dataclasses.dataclass(frozen=True)
class Training:
    """All training groups, controls among them; the genes' order is the evaluation's."""

    groups: tuple[TrainingGroup, ...]

    def mean(self, keep: Callable[[TrainingGroup], bool]) -> np.ndarray | None:
        """Mean training cell [G] (each cell counts once) of the kept groups, None without any."""
        kept = [group for group in self.groups if keep(group)]
        if not kept:
            return None
        return np.average([group.mean for group in kept], axis=0, weights=[group.size for group in kept])

    def mean_delta(self, perturbation: str) -> np.ndarray | None:
        """Average training shift [G]: group mean minus control mean; each training context counts once."""
        shifts = [
            group.mean - group.control_mean
            for group in self.groups
            if group.perturbation == perturbation and not group.is_control
        ]
        return np.mean(shifts, axis=0) if shifts else None

    def linear(self, genes: tuple[str, ...]) -> Linear | None:
        """The rival "linear" of these groups: their mean cells as pseudobulks, their mean shifts to fit."""
        names = sorted({group.perturbation for group in self.groups if not group.is_control})
        shifts = {name: self.mean_delta(name) for name in names}
        return Linear.fit(np.stack([group.mean for group in self.groups]), shifts, genes)


def training_of(store, genes: Iterable[str]) -> Training:
    """Reads a Store's training and control groups once, keeping their means of `genes` (all in the store)."""
    groups = store.groups
    order = {gene: i for i, gene in enumerate(store.genes)}
    columns = np.array([order[gene] for gene in genes])
    train = np.flatnonzero((groups.split == 0) & ~groups.is_control)
    wanted = np.union1d(train, np.flatnonzero(groups.is_control))
    means: dict[int, np.ndarray] = {}
    for first, last in _runs(groups, wanted):
        start = int(groups.start[first])
        cells = store.read(start, int(groups.start[last] + groups.size[last]))
        for i in range(first, last + 1):
            a = int(groups.start[i]) - start
            means[i] = mean_of(cells[a : a + int(groups.size[i])])[columns]
    return Training(
        tuple(
            TrainingGroup(
                cell_type=str(store.cell_types[groups.cell_type[i]]),
                batch=str(store.batches[groups.batch[i]]),
                perturbation=str(store.perturbations[groups.perturbation[i]]),
                is_control=bool(groups.is_control[i]),
                size=int(groups.size[i]),
                mean=means[int(i)],
                control_mean=means[int(groups.control[i])],
            )
            for i in wanted
        )
    )


def _runs(groups, wanted: np.ndarray) -> Iterable[tuple[int, int]]:
    """Consecutive wanted groups joined to blocks of at most 65,536 cells: one read for many small groups."""
    first = previous = None
    cells = 0
    for i in map(int, wanted):
        size = int(groups.size[i])
        if first is not None and (i != previous + 1 or cells + size > _BLOCK):
            yield first, previous
            first = None
        if first is None:
            first, cells = i, 0
        previous, cells = i, cells + size
    if first is not None:
        yield first, previous


@dataclasses.dataclass(frozen=True)
class Ridge:
    """Linear regression of a training cell's expression [G] on one-hot cell type, batch and perturbation.

    Least squares over all training cells (groups weighted by their size, control cells with no perturbation
    set) plus RIDGE_PENALTY times the squared coefficients; the intercept is not penalised. The penalty, 1.0,
    is worth one cell per coefficient and is not tuned. Undefined for names that training does not have.
    """

    features: tuple[tuple[str, str], ...]
    intercept: np.ndarray
    coefficients: np.ndarray

    @classmethod
    def fit(cls, training: Training, penalty: float = RIDGE_PENALTY) -> "Ridge":
        features = sorted({name for group in training.groups for name in _names(group)})
        position = {name: i for i, name in enumerate(features)}
        x = np.zeros((len(training.groups), len(features)))
        for row, group in enumerate(training.groups):
            x[row, [position[name] for name in _names(group)]] = 1.0
        y = np.stack([group.mean for group in training.groups])
        weight = np.array([group.size for group in training.groups], dtype=np.float64)
        x_mean, y_mean = np.average(x, axis=0, weights=weight), np.average(y, axis=0, weights=weight)
        x, y = x - x_mean, y - y_mean
        gram = x.T @ (weight[:, None] * x) + penalty * np.eye(len(features))
        coefficients = np.linalg.solve(gram, x.T @ (weight[:, None] * y))
        return cls(tuple(features), y_mean - x_mean @ coefficients, coefficients)

    def predict(self, cell_type: str, batch: str, perturbation: str) -> np.ndarray | None:
        """Mean cell [G], clipped at 0, or None when one of the names was never trained."""
        names = (("cell_type", cell_type), ("batch", batch), ("perturbation", perturbation))
        if any(name not in self.features for name in names):
            return None
        rows = [self.features.index(name) for name in names]
        return np.maximum(self.intercept + self.coefficients[rows].sum(axis=0), 0.0)


def _names(group: TrainingGroup) -> list[tuple[str, str]]:
    names = [("cell_type", group.cell_type), ("batch", group.batch)]
    return names if group.is_control else [*names, ("perturbation", group.perturbation)]


def _copies(mean: np.ndarray | None, count: int) -> Copies | None:
    return None if mean is None else Copies.of(np.maximum(mean, 0.0), count)


def control_cells(context: Context, rng: np.random.Generator) -> Prediction:
    """Baseline "control": as many control cells of the same (cell type, batch) as there are real cells."""
    return {
        (batch, name): resample(context.control[batch], cells.shape[0], rng)
        for (batch, name), cells in context.real.items()
    }


def _shifted(context: Context, training: Training, rng: np.random.Generator) -> Prediction:
    prediction = {}
    for (batch, name), cells in context.real.items():
        shift = training.mean_delta(name)
        if shift is None:
            prediction[batch, name] = None
            continue
        control = context.control[batch]
        rows = chosen_rows(control, cells.shape[0], rng)
        prediction[batch, name] = Moved(((control, rows, shift),))
    return prediction


def trained_baselines(
    context: Context, training: Training, ridge: Ridge, linear: Linear | None, rng: np.random.Generator
) -> Iterator[tuple[str, Prediction]]:
    """(name, prediction) of every baseline that learns from the training groups, as many cells as real ones.

    The four means (point masses: copies of one mean training cell): of the perturbation, the cell type, the
    batch, overall. "context mean + mean delta": the mean control cell of the test context plus the average
    training shift of the perturbation. "control cells + mean delta": every control cell of the test context
    shifted by it. "ridge": see Ridge. "linear": the mean control cell of the test context plus the shift of
    `linear`. All clipped at 0.
    """
    control_means = {batch: mean_of(cells) for batch, cells in context.control.items()}
    shifts = {name: training.mean_delta(name) for name in context.perturbations}

    def means(mean: Callable[[str, str], np.ndarray | None]) -> Prediction:
        return {
            (batch, name): _copies(mean(batch, name), cells.shape[0])
            for (batch, name), cells in context.real.items()
        }

    own = {name: training.mean(lambda group, name=name: group.perturbation == name) for name in shifts}
    yield (
        "mean per perturbation",
        means(lambda _, name: own[name]),
    )
    own_type = training.mean(lambda group: group.cell_type == context.cell_type)
    yield "mean per cell type", means(lambda *_: own_type)
    yield "mean per batch", means(lambda batch, _: training.mean(lambda group: group.batch == batch))
    overall = training.mean(lambda group: True)
    yield "mean overall", means(lambda *_: overall)
    yield (
        "context mean + mean delta",
        means(lambda batch, name: None if shifts[name] is None else control_means[batch] + shifts[name]),
    )
    yield "control cells + mean delta", _shifted(context, training, rng)
    yield "ridge", means(lambda batch, name: ridge.predict(context.cell_type, batch, name))
    linear_shifts = {name: None if linear is None else linear.shift(name) for name in shifts}
    yield (
        "linear",
        means(
            lambda batch, name: (
                None if linear_shifts[name] is None else control_means[batch] + linear_shifts[name]
            )
        ),
    )

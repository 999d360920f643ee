"""Two models condition by condition: who is better where, and the scores that the page's chart draws from."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from perturbdiff_jax.evaluation.page import embedded, glossary, verdict
from perturbdiff_jax.evaluation.page.glossary import CEILING, HEADLINE

KEYS = ["cell_type", "perturbation"]
BUDGET = 4_000_000  # characters of the scores inside the page
DIGITS = (4, 6, 9, 17)  # as many as it takes to tell the models of a condition apart
# One number for all perturbations of a cell type: nothing to compare by condition.
_PER_CELL_TYPE = "de_spearman_sig"


@dataclasses.dataclass(frozen=True)
class Duel:
    """How often `model` is better than `rival` on `metric`, over the conditions where both have a value."""

    model: str
    rival: str
    metric: str
    wins: int
    ties: int
    losses: int

    @property
    def conditions(self) -> int:
        return self.wins + self.ties + self.losses

    @property
    def rate(self) -> float:
        """Share of conditions won; NaN without any."""
        return self.wins / self.conditions if self.conditions else float("nan")

    @property
    def words(self) -> str:
        if not self.conditions:
            return "no condition where both have a value"
        many = "condition" if self.conditions == 1 else "conditions"
        text = f"better in {self.wins:,} of {self.conditions:,} {many}, {100 * self.rate:.0f} %"
        return text + (f"; {self.ties:,} tie{'' if self.ties == 1 else 's'}" if self.ties else "")


@dataclasses.dataclass(frozen=True)
class Scores:
    """Every model's scores: `values` [metric, model, condition], NaN where there is none; `conditions` has KEYS."""

    metrics: tuple[str, ...]
    models: tuple[str, ...]
    conditions: pd.DataFrame
    values: np.ndarray

    @classmethod
    def of(cls, table: pd.DataFrame) -> "Scores":
        """From metrics_all.csv (model, cell_type, perturbation, metrics): headline metrics first."""
        names = glossary.order_metrics(table.columns.difference(["model", *KEYS]))
        names = [name for name in names if glossary.metric(name).better and name != _PER_CELL_TYPE]
        names = [name for name in HEADLINE if name in names] + [n for n in names if n not in HEADLINE]
        models = list(dict.fromkeys(table["model"]))
        table = table.drop_duplicates(["model", *KEYS], keep="last")
        conditions = table[KEYS].drop_duplicates().reset_index(drop=True)
        index = pd.MultiIndex.from_frame(conditions)
        values = np.full((len(names), len(models), len(conditions)), np.nan)
        for place, model in enumerate(models):
            mine = table[table["model"] == model].set_index(KEYS)[names].reindex(index)
            values[:, place] = mine.to_numpy(dtype=float).T
        values[~np.isfinite(values)] = np.nan
        return cls(tuple(names), tuple(models), conditions, values)

    def of_model(self, metric: str, model: str) -> np.ndarray:
        """Scores [condition] of one model."""
        return self.values[self.metrics.index(metric), self.models.index(model)]

    def paired(self, metric: str, model: str, rival: str) -> pd.DataFrame:
        """Columns cell_type, perturbation, ours, rival: the conditions where both have a value."""
        sides = {"ours": self.of_model(metric, model), "rival": self.of_model(metric, rival)}
        return self.conditions.assign(**sides).dropna(subset=list(sides))

    def duel(self, metric: str, model: str, rival: str) -> Duel:
        """Who is better how often, at full precision."""
        gain = glossary.metric(metric).better * (self.of_model(metric, model) - self.of_model(metric, rival))
        # NaN is neither won nor lost.
        return Duel(model, rival, metric, *(int(n.sum()) for n in (gain > 0, gain == 0, gain < 0)))


def rivals(scores: Scores, models: Mapping, metric: str) -> tuple[str | None, list[str]]:
    """(the best baseline by its mean, all other models but ours with the ceiling last)."""
    others = [name for name in scores.models if name not in (glossary.ours(), CEILING)]
    others += [CEILING] if CEILING in scores.models else []
    best = verdict.best(models, metric, [n for n in verdict.baselines(models) if n in scores.models])
    return best, others


def record(scores: Scores) -> tuple[dict, list[str]]:
    """(scores for the page's script, labels of the metrics that were left out to keep the page small).

    Numbers have four meaningful digits, more where two models of a condition would become the same: who is better
    where stays what it is at full precision.
    """
    predictions = glossary.predictions()
    kinds = {CEILING: "ceiling", **dict.fromkeys(predictions, "prediction")}
    places = {name: pd.factorize(scores.conditions[name]) for name in KEYS}
    values, spent, left_out = [], 0, []
    for table in scores.values:
        rows = _shortened(table)
        spent += sum(len(str(value)) + 1 for row in rows for value in row)
        if values and spent > BUDGET:
            left_out = [glossary.metric(other).label for other in scores.metrics[len(values) :]]
            break
        values.append(rows)
    metrics = [
        {"name": name, "label": known.label, "better": known.better}
        for name, known in ((name, glossary.metric(name)) for name in scores.metrics[: len(values)])
    ]
    found = {
        "ours": glossary.ours(),
        "models": [{"name": name, "kind": kinds.get(name, "baseline")} for name in scores.models],
        "metrics": metrics,
        "values": values,
    }
    for name, (codes, labels) in places.items():
        found[name] = {"codes": codes.tolist(), "names": [str(label) for label in labels]}
    return found, left_out


def _shortened(table: np.ndarray) -> list[list]:
    """Rounded scores of [model, condition], as lists."""
    result = [[None] * table.shape[1] for _ in table]
    for place, column in enumerate(table.T):
        different = len(set(column[~np.isnan(column)]))
        for digits in DIGITS:
            short = [embedded.rounded(value, digits) for value in column.tolist()]
            if len(set(short) - {None}) == different:
                break
        for row, value in zip(result, short):
            row[place] = value
    return result


def table_of(scores: Scores, metrics: Sequence[str], others: Sequence[str]) -> list[list[Duel]]:
    """Our duels, a row for each of `others`, a column for each metric."""
    return [[scores.duel(metric, glossary.ours(), rival) for metric in metrics] for rival in others]

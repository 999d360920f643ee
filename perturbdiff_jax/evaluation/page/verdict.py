"""How our model stands against the best baseline and the ceiling, in numbers and in words.

Two means are called apart only when their bootstrap 95 % intervals do not overlap.
"""

import dataclasses
import math

from perturbdiff_jax.evaluation.page import glossary
from perturbdiff_jax.evaluation.page.glossary import CEILING, HEADLINE


@dataclasses.dataclass(frozen=True)
class Standing:
    """Our mean of one metric beside the best baseline's, as (mean, low, high), NaN where unknown."""

    metric: str
    ours: tuple[float, float, float]
    rival: str | None
    rival_entry: tuple[float, float, float]
    ceiling: float

    @property
    def ahead(self) -> bool:
        return glossary.metric(self.metric).better * (self.ours[0] - self.rival_entry[0]) > 0

    @property
    def apart(self) -> bool:
        (_, low, high), (_, other_low, other_high) = self.ours, self.rival_entry
        return low > other_high or other_low > high  # False where an end is NaN

    @property
    def level(self) -> bool:
        return self.ours[0] == self.rival_entry[0]

    @property
    def phrase(self) -> str:
        if self.rival is None:
            return "no baseline to compare with"
        if self.level:
            return "level with the best baseline"
        where = "ahead of" if self.ahead else "behind"
        return (
            f"{where} the best baseline, {'intervals apart' if self.apart else 'but the intervals overlap'}"
        )


def entry(models: dict, model: str, metric: str) -> tuple[float, float, float]:
    """(mean, low, high) of summary.json, NaN for what is missing or null."""
    cell = models.get(model, {}).get(metric) or {}
    return tuple(_number(cell.get(name)) for name in ("mean", "low", "high"))


def count(models: dict, model: str, metric: str) -> int | None:
    value = _number((models.get(model, {}).get(metric) or {}).get("count"))
    return None if math.isnan(value) else int(value)


def baselines(models: dict) -> list[str]:
    return [model for model in models if model not in (*glossary.predictions(), CEILING)]


def best(models: dict, metric: str, among: list[str]) -> str | None:
    """The model of `among` with the best mean of `metric`; None without a value or a direction."""
    better = glossary.metric(metric).better
    scored = [(better * entry(models, model, metric)[0], model) for model in among]
    scored = [pair for pair in scored if not math.isnan(pair[0])]
    return max(scored, key=lambda pair: pair[0])[1] if scored and better else None


def standing(models: dict, metric: str) -> Standing | None:
    """Our standing on `metric`; None when we have no value or the metric has no direction."""
    ours = entry(models, glossary.ours(), metric)
    if math.isnan(ours[0]) or not glossary.metric(metric).better:
        return None
    rival = best(models, metric, baselines(models))
    nothing = (math.nan,) * 3
    rival_entry = entry(models, rival, metric) if rival else nothing
    return Standing(metric, ours, rival, rival_entry, entry(models, CEILING, metric)[0])


def standings(models: dict) -> list[Standing]:
    """Standings of every metric with a direction, in the page's order."""
    names = glossary.order_metrics(name for rows in models.values() for name in rows)
    return [found for name in names if (found := standing(models, name))]


def sentences(models: dict) -> list[str]:
    """The verdict in two or three sentences of plain text (unescaped)."""
    found = standings(models)
    if not found:
        return ["Nothing can be said about the model: no metric has a value."]
    headline = [item for item in found if item.metric in HEADLINE]
    compared = [item for item in found if item.rival is not None]
    if not compared:
        text = ["There are no baselines to compare with: evaluate with `--baselines STORE` to have them."]
    else:
        text = [_headline(headline or compared[:3]), _tally(compared)]
    with_ceiling = [item for item in headline if not math.isnan(item.ceiling)]
    return text + ([_ceiling(with_ceiling)] if with_ceiling else [])


def _headline(items: list[Standing]) -> str:
    kinds = {
        "is ahead of {it}, with intervals that do not overlap, on": lambda s: s.ahead and s.apart,
        "is ahead of {it}, but within the intervals, on": lambda s: s.ahead and not s.apart,
        "is level with {it} on": lambda s: s.level,
        "is behind {it}, but within the intervals, on": lambda s: not (s.ahead or s.level or s.apart),
        "is behind {it}, with intervals that do not overlap, on": lambda s: not s.ahead and s.apart,
    }
    parts = []
    for words, belongs in kinds.items():
        if labels := [glossary.metric(item.metric).words for item in items if belongs(item)]:
            rival = "the best baseline" if not parts else "it"
            parts.append(f"{words.format(it=rival)} {_listed(labels)}")
    who = "PerturbDiff" if glossary.ours() == glossary.OURS else glossary.ours()
    return f"{who} {'; it '.join(parts)}."


def _tally(items: list[Standing]) -> str:
    ahead = sum(item.ahead for item in items)
    clear = sum(item.ahead and item.apart for item in items)
    lost = sum(not item.ahead and item.apart for item in items)
    clearly = f" ({clear} with intervals apart)" if ahead else ""
    return (
        f"Over all {len(items)} metrics with a direction it beats the best baseline on {ahead or 'none'}"
        f"{clearly} and is clearly behind on {lost or 'none'}."
    )


def _ceiling(items: list[Standing]) -> str:
    parts = []
    for item in items:
        label, better = glossary.metric(item.metric).words, glossary.metric(item.metric).better
        gap = better * (item.ceiling - item.ours[0])
        if gap <= 0:
            parts.append(
                f"{label} is at the ceiling ({figure(item.ours[0])}, ceiling {figure(item.ceiling)})"
            )
        else:
            parts.append(
                f"{label} is {figure(gap)} away ({figure(item.ours[0])}, ceiling {figure(item.ceiling)})"
            )
    return f"Distance to the ceiling, one half of the real cells scored against the other: {_listed(parts)}."


def figure(value: float) -> str:
    """A number with three meaningful digits: 0.812, 0.0034, 141, and a dash for NaN."""
    if not math.isfinite(value):
        return "–"
    if value and abs(value) < 0.1:
        return f"{value:.2g}" if abs(value) < 1e-3 else f"{value:.4f}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def interval_words(found: tuple[float, float, float]) -> str:
    """ "0.1 to 0.2" of (mean, low, high); empty without an interval."""
    if math.isnan(found[1]) or math.isnan(found[2]):
        return ""
    return f"{figure(found[1])} to {figure(found[2])}"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _number(value) -> float:
    return float(value) if isinstance(value, int | float) else math.nan

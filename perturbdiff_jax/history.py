"""What a run remembers of its validations: which was best, and whether it is time to end."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class BestMetric:
    """The score of the sampled validation that decides between checkpoints."""

    name: str  # as in the scores: validation/energy, ...
    mode: str  # "min" or "max"

    def goodness(self, score: float | None) -> float:
        """A score, larger = better; one that is missing or undefined is worst."""
        if score is None or math.isnan(score):
            return -math.inf
        return score if self.mode == "max" else -score


@dataclasses.dataclass(frozen=True)
class Recall:
    """What a resumed run knows of its past besides the state; travels with every checkpoint."""

    history: list[list[float]] = dataclasses.field(default_factory=list)  # [step, score] of every validation
    # Metrics of steps not yet logged.
    window: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def is_over(self, metric: BestMetric, patience: int) -> bool:
        """Whether the last `patience` validations (0 = no limit) brought nothing better than those before."""
        values = [metric.goodness(score) for _, score in self.history]
        return bool(patience and values) and len(values) - 1 - values.index(max(values)) >= patience

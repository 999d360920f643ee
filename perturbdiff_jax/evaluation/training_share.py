"""The share of a store's training cells that baselines are fitted on: that of the model beside which they stand."""

import dataclasses
from collections.abc import Callable, Mapping

from perturbdiff_jax.data.low_data import check_share, low_data
from perturbdiff_jax.errors import RequestError


@dataclasses.dataclass(frozen=True)
class TrainingShare:
    """`fraction` of the perturbed training cells, drawn by `fraction_seed` (data/low_data.py)."""

    fraction: float = 1.0
    fraction_seed: int = 0

    @classmethod
    def asked(cls, fraction: float | None, seed: int, store: object) -> "TrainingShare | None":
        """The share that is asked for, None if none is. RequestError for a share that is none, or is of nothing."""
        if fraction is None:
            return None
        if store is None:
            raise RequestError(
                f"fraction={fraction!r}: a share of which training cells? Name a store (--baselines)."
            )
        check_share(fraction, seed)
        return cls(float(fraction), int(seed))

    @classmethod
    def read(cls, facts: Mapping) -> "TrainingShare | None":
        """What uns["perturbdiff"] of a prediction tells of its model's training; None where it tells nothing.

        RequestError for a share that cannot be.
        """
        if "checkpoint" not in facts:
            return None
        told = facts.get("training_cells", {})
        if not isinstance(told, Mapping):
            raise RequestError(
                f"predictions: uns['perturbdiff']['training_cells']={told!r}: must be a mapping."
            )
        fraction, seed = (_plain(told.get(field.name, field.default)) for field in dataclasses.fields(cls))
        check_share(fraction, seed, "predictions: uns['perturbdiff']['training_cells']: ")
        return cls(float(fraction), int(seed))

    @classmethod
    def of_predictions(cls, shares: Mapping[str, "TrainingShare"]) -> "TrainingShare":
        """The share that all models had, of those that tell it; all cells if none does.

        RequestError when they differ: a baseline can be fair to one of them only.
        """
        found = set(shares.values())
        if len(found) > 1:
            listed = ", ".join(
                f"{name} {one.fraction:g} (seed {one.fraction_seed})" for name, one in shares.items()
            )
            raise RequestError(
                f"predictions: trained on different shares of the training cells: {listed}.\n"
                "Say which share the baselines are fitted on: --fraction, --fraction-seed."
            )
        return found.pop() if found else cls()

    def told(self) -> str:
        """A line for people."""
        return (
            f"baselines: fitted on {100 * self.fraction:g} % of the perturbed training cells of each perturbation "
            f"(seed {self.fraction_seed}) and on all control cells"
        )

    def cells_of(self, store, echo: Callable[[str], None]):
        """The store with this share of its training cells, which `echo` is told of unless it is all."""
        if self.fraction == 1:
            return store
        echo(self.told())
        return low_data(store, fraction=self.fraction, seed=self.fraction_seed)


def _plain(value: object) -> object:
    """A number of an h5ad file as Python's own."""
    return value.item() if hasattr(value, "item") else value

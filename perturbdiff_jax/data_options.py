"""Where the cells of a run come from, and which of them are held out: two sections of a run's settings."""

import dataclasses
import math
import re
from typing import Any

from perturbdiff_jax.data.low_data import check_share
from perturbdiff_jax.data.prepare import PrepareOptions
from perturbdiff_jax.errors import RequestError, shorten

SOURCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where cells come from: a prepared store, or h5ad files to prepare, or (neither given) the simulator.

    `fraction` and `fraction_seed`: low-data training, on a share of the perturbed training cells (data/low_data.py).
    The genes are those of the store, which were chosen from all of its training cells. The remaining keys are those
    of `perturbdiff prepare`; see data/prepare.py.
    """

    store: str = ""  # a prepared store
    input: str = ""  # one h5ad, or several separated by commas
    # Marginal pretraining: "pbmc=STORE, cellxgene=STORE", an input layer for each name, and in what shares their sets
    # are mixed, "pbmc=1, cellxgene=3"; "" = by their numbers of cells.
    sources: str = ""
    weights: str = ""
    unperturbed: bool = False  # no cell of `input` is perturbed
    perturbation_key: str = "perturbation"
    control: str = "control"
    cell_type_key: str | None = None
    batch_key: str | None = None
    dose_key: str | None = None
    layer: str | None = None
    gene_key: str | None = None
    map: str | None = None
    map_to: str | None = None
    value_kind: str = "auto"  # auto | counts | lognorm: what X or the layer holds
    total_key: str | None = None
    target_sum: float = 1e4
    hvg: int | None = 2000
    genes: str | None = None
    absent_genes: str = "drop"  # drop | zero: listed genes that no file has
    all_genes: bool = False
    split: str | None = None  # a .json or .toml file; without one, the hold-out below
    fraction: float = 1.0  # of the training cells of each perturbation; every perturbation keeps some
    fraction_seed: int = (
        0  # of that draw alone, so that runs with other seeds can be compared on the same cells
    )

    def __post_init__(self):
        """Refuses a fraction that is none, sources that cannot be told apart, and weights that are none."""
        check_share(self.fraction, self.fraction_seed, "config.data.")
        stores = self.source_stores()
        self.shares()
        if stores and (self.store or self.input):
            raise RequestError(
                "config.data.sources: give it instead of data.store and data.input, not besides."
            )
        if stores and self.fraction != 1:
            raise RequestError("config.data.fraction: is for training on one store, not for data.sources.")

    def source_stores(self) -> dict[str, str]:
        """Source -> its store, in the order of the input layers; {} without `sources`.

        Raises RequestError for a part that is not NAME=STORE, a name that occurs twice or has other characters than
        letters, digits, dots and hyphens (it stands before the names of its batches).
        """
        return named_parts("config.data.sources", self.sources, "NAME=STORE")

    def shares(self) -> dict[str, float]:
        """Source -> weight; {} without `weights`. RequestError unless each source has one, above 0."""
        given = named_parts("config.data.weights", self.weights, "NAME=NUMBER")
        names = list(self.source_stores())
        if given and sorted(given) != sorted(names):
            raise RequestError(
                f"config.data.weights={self.weights!r}: must give each of data.sources a number; they are "
                f"{shorten(names) or 'none'}."
            )
        try:
            found = {name: float(text) for name, text in given.items()}
        except ValueError:
            found = {"": -1.0}
        if not all(0 < weight < math.inf for weight in found.values()):
            raise RequestError(f"config.data.weights={self.weights!r}: must be numbers above 0.")
        return found

    def prepare_options(self, holdout: "HoldoutOptions", *, seed: int, cells_per_set: int) -> PrepareOptions:
        """The options of `prepare` for this section.

        `seed` orders the cells in their groups. Which cells a low-data run keeps follows from that order, and must not
        follow from the seed of training.
        """
        own = {f.name for f in dataclasses.fields(PrepareOptions)}
        values = {k: v for k, v in dataclasses.asdict(self).items() if k in own}
        if self.unperturbed:
            values["perturbation_key"] = None
        return PrepareOptions(
            **values,
            values=self.value_kind,
            holdout=None if self.split else holdout.rule(),
            seed=seed if self.fraction == 1 else self.fraction_seed,
            cells_per_set=cells_per_set,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class HoldoutOptions:
    """Hold out `fraction` of the perturbations of the contexts named here (names separated by commas)."""

    fraction: float = 0.0  # 0 = nothing is held out
    validation_fraction: float = 0.0
    cell_type: str | None = None
    batch: str | None = None
    seed: int = 0

    def rule(self) -> dict[str, Any] | None:
        """The rule for data/splits.py, None when nothing is held out."""
        if not self.fraction and not self.validation_fraction:
            return None
        named = {"cell_type": self.cell_type, "batch": self.batch}
        context = {role: name.split(",") for role, name in named.items() if name}
        return {
            "fraction": self.fraction,
            "validation_fraction": self.validation_fraction,
            "context": context,
            "seed": self.seed,
        }


def named_parts(key: str, text: str, form: str) -> dict[str, str]:
    """The parts of "A=x, B=y" by name; RequestError, naming `key`, for anything else."""
    found: dict[str, str] = {}
    for part in [part.strip() for part in text.split(",") if part.strip()]:
        name, _, value = (word.strip() for word in part.partition("="))
        if not (SOURCE_NAME.fullmatch(name) and value):
            raise RequestError(
                f"{key}: {part!r} is not {form} (letters, digits, dots and hyphens in the name)."
            )
        if name in found:
            raise RequestError(f"{key}: {name!r} is given twice; each source needs a name of its own.")
        found[name] = value
    return found

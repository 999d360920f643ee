"""The facts of a bundle made from a released checkpoint: what the file says, and what has to be said beside it."""

import dataclasses
import math
from collections.abc import Callable

from perturbdiff_jax.bundle import Bundle, package_versions
from perturbdiff_jax.data.genes import read_gene_list
from perturbdiff_jax.diffusion.objective import ObjectiveOptions
from perturbdiff_jax.diffusion.samplers import SamplerOptions
from perturbdiff_jax.diffusion.schedule import Schedule
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.models.mmdit import ModelOptions
from perturbdiff_jax.optim import EmaOptions, OptimOptions
from perturbdiff_jax.released.checkpoint import WEIGHTS, Released
from perturbdiff_jax.released.hyper_parameters import CONTROLS, Facts
from perturbdiff_jax.released.network import Network
from perturbdiff_jax.run_options import LoaderOptions
from perturbdiff_jax.run_setup import LARGEST_LOGNORM
from perturbdiff_jax.settings import Settings

CELLS_PER_SET = {"non-targeting": 32}  # Replogle; 256 everywhere else


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What the file does not say. Keys are obs columns, by default those of the screen that the control label tells."""

    weights: str = "ema"
    genes: str | None = None  # file with the gene names, in the order of the network's input
    control: str | None = None  # label of unperturbed cells
    perturbation_key: str | None = None
    cell_type_key: str | None = None
    batch_key: str | None = None
    cells_per_set: int | None = None
    target_sum: float = 1e4
    divisor: float = 10.0
    embeddings: str | None = None  # the file behind the frozen table, see embeddings.py
    overwrite: bool = False

    def __post_init__(self):
        """Refuses values that no prediction could follow."""
        if self.weights not in WEIGHTS:
            raise RequestError(f"--weights {self.weights}: allowed are {', '.join(WEIGHTS)}.")
        if self.cells_per_set is not None and self.cells_per_set < 1:
            raise RequestError(f"--cells-per-set {self.cells_per_set}: must be at least 1.")
        for name in ("target_sum", "divisor"):
            if not 0 < getattr(self, name) < math.inf:
                raise RequestError(f"--{name.replace('_', '-')} {getattr(self, name):g}: must be above 0.")


def describe(released: Released, options: ConvertOptions, echo: Callable[[str], None] = print) -> Bundle:
    """The bundle's facts. Remarks on what had to be assumed go to `echo`."""
    facts, network = released.facts, released.network
    control, keys = _control(released, options, echo)
    cells = options.cells_per_set or CELLS_PER_SET.get(control, 256)
    try:
        settings = _settings(facts, network, cells, options.divisor)
    except RequestError as error:
        raise RequestError(f"{released.path}: {error}") from None
    return Bundle(
        genes=_genes(released, options, echo),
        perturbations=facts.perturbations,
        cell_types=facts.cell_types,
        batches=facts.batches,
        control=control,
        keys=keys,
        values={
            "target_sum": options.target_sum,
            "log": "log1p",
            "divisor": options.divisor,
            "largest": LARGEST_LOGNORM,
        },
        # The file does not say which conditions were held out; that a perturbation has a row is all that is known.
        trained=[[name, "", ""] for name in facts.perturbations],
        split={"kind": "not in the released file"},
        settings=settings.to_dict(),
        best_metric={"name": "energy", "mode": "min"},
        versions=package_versions(),
        sources=network.sources,
        datasets=network.datasets,
        tables=network.tables,
        doses=network.doses,
        covariate_genes=network.covariate_genes,
        origin={
            "file": released.path.name,
            "weights": options.weights if released.both else "only",
            "gene_names": options.genes is not None,
            "layout": dataclasses.asdict(network.layout),
        },
    )


def _genes(released: Released, options: ConvertOptions, echo: Callable[[str], None]) -> list[str]:
    count = released.network.genes
    if options.genes is None:
        echo(
            f"{released.path.name}: no --genes, so the {count:,} genes have no names: arrays can be predicted "
            "(Predictor.sample), files cannot."
        )
        return [f"gene{i:05d}" for i in range(count)]
    names = read_gene_list(options.genes)
    if len(names) != count:
        raise RequestError(
            f"{options.genes}: lists {len(names):,} genes, {released.path.name} has {count:,}."
        )
    return names


def _control(
    released: Released, options: ConvertOptions, echo: Callable[[str], None]
) -> tuple[str, dict[str, str | None]]:
    """(label of unperturbed cells, obs columns)."""
    names = released.facts.perturbations
    found = [label for label in CONTROLS if label in names]
    control = options.control or (found[0] if found else "control")
    if options.control is None and len(found) != 1:
        what = f"several known control labels ({', '.join(found)})" if found else "no known control label"
        echo(f"{released.path.name}: {what}; {control!r} is taken (--control names another).")
    if options.control is not None and options.control not in names:
        echo(f"--control {control!r} is no perturbation of the file; it labels control cells only.")
    keys = {role: role for role in ("perturbation", "cell_type", "batch")}
    if control in CONTROLS and (options.control is not None or len(found) == 1):
        keys = CONTROLS[control]
    given = {role: getattr(options, f"{role}_key") for role in keys}
    return control, {**keys, **{role: key for role, key in given.items() if key}, "dose": None}


def _settings(facts: Facts, network: Network, cells_per_set: int, divisor: float) -> Settings:
    """The released settings, as far as the file tells them; the walk is the released default."""
    start = min(100, facts.schedule["steps"])
    return Settings(
        model=ModelOptions(
            width=network.width,
            depth=network.layout.depth,
            heads=network.heads,
            mlp_ratio=network.mlp_ratio,
            covariate_width=network.covariate_width,
            use_batch="yes" if network.layout.batch else "no",
            use_perturbation="no" if network.ignore_perturbation else "yes",
        ),
        schedule=Schedule(**facts.schedule),
        objective=ObjectiveOptions(drop_condition=facts.drop_condition, drop_control=facts.drop_control),
        loader=LoaderOptions(
            cells_per_set=cells_per_set,
            sets_per_batch=max(1, facts.cells_per_batch // cells_per_set),
            divisor=divisor,
        ),
        optim=OptimOptions(learning_rate=facts.learning_rate),
        ema=EmaOptions(rule="released", decay=0.99, every=10),
        sampler=SamplerOptions(
            start=start,
            steps=start,
            guidance=1.0,
            cutoff=facts.cutoff,
            variance="small" if facts.small_variance else "large",
        ),
    )

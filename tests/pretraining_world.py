"""Two small sources to pretrain on: a screen and RNA-seq without perturbations, in one gene list."""

from pathlib import Path

from perturbdiff_jax.data.prepare import PrepareOptions, prepare
from perturbdiff_jax.data.simulate import CONTROL, SimulateOptions, simulate
from perturbdiff_jax.settings import default_config

GENES = 40


def write_sources(folder: Path) -> dict[str, str]:
    """Source -> its store: batches B1 and B2 in both, cell types T1, T2 and, in the RNA-seq alone, T3."""
    options = {"genes": GENES, "programs": 4, "library_size": 20.0, "seed": 3}
    screen = SimulateOptions(
        cell_types=2, batches=2, perturbations=6, cells_per_group=16, controls_per_context=24, **options
    )
    cells, _ = simulate(screen)
    folder.mkdir(parents=True, exist_ok=True)
    cells.write_h5ad(folder / "screen.h5ad")
    genes = folder / "genes.txt"
    genes.write_text("\n".join(cells.var_names))
    common = {"cell_type_key": "cell_type", "batch_key": "batch", "genes": str(genes), "absent_genes": "zero"}
    held = {"fraction": 0.34, "validation_fraction": 0.17, "context": {"batch": ["B2"]}, "seed": 0}
    keys = {"perturbation_key": "perturbation", "control": CONTROL, "holdout": held}
    prepare(
        [folder / "screen.h5ad"], folder / "screen", PrepareOptions(**common, **keys), echo=lambda _: None
    )

    atlas, _ = simulate(
        SimulateOptions(cell_types=3, batches=2, perturbations=1, controls_per_context=30, **options)
    )
    atlas = atlas[atlas.obs["perturbation"] == CONTROL, : GENES - 5].copy()
    del atlas.obs["perturbation"]
    atlas.write_h5ad(folder / "atlas.h5ad")
    prepare(
        [folder / "atlas.h5ad"],
        folder / "atlas",
        PrepareOptions(**common, unperturbed=True),
        echo=lambda _: None,
    )
    return {"screen": str(folder / "screen"), "atlas": str(folder / "atlas")}


def pretraining_config(stores: dict[str, str]):
    """A pretraining of a second or two."""
    config = default_config()
    config.data.sources = ", ".join(f"{name}={path}" for name, path in stores.items())
    config.model.width, config.model.depth, config.model.heads = 16, 2, 2
    config.model.covariate_width = 8
    config.model.use_perturbation = "no"
    config.objective.drop_control = 1.0
    config.loader.train_on_controls = "yes"
    config.loader.cells_per_set, config.loader.sets_per_batch = 8, 8
    config.sampler.steps, config.sampler.start = 2, 100
    config.train.steps, config.train.validate_every, config.train.log_every = 8, 4, 4
    config.train.validation_cells, config.train.validation_conditions = 8, 6
    config.train.best_metric = "energy"
    return config

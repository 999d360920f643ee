"""Replogle (Nadig et al. 2025: 0.6 M cells, 2,023 knock-downs, 4 cell lines, 56 gem groups), trained from scratch.

    python -m perturbdiff_jax.main --config=configs/replogle.py --workdir=runs/replogle
    python -m perturbdiff_jax.main --config=configs/replogle.py:smoke --workdir=runs/replogle_smoke

The first needs the store (docs/benchmarks.md). Its values arrive log1p-normalised (App. A.2.1).
"""

from perturbdiff_jax import recipes


def get_config(argument: str = ""):
    """What differs from pbmc.py."""
    config = recipes.sibling(__file__, "pbmc")
    config.data.store = "stores/replogle"
    config.data.perturbation_key = "gene"
    config.data.control = "non-targeting"
    config.data.cell_type_key = "cell_line"
    config.data.batch_key = "gem_group"
    config.data.value_kind = "lognorm"
    # 624 test and 104 validation genes in HepG2, whose other genes are in training (App. A.2.3).
    config.data.split = recipes.beside(__file__, "splits/replogle.json")
    # To tell genes and cell lines by descriptions (the released run does):
    #   --config.covariates.perturbation="genept=FILE" --config.covariates.cell_type="llm=FILE"

    # README of the released code, COMMON_REPLOGLE_TRAIN: 128 cells in sets of 32 at 2e-3; about 300 cells a gene.
    config.loader.cells_per_set = 32
    config.loader.sets_per_batch = 4
    config.optim.learning_rate = 2e-3
    return recipes.smoke(config, form="genes") if recipes.asks_smoke(argument) else config

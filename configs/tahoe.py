"""Tahoe100M (Zhang et al. 2025: 101 M cells, 1,137 drugs at doses, 50 cell lines, 14 plates), trained from scratch.

    python -m perturbdiff_jax.main --config=configs/tahoe.py --workdir=runs/tahoe
    python -m perturbdiff_jax.main --config=configs/tahoe.py:smoke --workdir=runs/tahoe_smoke

The first needs the store (docs/benchmarks.md). Training is PBMC's (README of the released code: COMMON_TAHOE_TRAIN is
COMMON_PBMC_TRAIN).
"""

from perturbdiff_jax import recipes


def get_config(argument: str = ""):
    """What differs from pbmc.py."""
    config = recipes.sibling(__file__, "pbmc")
    config.data.store = "stores/tahoe100m"
    config.data.perturbation_key = "drugname_drugconc"
    config.data.control = "[('DMSO_TF', 0.0, 'uM')]"
    config.data.cell_type_key = "cell_line"
    config.data.batch_key = "plate"
    # 735 test and 54 validation drugs at doses in five cell lines, whose others are in training (App. A.2.3).
    config.data.split = recipes.beside(__file__, "splits/tahoe100m.json")
    # A drug at a dose is a name of its own. To tell drugs by their molecules, with a learned dose beside:
    #   --config.covariates.perturbation="chemberta=FILE" --config.covariates.cell_type="llm=FILE"
    return recipes.smoke(config, form="drugs") if recipes.asks_smoke(argument) else config

"""PBMC from pretrained weights, input and output layers included: strategy 1 of App. C.1, on the 12,626 genes.

    python -m perturbdiff_jax.main --config=configs/finetune_pbmc.py --workdir=runs/finetune_pbmc
    python -m perturbdiff_jax.main --config=configs/finetune_pbmc.py:smoke --workdir=runs/finetune_pbmc_smoke

Each goes on from its own pretraining (configs/pretrain.py and configs/pretrain.py:smoke), which has to be there. Low
data (section 5.3): --config.data.fraction=0.05 or 0.01, here and with configs/pbmc.py.
"""

from perturbdiff_jax import recipes


def get_config(argument: str = ""):
    """What differs from pbmc.py."""
    config = recipes.sibling(__file__, "pbmc", argument)
    config.init_source = "pbmc"
    config.init_layers = "keep"
    return recipes.finetuned(config, argument, store="stores/pretraining/pbmc")

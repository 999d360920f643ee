"""Tahoe100M from pretrained weights, new input and output layers for its own 2,000 genes: strategy 3 of App. C.1.

    python -m perturbdiff_jax.main --config=configs/finetune_tahoe.py --workdir=runs/finetune_tahoe
    python -m perturbdiff_jax.main --config=configs/finetune_tahoe.py:smoke --workdir=runs/finetune_tahoe_smoke

Each goes on from its own pretraining (configs/pretrain.py and configs/pretrain.py:smoke), which has to be there.
"""

from perturbdiff_jax import recipes


def get_config(argument: str = ""):
    """What differs from tahoe.py."""
    config = recipes.sibling(__file__, "tahoe", argument)
    config.init_source = "tahoe100m"
    config.init_layers = "hvg"
    return recipes.finetuned(config, argument)

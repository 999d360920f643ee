"""Replogle from pretrained weights, input and output layers drawn anew: strategy 2 of App. C.1, on the 12,626 genes.

    python -m perturbdiff_jax.main --config=configs/finetune_replogle.py --workdir=runs/finetune_replogle
    python -m perturbdiff_jax.main --config=configs/finetune_replogle.py:smoke --workdir=runs/finetune_replogle_smoke

Each goes on from its own pretraining (configs/pretrain.py and configs/pretrain.py:smoke), which has to be there.
"""

from perturbdiff_jax import recipes


def get_config(argument: str = ""):
    """What differs from replogle.py."""
    config = recipes.sibling(__file__, "replogle", argument)
    config.init_source = "replogle"
    config.init_layers = "fresh"
    config.loader.train_on_controls = "yes"  # README of the released code: keep_control_cell=true
    return recipes.finetuned(config, argument, store="stores/pretraining/replogle")

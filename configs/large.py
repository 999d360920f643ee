"""The scaling study's large network on PBMC: 239 M parameters (paper section 5.4).

    python -m perturbdiff_jax.main --config=configs/large.py --workdir=runs/large

The paper gives the number of parameters alone. Width 800 is the multiple of 32 that comes nearest to it at the released
depth of 8 and 8 heads: 238.0 M with PBMC's tables. In the paper it is best at a middling number of steps, then
overfits: the checkpoint is chosen by validation, as in pbmc.py.
"""

from perturbdiff_jax import recipes


def get_config(argument: str = ""):
    """pbmc.py with another width."""
    config = recipes.sibling(__file__, "pbmc")
    config.model.width = 800
    return recipes.smoke(config, form="cytokines") if recipes.asks_smoke(argument) else config

"""The scaling study's medium network on PBMC: 114 M parameters, the best of three in the paper (section 5.4).

    python -m perturbdiff_jax.main --config=configs/medium.py --workdir=runs/medium

The paper gives the number of parameters alone. Width 544 is the multiple of 32 that comes nearest to it at the released
depth of 8 and 8 heads: 112.7 M with PBMC's tables (the released width 512: 100.3 M, and 104.4 M as its authors count).
"""

from perturbdiff_jax import recipes


def get_config(argument: str = ""):
    """pbmc.py with another width."""
    config = recipes.sibling(__file__, "pbmc")
    config.model.width = 544
    return recipes.smoke(config, form="cytokines") if recipes.asks_smoke(argument) else config

"""The scaling study's small network on PBMC (paper section 5.4).

    python -m perturbdiff_jax.main --config=configs/small.py --workdir=runs/small

The paper gives no number for it. Half the released width at the released depth is our choice: 27.3 M parameters with
PBMC's tables, about a quarter of medium.py as medium.py is about half of large.py.
"""

from perturbdiff_jax import recipes


def get_config(argument: str = ""):
    """pbmc.py with another width."""
    config = recipes.sibling(__file__, "pbmc")
    config.model.width = 256
    return recipes.smoke(config, form="cytokines") if recipes.asks_smoke(argument) else config

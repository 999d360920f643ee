"""The ablation: PBMC without the energy distance (the MMD term) in the objective (paper section 5.5).

    python -m perturbdiff_jax.main --config=configs/without_mmd.py --workdir=runs/without_mmd

The same for the other data sets: --config=configs/replogle.py --config.objective.mmd_weight=0
"""

from perturbdiff_jax import recipes


def get_config(argument: str = ""):
    """pbmc.py with one term of its loss."""
    config = recipes.sibling(__file__, "pbmc", argument)
    config.objective.mmd_weight = 0.0
    return config

"""What config files share: variants named behind a colon, one config made from another, any of them in small.

--config=configs/pbmc.py:smoke        get_config("smoke")
"""

import importlib.util
from pathlib import Path

import ml_collections

from perturbdiff_jax.errors import RequestError

SMOKE = "smoke"


def asks_smoke(argument: str) -> bool:
    """Whether what stands behind the colon asks for the config in small; RequestError for any other word."""
    if argument not in ("", SMOKE):
        raise RequestError(f"config argument {argument!r}: allowed is {SMOKE!r}, or none.")
    return argument == SMOKE


def beside(file: str, name: str) -> str:
    """Absolute path of `name` beside the config file `file`, so that it is found wherever a run is started."""
    return str(Path(file).resolve().parent / name)


def sibling(file: str, name: str, argument: str = "") -> ml_collections.ConfigDict:
    """The config that `name`.py beside the config file `file` makes of `argument`; config files are no package."""
    path = beside(file, f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"config_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument)


def smoke(config: ml_collections.ConfigDict, *, form: str) -> ml_collections.ConfigDict:
    """`config` in small: the same path on simulated cells of the same form, in under a minute on two cores.

    Sizes alone change: cells, network, steps, as many conditions as there are, and what goes with them: the rate of a
    narrow network, the reach of the average. What is grouped, held out, told to the network, optimised, averaged and
    walked, and how, stays what it is.
    """
    config.data.store = ""
    config.simulate.form = form
    config.simulate.cell_types = 2
    config.simulate.batches = 3
    config.simulate.perturbations = 12
    config.simulate.genes = 120
    config.simulate.cells_per_group = 24
    config.simulate.controls_per_context = 40
    if config.data.hvg:
        config.data.hvg = 80  # of the 120, as 2,000 of a transcriptome
    config.loader.cells_per_set = 16
    config.model.width = 32
    config.model.depth = 2
    config.model.heads = 4
    config.model.covariate_width = 16
    config.optim.warmup_steps = 10
    config.optim.learning_rate = 2e-3
    # A thousand steps of twenty thousand; with as many, the average would be the network before the first one.
    config.ema.decay = 0.5
    config.train.steps = 200
    config.train.log_every = 50
    config.train.validate_every = 100
    config.train.validation_conditions = 4
    config.train.validation_cells = 16
    config.predict.calibration_draws = 2
    return config


def finetuned(
    config: ml_collections.ConfigDict, argument: str, *, store: str | None = None
) -> ml_collections.ConfigDict:
    """`config` from the weights of pretrain.py, those of `pretrain.py:smoke` for a config in small.

    `store`: a store in the genes of the pretraining; None = genes stay those of `config`.
    """
    run = "runs/pretrain_smoke" if asks_smoke(argument) else "runs/pretrain"
    config.init_from = f"{run}/bundle"
    if store is None:
        return config
    # Cells that are prepared by the run get the pretraining's genes: absent ones are zero, as they were there.
    config.data.genes = f"{run}/bundle/bundle.json"
    config.data.absent_genes = "zero"
    if not asks_smoke(argument):
        config.data.store = store
    return config

"""The embedded default: a simulated screen, a small model, about three minutes of training on two cores.

python -m perturbdiff_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
"""

from perturbdiff_jax.settings import default_config


def get_config():
    """Every number that differs from the released full-size recipe, with its reason."""
    config = default_config()
    # No input: cells are simulated (3 cell types x 4 batches x 24 perturbations + control, 500 genes).
    config.data.cell_type_key = "cell_type"
    config.data.batch_key = "batch"
    config.data.hvg = 500
    # Half of the perturbations are never seen in batch B4; their response there is to be predicted.
    config.holdout.batch = "B4"
    config.holdout.fraction = 0.5
    config.holdout.validation_fraction = 0.125

    config.loader.cells_per_set = 32  # groups have about 64 cells: larger sets would be mostly padding
    config.loader.sets_per_batch = 8
    config.model.width = 128
    config.model.depth = 4
    config.model.heads = 4
    config.model.anchor = "control"  # predict the change of a control cell: learns in minutes
    config.objective.drop_condition = 0.1  # no guidance when sampling, so little need for the null branch
    config.optim.learning_rate = 1e-3
    config.optim.warmup_steps = 100
    config.ema.decay = 0.995
    config.sampler.steps = 5  # the best walk for its cost (benchmarks/README.md, sampling.py)
    config.sampler.cutoff = 0.02  # log1p 0.2: less than one molecule gives in a cell of fewer than 45,000
    config.predict.draws = 4
    config.train.steps = 1500
    config.train.log_every = 100
    config.train.validate_every = 500
    return config

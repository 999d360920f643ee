"""Your own h5ad: copy this file, or leave it as it is and give the keys on the command line.

    python -m perturbdiff_jax.main --config=configs/own_data.py --workdir=runs/mine \
        --config.data.input=my_screen.h5ad --config.data.perturbation_key=perturbation \
        --config.data.control=control --config.data.cell_type_key=cell_type \
        --config.data.batch_key=batch --config.holdout.batch=B4 --config.holdout.fraction=0.3

Sized for a laptop: minutes for some ten thousand cells. With a GPU and more cells raise model.width,
model.depth, loader.cells_per_set and train.steps towards the released recipe (the defaults of settings.py).
"""

from perturbdiff_jax.settings import default_config


def get_config():
    """Every number that differs from the released full-size recipe, with its reason."""
    config = default_config()
    config.data.cell_type_key = "cell_type"
    config.data.batch_key = "batch"
    config.data.hvg = 2000
    # What to hold out: a split file (config.data.split), or a share of the perturbations of some context.
    config.holdout.fraction = 0.2
    config.holdout.validation_fraction = 0.1

    config.loader.cells_per_set = 32
    config.loader.sets_per_batch = 8
    config.loader.train_on_controls = "auto"  # with use_cell_type and use_batch below
    config.model.width = 128
    config.model.depth = 4
    config.model.heads = 4
    config.model.anchor = "control"  # predict the change of a control cell
    config.model.use_cell_type = "auto"  # if never perturbed in training: read off the control cells
    config.model.use_batch = "auto"
    config.objective.drop_condition = 0.1  # sampling is not guided, so the null branch needs little training
    config.optim.learning_rate = 1e-3
    config.optim.warmup_steps = 100
    config.ema.decay = 0.995
    config.sampler.steps = 5  # the best walk for its cost (benchmarks/README.md, sampling.py)
    config.sampler.cutoff = 0.02  # log1p 0.2: less than one molecule gives in a cell of fewer than 45,000
    config.predict.draws = 4
    config.train.steps = 1500
    config.train.max_epochs = 100.0  # a screen of a thousand cells would be learned by heart
    config.train.log_every = 100
    config.train.validate_every = 250
    return config

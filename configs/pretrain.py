"""Marginal pretraining on PBMC, Tahoe100M, Replogle and CellxGene: what cells of a cell type and batch look like.

    python -m perturbdiff_jax.main --config=configs/pretrain.py --workdir=runs/pretrain
    python -m perturbdiff_jax.main --config=configs/pretrain.py:smoke --workdir=runs/pretrain_smoke

The first needs four stores in one list of 12,626 genes (docs/benchmarks.md); `:smoke` simulates four data sets of one
world. finetune_pbmc.py, finetune_tahoe.py and finetune_replogle.py go on from here. No perturbation is told, no control
cell is seen: the network learns marginals (paper section 4.6, App. C.1).
"""

from perturbdiff_jax import recipes


def get_config(argument: str = ""):
    """What differs from pbmc.py, whose batch, optimizer, average and walk these are (README of the released code)."""
    config = recipes.sibling(__file__, "pbmc")
    config.data.store = ""
    # An input layer each (App. C.1). Their cells are mixed as they are many; config.data.weights says otherwise.
    names = ("pbmc", "tahoe100m", "replogle", "cellxgene")
    config.data.sources = ", ".join(f"{name}=stores/pretraining/{name}" for name in names)
    # The stores have keys and hold-outs of their own.
    config.data.perturbation_key = "perturbation"
    config.data.control = "control"
    config.data.cell_type_key = config.data.batch_key = config.data.split = None

    config.model.use_perturbation = "no"  # README of the released code: pert_encoding=non
    config.objective.drop_control = 1.0  # the control stream is zero: App. C.1, p_drop_control=1
    config.loader.train_on_controls = "yes"  # keep_control_cell=true
    # The released run finetunes from the end of the first epoch (App. C.1), of at most 200,000 steps (README).
    config.train.steps = 200_000
    config.train.max_epochs = 1.0
    config.train.best_metric = "energy"  # nothing is perturbed, so there is no change to correlate
    if not recipes.asks_smoke(argument):
        return config
    config.data.sources = ""
    return recipes.smoke(config, form="sources")

"""The released side of train_step.py: its Lightning module in Lightning's own loop, a step for each line of stdin.

Whatever the released code does in a step is in the step: the loss, its second evaluation for the log, norms of all
gradients, clipping, AdamW, the schedule. It runs from its own configuration at full size, cell types one-hot, without
the progress bar and the logger that it is shipped with. The average of the weights (every tenth step in the commands
of its README) is timed by itself. Runs in an environment with PyTorch and the released code's requirements.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from train_step_worker import MATRIX, VOCABULARY, answer, arrays, ceiling, clocked, memory, orders

job = json.loads(sys.argv[1])
sys.path.insert(0, job["reference"])
logging.disable(logging.WARNING)

import pytorch_lightning as lightning  # noqa: E402
import torch  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from src.models.diffusion import diffusion_training  # noqa: E402
from src.models.lightning.lightning_factories import EMAWeightAveraging  # noqa: E402
from src.models.lightning.lightning_module import PlModel  # noqa: E402

DATASET = "PBMC"
SECTIONS = ("cov_encoding", "model", "optimization", "trainer")
KEPT, FED_BACK = 0.9, {False: 0.1, True: 0.9}  # what a coin has to show


def configuration():
    """The released configuration; of the data it needs the numbers of categories only."""
    changed = {
        "data": "pbmc_finetune",
        "model.hidden_num.0": job["genes"],
        "model.p_drop_control": 0,
        "cov_encoding.celltype_encoding": "onehot",
        "cov_encoding.num_pert": VOCABULARY["perturbation"],
        "cov_encoding.num_celltype": VOCABULARY["cell_type"],
        "cov_encoding.num_batch": VOCABULARY["batch"],
        "cov_encoding.gene_embedding_path": [],  # of no use to this network, and their files are not there
        "model.dataset_dict": [DATASET],
    }
    with initialize_config_dir(str(Path(job["reference"], "configs").resolve()), version_base=None):
        config = compose("rawdata_diffusion_training", [f"{name}={value}" for name, value in changed.items()])
    for name in SECTIONS:
        OmegaConf.resolve(config[name])
    return config


class Coins:
    """Stands for torch where the loss draws: the two coins of a step fall as the order says."""

    def __init__(self):
        self.faces: list[float] = []

    def __getattr__(self, name):
        return getattr(torch, name)

    def rand(self, *shape):
        return torch.full(shape, self.faces.pop(0))


class Energy(torch.nn.Module):
    """The released energy distance; an order can leave out the second evaluation, which is only logged."""

    def __init__(self, loss):
        super().__init__()
        self.loss, self.twice = loss, True

    def forward(self, x, y):
        return self.loss(x, y) if self.twice or y.requires_grad else torch.zeros(len(x))


class Orders(torch.utils.data.IterableDataset):
    """The batch, once for each order of a step."""

    def __init__(self, coins: Coins, energy: Energy):
        self.coins, self.energy = coins, energy
        made = {name: torch.tensor(array) for name, array in arrays(job).items()}
        codes = {name: made[name].long()[:, None].repeat(1, job["cells"]) for name in VOCABULARY}
        self.batch = {
            "pert_emb": made["perturbed"],
            "cont_emb": made["control"],
            "cov_pert": codes["perturbation"],
            "cov_celltype": codes["cell_type"],
            "cov_batch": codes["batch"],
            "ds_name": [DATASET] * job["sets"],
        }

    def __len__(self):
        return sys.maxsize  # known, so that Lightning does not ask for a batch ahead of time

    def __iter__(self) -> Iterator[dict]:
        square = torch.ones(MATRIX, MATRIX)
        for order in orders():
            if order["what"] == "matrix":
                answer(ceiling(lambda: square @ square))
            else:
                self.energy.twice = order["twice"]
                self.coins.faces = [KEPT, FED_BACK[order["fed_back"]]]
                yield dict(self.batch)


class Timed(EMAWeightAveraging):
    """Times a step, from the batch at hand to parameters and schedule updated, then the average, and answers."""

    def on_train_batch_start(self, *_):
        self.began = time.process_time(), time.perf_counter()

    def on_train_batch_end(self, *given):
        cpu, wall = self.began
        step = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        average = clocked(lambda: EMAWeightAveraging.on_train_batch_end(self, *given))
        answer(step | {"average": average, "memory": memory()})


def main() -> None:
    """Trains until stdin ends."""
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    config = configuration()
    covariates, network, optimization, training = (config[name] for name in SECTIONS)
    model = PlModel(covariates, network, logging.getLogger(), optimization, training, [])
    model.loss_fn = energy = Energy(model.loss_fn)
    diffusion_training.th = coins = Coins()
    kept = ("precision", "gradient_clip_val", "deterministic", "log_every_n_steps")
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        callbacks=[Timed(decay=0.99, update_steps=10)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{name: training[name] for name in kept},
    )
    answer({"torch": torch.__version__, "parameters": sum(p.numel() for p in model.parameters())})
    trainer.fit(model, torch.utils.data.DataLoader(Orders(coins, energy), batch_size=None))


if __name__ == "__main__":
    main()

"""The released PyTorch code on one checkpoint, driven from outside: the opponent of released.py.

Runs in an environment with PyTorch and the released code's requirements. Reads one line of JSON a job from stdin,
walks, writes the result and answers with the seconds it took. torch unpickles the checkpoint, so only for files that
one trusts.
"""

import json
import logging
import pickle
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

reference, checkpoint, threads = sys.argv[1:4]
sys.path.insert(0, reference)
logging.disable(logging.WARNING)

from src.models.lightning.lightning_module import PlModel  # noqa: E402


def tables(covariates, weights, folder: Path) -> None:
    """The released constructor reads frozen tables from pickles; these hold the rows that the checkpoint has."""

    def write(key: str, content: dict) -> None:
        path = folder / f"{key}.pkl"
        path.write_bytes(pickle.dumps(content))
        covariates[key] = str(path)

    rows = {
        name: weights.get(f"cov_encoder.{name}_encoder.0.weight") for name in ("celltype", "pert", "drug")
    }
    rows = {name: table.numpy() for name, table in rows.items() if table is not None}
    if "celltype" in rows:
        codes = covariates.cell_type_dict
        write("celltype_embedding_path", {name: rows["celltype"][code] for name, code in codes.items()})
    if "drug" in rows:
        names = {label.split("'")[1].strip(): code for label, code in covariates.pert_dict.items()}
        write("drug_embedding_path", {name: rows["drug"][code] for name, code in names.items()})
    if "pert" in rows and covariates.replogle_gene_encoding != "onehot":
        write(
            "replogle_gene_embedding_path",
            {name: rows["pert"][code] for name, code in covariates.pert_dict.items()},
        )
    elif "pert" in rows:
        write("pert_embedding_path", dict(enumerate(rows["pert"][1:])))


torch.set_num_threads(int(threads))
content = torch.load(checkpoint, map_location="cpu", weights_only=False)
given = content["hyper_parameters"]
with tempfile.TemporaryDirectory() as folder:
    tables(given["cov_encoding_cfg"], content["state_dict"], Path(folder))
    model = PlModel(**given)
model.load_state_dict(content["state_dict"])
model.eval()
print(json.dumps({"torch": torch.__version__}), flush=True)

for line in sys.stdin:
    job = json.loads(line)
    arrays = np.load(job["input"])
    began = time.perf_counter()
    with torch.no_grad():
        codes = [torch.tensor(arrays[name]) for name in ("perturbation", "cell_type", "batch")]
        condition = {
            "batch_emb": model.cov_encoder(*codes),
            "cont_emb": torch.tensor(arrays["control"]),
            "gene_emb": None,
            "ds_name": [job["dataset"]] * len(arrays["control"]),
        }
        cells = model.diffusion.ddim_sample_loop(
            model.model,
            arrays["control"].shape,
            self_condition=condition,
            noise=torch.tensor(arrays["init_noise"]),
            start_time=job["start"],
            guidance_strength=job["guidance"],
            eta=0.0,
            progress=False,
        )
    seconds = time.perf_counter() - began
    cells = cells[0] if isinstance(cells, tuple) else cells
    np.save(job["output"], cells.numpy())
    print(json.dumps({"seconds": seconds}), flush=True)

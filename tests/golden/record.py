"""Records what the released PyTorch code computes, as small fixtures for the tests here.

    python tests/golden/record.py --reference CHECKOUT --output DIR [--recordings ../shared/golden/case1]

Needs PyTorch and the released code's own requirements; the checkout is driven from outside, unmodified. Nothing else in
this repository needs either. README.md beside this file says what each array is.
"""

import argparse
import contextlib
import json
import pickle
import sys
import tempfile
import zlib
from importlib.metadata import version
from pathlib import Path

import hydra
import numpy as np
import omegaconf
import torch
from recorded_cases import CASES, CELLXGENE, PICKLES, Case
from seeded_weights import fingerprint, seeded


def numbered(names) -> dict[str, int]:
    return {name: code for code, name in enumerate(sorted(names))}


def overrides(case: Case, folder: str) -> list[str]:
    """The released configuration made small; `gene_embedding_path` does not resolve as it is shipped."""
    return [
        "data=pbmc_finetune",
        f"path.tmp_dir={folder}",
        "cov_encoding.gene_embedding_path=[]",
        f"cov_encoding.hidden_dim={case.covariate_width}",
        f"model.hidden_num=[{case.genes},{case.width}]",
        f"model.input_dim={case.genes}",
        f"model.dit_depth={case.depth}",
        "model.dit_num_heads=4",
        f"model.replace_2kgene_layer={bool(case.replaced_genes)}",
        *case.settings,
    ]


def configure(case: Case, reference: Path, folder: str):
    """The released configuration with the vocabularies that its data module would have filled in."""
    with hydra.initialize_config_dir(version_base=None, config_dir=str(reference / "configs")):
        cfg = hydra.compose("rawdata_diffusion_training", overrides=overrides(case, folder))
    omegaconf.OmegaConf.resolve(cfg)
    batches = [f"{source}_{label}" for source in case.sources for label in "abc"]
    names = {"pert": case.perturbations, "celltype": case.cell_types, "batch": batches}
    for kind, words in names.items():
        cfg.cov_encoding[f"num_{kind}"] = len(words)
        cfg.cov_encoding["cell_type_dict" if kind == "celltype" else f"{kind}_dict"] = numbered(words)
    cfg.model.dataset_dict = case.sources
    return cfg


def build(case: Case, reference: Path):
    """(model with the weights of the formula, its description, what of its state_dict no formula draws)."""
    from src.models.lightning.lightning_module import PlModel

    with tempfile.TemporaryDirectory() as folder:
        for name, (keys, width) in PICKLES.items():
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(pickle.dumps({key: [float(i)] * width for i, key in enumerate(keys)}))
        cfg = configure(case, reference, folder)
        splits = ["validation", "test"]
        model = PlModel(cfg.cov_encoding, cfg.model, None, cfg.optimization, cfg.trainer, splits)
        sections = {"cov_encoding_cfg": cfg.cov_encoding, "model_cfg": cfg.model}
        plain = json.dumps(
            {name: omegaconf.OmegaConf.to_container(section) for name, section in sections.items()}
        )
        hyper_parameters = json.loads(plain.replace(folder, "EMBEDDINGS"))
    if case.replaced_genes:
        model.model.replace_2kgene_layer(case.replaced_genes)
    state = model.state_dict()
    shapes = {k: tuple(v.shape) for k, v in state.items() if v.is_floating_point()}
    weights = seeded(shapes)
    stored = {k: v for k, v in state.items() if k not in shapes}
    model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()} | stored)
    spec = {
        "hyper_parameters": hyper_parameters,
        "state_dict": shapes,
        "stored": list(stored),
        "weights_fingerprint": fingerprint(weights),
        "made_with": {name: version(name) for name in ("torch", "timm", "geomloss", "numpy")},
    }
    return model.eval(), spec, {k: v.numpy() for k, v in stored.items()}


def draw_inputs(name: str, case: Case, batch_dict: dict) -> dict[str, np.ndarray]:
    """Random cells (non-negative, sparse) and codes; in a cellxgene set the batch differs from cell to cell."""
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    shape = (len(case.sets), case.cells, case.replaced_genes or case.genes)
    noise = [rng.standard_normal(shape).astype(np.float32) for _ in range(3)]
    cells = [np.float32(rng.gamma(0.5, 0.6, shape) * (rng.random_sample(shape) < 0.6)) for _ in range(3)]
    codes = {"cov_pert": [], "cov_celltype": [], "cov_batch": []}
    for source, perturbation in case.sets:
        batches = [code for word, code in batch_dict.items() if word.startswith(f"{source}_")]
        drawn = rng.choice(batches, case.cells)
        codes["cov_pert"].append([perturbation] * case.cells)
        codes["cov_celltype"].append([rng.randint(len(case.cell_types))] * case.cells)
        codes["cov_batch"].append(drawn if source in CELLXGENE else [drawn[0]] * case.cells)
    found = dict(zip(("x_t", "init_noise", "train_noise"), noise))
    found |= dict(zip(("x0_selfcond", "control", "x_start"), cells))
    found |= {k: np.asarray(rows, np.int64) for k, rows in codes.items()}
    found["t"] = np.asarray([0, 999, 417, 63][: shape[0]], np.int64)
    found["train_t"] = rng.randint(1000, size=shape[0]).astype(np.int64)
    found["ds_name"] = np.asarray([source for source, _ in case.sets])
    if case.walks:
        found["ddpm_step_noise"] = rng.standard_normal((4, *shape)).astype(np.float32)
    return found


def condition(model, given: dict, covariates: bool = True) -> dict:
    """What the released network takes beside cells and time; without "batch_emb" it takes the null embedding."""
    found = {"gene_emb": None, "ds_name": [str(name) for name in given["ds_name"]]}
    found["cont_emb"] = torch.from_numpy(given["control"])
    if covariates:
        codes = [torch.from_numpy(given[f"cov_{kind}"]) for kind in ("pert", "celltype", "batch")]
        found["batch_emb"] = model.cov_encoder(*codes)
    return found


def forward(model, given: dict, covariates: bool) -> np.ndarray:
    x, x0, control = (torch.from_numpy(given[k]) for k in ("x_t", "x0_selfcond", "control"))
    doubled = torch.cat([x, x0], -1), torch.cat([control, torch.zeros_like(control)], -1)
    told = condition(model, given, covariates)
    t = torch.from_numpy(given["t"])
    return model.diffusion.get_model_output(model.model, *doubled, t, self_condition=told)["x"].numpy()


@contextlib.contextmanager
def draws(name: str, values):
    """torch.<name> hands out these values, one a call."""
    official, left = getattr(torch, name), list(values)
    setattr(torch, name, lambda *_, **__: left.pop(0))
    try:
        yield left
    finally:
        setattr(torch, name, official)


def losses(model, given: dict, variant: str) -> dict[str, np.ndarray]:
    """Both loss terms of each set with every coin decided: 0 is below any probability, 0.9 above one half."""
    coins = {
        "drop_control": variant.startswith("dropcontrol"),
        "drop_cond": "uncond" in variant,
        "self_cond": variant.endswith("sc1"),
    }
    tossed = [] if model.model_cfg.p_drop_control == 0 else [0.0 if coins["drop_control"] else 0.9]
    tossed += [0.0 if coins["drop_cond"] else 0.9, 0.9 if coins["self_cond"] else 0.0]
    told = condition(model, given)
    x_start, t = torch.from_numpy(given["x_start"]), torch.from_numpy(given["train_t"])
    noise = torch.from_numpy(given["train_noise"]).double()  # as the released code draws it
    with draws("rand", [torch.tensor([coin]) for coin in tossed]) as left:
        terms = model.diffusion.training_losses(
            model.model, x_start, t, self_condition=told, noise=noise,
            p_drop_cond=model.model_cfg.p_drop_cond, MMD_loss_fn=model.loss_fn,
        )  # fmt: skip
        assert not left, "the released code tossed fewer coins"
    found = {k: np.asarray(v) for k, v in coins.items()}
    return found | {"mse1": terms["mse1"].numpy(), "mmd1_per_set": terms["mmd1_list"].numpy()}


def ddim(model, given: dict, every_step: bool) -> dict[str, np.ndarray]:
    start = torch.from_numpy(given["init_noise"])
    steps = model.diffusion.ddim_sample_loop_progressive(
        model.model, tuple(start.shape), self_condition=condition(model, given), noise=start,
        start_time=10, eta=0.0, guidance_strength=1.0,
    )  # fmt: skip
    return walked(steps, every_step)


def ddpm(model, given: dict) -> dict[str, np.ndarray]:
    start = torch.from_numpy(given["init_noise"])
    with draws("randn_like", torch.from_numpy(given["ddpm_step_noise"])) as left:
        steps = model.diffusion.p_sample_loop_progressive(
            model.model, tuple(start.shape), self_condition=condition(model, given), noise=start,
            start_time=4, nw=0.5, guidance_strength=1.0,
        )  # fmt: skip
        found = walked(steps, every_step=False)
        assert not left, "the released code drew less noise"
    return found


def walked(steps, every_step: bool) -> dict[str, np.ndarray]:
    steps = list(steps)
    found = {"final": steps[-1]["sample"].numpy()}
    if every_step:
        found["samples"] = np.stack([step["sample"].numpy() for step in steps])
        found["pred_xstart"] = np.stack([step["pred_xstart"].numpy() for step in steps])
    return found


def prefixed(prefix: str, arrays: dict) -> dict:
    return {f"{prefix}_{name}": array for name, array in arrays.items()}


@torch.no_grad()
def record(name: str, reference: Path) -> dict[str, np.ndarray]:
    case = CASES[name]
    model, spec, stored = build(case, reference)
    found = draw_inputs(name, case, spec["hyper_parameters"]["cov_encoding_cfg"]["batch_dict"])
    found["forward_cond_x"] = forward(model, found, covariates=True)
    found["forward_uncond_x"] = forward(model, found, covariates=False)
    for variant in case.losses:
        found |= prefixed(f"train_{variant}", losses(model, found, variant))
    found |= prefixed("ddim", ddim(model, found, case.walks))
    if case.walks:
        found |= prefixed("ddpm", ddpm(model, found))
    return found | stored | {"spec": np.asarray(json.dumps(spec))}


def extract(recordings: Path) -> dict[str, np.ndarray]:
    """What of an earlier, full recording can be checked without its weights: losses, walk, diffusion algebra."""

    def load(name):
        return dict(np.load(recordings / f"{name}.npz"))

    found = {"x_start": load("inputs")["x_start"]}
    for variant in CASES["case1"].losses:
        arrays = load(f"train_{variant}")
        found |= prefixed(f"train_{variant}", {k: arrays[k] for k in ("pred_x", "mse1", "mmd1_per_set")})
    found |= prefixed("ddim_loop_g1_T10", load("ddim_loop_g1_T10"))
    left_out = ("x_start", "noise64", "x_t_from_noise64")
    found |= prefixed("q_sample", {k: v for k, v in load("q_sample").items() if k not in left_out})
    return found | prefixed("single_steps", load("single_steps"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, required=True, help="checkout of the released PyTorch code")
    parser.add_argument("--output", type=Path, required=True, help="folder for the .npz files")
    parser.add_argument(
        "--recordings", type=Path, help="folder with the full recording of case1, for its extract"
    )
    flags = parser.parse_args()
    sys.dont_write_bytecode = True  # leave the checkout as it was
    sys.path.insert(0, str(flags.reference.resolve()))
    torch.set_num_threads(1)
    flags.output.mkdir(parents=True, exist_ok=True)
    jobs = {f"released_{name}": lambda name=name: record(name, flags.reference.resolve()) for name in CASES}
    if flags.recordings:
        jobs["case1_extract"] = lambda: extract(flags.recordings)
    for name, job in jobs.items():
        path = flags.output / f"{name}.npz"
        np.savez_compressed(path, **job())
        print(f"{path} {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

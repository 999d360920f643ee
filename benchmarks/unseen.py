"""Perturbations that training never saw: are they predicted from vectors that know something about them?

    python benchmarks/unseen.py --workdir=runs/unseen [--perturbations 150] [--steps 3000]

Simulates a screen, holds out a fifth of the perturbations in all contexts, and trains the quickstart's network three
times: told by vectors of what perturbations drive, by the same vectors dealt to other names, and by the names alone
(which cannot tell them apart). Scores the held-out perturbations against what else can predict them: control cells
moved by a ridge regression of mean changes on the same vectors (a fit for each context, penalty by cross-validation),
the mean of all trained perturbations, and control cells. Prints one table, writes unseen.json.
"""

import argparse
import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbdiff_jax.data.simulate import embeddings_of, simulate
from perturbdiff_jax.evaluation.baselines import training_of
from perturbdiff_jax.evaluation.evaluate import evaluate
from perturbdiff_jax.main import parse
from perturbdiff_jax.prediction.controls import from_store
from perturbdiff_jax.prediction.design import split_design
from perturbdiff_jax.run_record import write_json
from perturbdiff_jax.run_store import open_store
from perturbdiff_jax.settings import from_config
from perturbdiff_jax.train import train_and_evaluate

CONFIG = Path(__file__).resolve().parents[1] / "configs/quickstart.py"
SHOWN = ("energy", "r2", "pearson_delta", "discrimination_score_l1", "overlap_at_N")
WORLD = {
    "simulate.cell_types": 2,
    "simulate.batches": 2,
    "simulate.genes": 300,
    "simulate.cells_per_group": 32,
    "holdout.batch": None,
    "holdout.fraction": 0.2,
    "holdout.validation_fraction": 0.05,
    "loader.cells_per_set": 16,
    "loader.sets_per_batch": 16,
    "predict.draws": 1,
    "predict.calibration_draws": 0,
}
RIDGE = "ridge on the vectors"
PENALTIES = 10.0 ** np.arange(-3, 4)
FOLDS = 5
BASELINES = ("mean overall", "mean per cell type", "control", "ceiling")


def config_of(workdir: Path, changes: dict):
    """The quickstart's config with dotted keys set."""
    config, _ = parse([f"--config={CONFIG}", f"--workdir={workdir}"])
    for name, value in changes.items():
        section, key = name.split(".")
        config[section][key] = value
    return config


def tables(config, workdir: Path) -> dict[str, str]:
    """Row of the table -> encoding of perturbations."""
    _, truth = simulate(from_config(config).simulate)
    vectors = embeddings_of(truth)
    names = np.array([f"P{i + 1:02d}" for i in range(len(vectors))])
    dealt = np.random.default_rng(1).permutation(len(vectors))
    np.savez(workdir / "informative.npz", names=names, vectors=vectors)
    np.savez(workdir / "dealt.npz", names=names, vectors=vectors[dealt])
    return {
        "informative vectors": f"informative={workdir / 'informative.npz'}",
        "vectors of others": f"dealt={workdir / 'dealt.npz'}",
        "names alone": "onehot",
    }


def ridge(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    """y [n, G] on standardised x [n, W], at `new` [m, W]; the penalty is that with the least error left out."""
    centre, scale = x.mean(axis=0), x.std(axis=0)
    x, new = (x - centre) / scale, (new - centre) / scale

    def fitted(x, y, new, penalty):
        mean = y.mean(axis=0)
        weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (y - mean))
        return mean + new @ weights

    folds = np.arange(len(x)) % FOLDS
    errors = []
    for penalty in PENALTIES:
        left = [
            fitted(x[folds != f], y[folds != f], x[folds == f], penalty) - y[folds == f] for f in range(FOLDS)
        ]
        errors.append(np.square(np.concatenate(left)).mean())
    return fitted(x, y, new, PENALTIES[int(np.argmin(errors))])


def moved_by_ridge(store, vectors: dict[str, np.ndarray]) -> anndata.AnnData:
    """Control cells of each test condition's context, moved by the predicted mean change and cut at 0."""
    design, controls = split_design(store, "test"), from_store(store)
    groups = [group for group in training_of(store, store.genes).groups if not group.is_control]
    rng, cells, rows = np.random.default_rng(0), [], []
    for (cell_type, batch), asked in design.groupby(["cell_type", "batch"], observed=True):
        mine = [group for group in groups if (group.cell_type, group.batch) == (cell_type, batch)]
        x = np.stack([vectors[group.perturbation] for group in mine])
        y = np.stack([group.mean - group.control_mean for group in mine])
        new = np.stack([vectors[name] for name in asked["perturbation"]])
        own = controls.cells[cell_type, batch]
        for (_, row), change in zip(asked.iterrows(), ridge(x, y, new), strict=True):
            taken = own[rng.integers(own.shape[0], size=row["cells"])].toarray() + change
            cells.append(sp.csr_matrix(np.maximum(taken, 0).astype(np.float32)))
            rows += [(row["perturbation"], cell_type, batch)] * row["cells"]
        cells.append(own)
        rows += [(store.control, cell_type, batch)] * own.shape[0]
    obs = pd.DataFrame(rows, columns=["perturbation", "cell_type", "batch"], dtype=str)
    obs.index = obs.index.astype(str)
    return anndata.AnnData(X=sp.vstack(cells, format="csr"), obs=obs, var=pd.DataFrame(index=store.genes))


def scores_of_ridge(store, table: Path, prediction: Path, output: Path) -> dict:
    """Means of the rival's metrics, on the conditions of `prediction`."""
    with np.load(table) as content:
        vectors = dict(zip(content["names"].tolist(), content["vectors"].astype(np.float64)))
    keys = {"perturbation_key": "perturbation", "cell_type_key": "cell_type", "batch_key": "batch"}
    both = {"perturbdiff": str(prediction), RIDGE: moved_by_ridge(store, vectors)}
    evaluate(both, store.path, output, control=store.control, **keys, echo=lambda _: None)
    return json.loads((output / "summary.json").read_text())["models"][RIDGE]


def main() -> None:
    """Trains each row and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--perturbations", type=int, default=150)
    parser.add_argument("--steps", type=int, default=3000)
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    world = WORLD | {"simulate.perturbations": args.perturbations, "train.steps": args.steps}
    world |= {"train.validate_every": max(1, args.steps // 6)}
    config = config_of(args.workdir, world)
    store = open_store(from_config(config), args.workdir)
    rows = {}
    for row, encoding in tables(config, args.workdir).items():
        told = {
            "data.store": str(store.path),
            "covariates.perturbation": encoding,
            "covariates.allow_unknown": True,
        }
        workdir = args.workdir / row.replace(" ", "_")
        train_and_evaluate(config_of(workdir, world | told), workdir)
        models = json.loads((workdir / "summary.json").read_text())["models"]
        rows[row] = models["perturbdiff"]
    prediction = args.workdir / "informative_vectors/predictions.h5ad"
    rows[RIDGE] = scores_of_ridge(store, args.workdir / "informative.npz", prediction, args.workdir / "ridge")
    rows |= {name: models[name] for name in BASELINES if name in models}
    write_json(args.workdir / "unseen.json", rows)
    print("\n| told by | " + " | ".join(SHOWN) + " |\n" + "|---" * (1 + len(SHOWN)) + "|")
    for row, scores in rows.items():
        cells = []
        for metric in SHOWN:
            mean, low, high = (scores[metric].get(part) for part in ("mean", "low", "high"))
            cells.append("-" if low is None else f"{mean:.3f} [{low:.3f}, {high:.3f}]")
        print(f"| {row} | {' | '.join(cells)} |")
    print(f"\n{args.workdir / 'unseen.json'}")


if __name__ == "__main__":
    main()

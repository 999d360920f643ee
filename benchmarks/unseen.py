"""Perturbations that training never saw: are they predicted from vectors that know something about them?

    python benchmarks/unseen.py --workdir=runs/unseen [--perturbations 150] [--steps 3000]

Simulates a screen, holds out a fifth of the perturbations in all contexts, and trains the quickstart's network three
times: told by vectors of what perturbations drive, by the same vectors dealt to other names, and by the names alone
(which cannot tell them apart). Scores the held-out perturbations against what is left to predict them with: the mean
of all trained perturbations, and control cells. Prints one table, writes unseen.json.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from perturbdiff_jax.data.simulate import embeddings_of, simulate
from perturbdiff_jax.main import parse
from perturbdiff_jax.run_record import write_json
from perturbdiff_jax.run_setup import open_store
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

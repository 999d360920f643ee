"""What does each change to the released recipe bring? The quickstart, with one option at a time set back.

    python benchmarks/recipe.py --workdir=runs/recipe [--config=configs/quickstart.py] [--config.x.y=v ...]

Trains what has to be trained anew (one run each for the recipe, the anchor, the average and all of them together),
samples the rest from the recipe's checkpoint, scores everything on the same hold-out, prints one table and writes
recipe.json. Overrides apply to every row. About a quarter of an hour on two cores.
"""

import copy
import json
import sys
from pathlib import Path

from perturbdiff_jax.evaluation.evaluate import evaluate
from perturbdiff_jax.main import parse
from perturbdiff_jax.predict import load
from perturbdiff_jax.prediction.controls import from_store
from perturbdiff_jax.prediction.design import split_design
from perturbdiff_jax.run_record import write_json
from perturbdiff_jax.run_store import open_store
from perturbdiff_jax.settings import from_config
from perturbdiff_jax.train import train_and_evaluate

RELEASED_EMA = {"ema.rule": "released", "ema.decay": 0.99, "ema.every": 10}
RELEASED_WALK = {"sampler.start": 100, "sampler.steps": 100, "sampler.guidance": 1.0, "sampler.cutoff": 1e-4}
# Row -> (what is trained anew, what is sampled otherwise).
ROWS = {
    "this recipe": ({}, {}),
    "no anchor": ({"model.anchor": "none"}, {}),
    "absent skipped": ({"optim.absent": "skip"}, {}),
    "released average": (RELEASED_EMA, {}),
    "walk from t = 99": ({}, {"sampler.start": 100, "sampler.steps": 10}),
    "guidance 1": ({}, {"sampler.guidance": 1.0}),
    "cut-off 1e-4": ({}, {"sampler.cutoff": 1e-4}),
    "all as released": (
        {"model.anchor": "none", "objective.drop_condition": 0.5, **RELEASED_EMA},
        RELEASED_WALK,
    ),
}
SHOWN = ("discrimination_score_l1", "pearson_delta", "energy", "r2", "overlap_at_N", "pr_auc")


def changed(config, changes: dict):
    """A copy of the config with dotted keys set."""
    config = copy.deepcopy(config)
    for name, value in changes.items():
        section, key = name.split(".")
        config[section][key] = value
    return config


def score(config, workdir: Path, store, output: Path) -> dict:
    """Predicts the test split from the bundle in `workdir` with the config's sampler; summary of our metrics."""
    settings = from_config(config)
    predicted = load(workdir).predict_design(
        split_design(store, "test"), from_store(store), sampler=settings.sampler, seed=settings.seed
    )
    keys = store.manifest["keys"]
    evaluate(
        predicted,
        store.path,
        output,
        perturbation_key=keys["perturbation"],
        control=store.control,
        cell_type_key=keys["cell_type"],
        batch_key=keys["batch"],
        echo=lambda line: None,
    )
    return json.loads((output / "summary.json").read_text())["models"]["perturbdiff"]


def main(arguments: list[str]) -> None:
    """Runs every row and prints the table."""
    if not any(word.startswith("--config=") for word in arguments):
        arguments = ["--config=configs/quickstart.py", *arguments]
    config, workdir = parse(arguments)
    workdir = Path(workdir)
    store = open_store(from_config(config), workdir)
    config.data.store = str(store.path)
    table, trained = {}, {}
    for row, (training, sampling) in ROWS.items():
        key = json.dumps(training, sort_keys=True)
        if key not in trained:
            trained[key] = workdir / f"run{len(trained)}"
            print(f"== {row}: training", flush=True)
            train_and_evaluate(changed(config, training), trained[key])
        table[row] = score(
            changed(config, training | sampling),
            trained[key],
            store,
            workdir / "scores" / row.replace(" ", "_"),
        )
    write_json(workdir / "recipe.json", table)
    print(f"\n| {'row':17s} | " + " | ".join(SHOWN) + " |\n|---" * 1 + "|---" * len(SHOWN) + "|")
    for row, metrics in table.items():
        cells = (
            f"{metrics[m]['mean']:.3f} [{metrics[m]['low']:.3f}, {metrics[m]['high']:.3f}]" for m in SHOWN
        )
        print(f"| {row:17s} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])

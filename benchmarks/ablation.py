"""What do the energy term and self-conditioning bring? The same training with one of them left out, on several data.

    python benchmarks/ablation.py --workdir=runs/ablation [--seeds 2] [--steps 800]
    python benchmarks/ablation.py --workdir=runs/ablation_own --stores "mine=stores/mine, other=stores/other"

Trains configs/own_data.py in the released form (whole cells are predicted, no anchor): as it is, without the energy
(MMD) term, without the squared error, and without self-conditioning. Scores the held-out conditions beside rivals.
Without --stores the cells are simulated (simulate.form=cytokines). Intervals are over conditions, of means over seeds.
Prints a table for each data set; writes ablation.json and curves.png (validation against steps, a panel for each).
"""

import argparse
import dataclasses
from pathlib import Path

from trained_rows import (
    CURVE,
    RELEASED_FORM,
    RIVALS,
    ROOT,
    Row,
    changed,
    config_at,
    curve_of,
    finished,
    scores_of,
    table,
)
from trained_rows_picture import draw_curves

from perturbdiff_jax.data_options import named_parts
from perturbdiff_jax.run_record import write_json

WORLD = {
    "simulate.form": "cytokines",
    "simulate.cell_types": 3,
    "simulate.batches": 4,
    "simulate.perturbations": 24,
    "simulate.genes": 300,
    "data.split": str(ROOT / "configs/splits/pbmc.json"),
}
WAYS = {
    "as released": {},
    "without the energy term": {"objective.mmd_weight": 0.0},
    "without the squared error": {"objective.mse_weight": 0.0},
    "without self-conditioning": {"objective.self_condition": 0.0},
}


def rows_of(args: argparse.Namespace, base, name: str, store: str) -> list[Row]:
    """A row for each way to train on a store, and for each rival."""
    cells = {"data.store": store} if store else WORLD
    every = cells | {"train.steps": args.steps, "train.validate_every": max(1, args.steps // 8)}
    rows = []
    for way, own in WAYS.items():
        folders = []
        for seed in range(args.seeds):
            folder = args.workdir / f"{name}-{way.replace(' ', '_')}-{seed}"
            folders.append(finished(changed(base, every | own | {"seed": seed}), folder))
        curves = [curve_of(folder, CURVE) for folder in folders]
        rows.append(Row(name=way, fraction=1.0, scores=scores_of(folders), curves=curves))
    return rows + [
        Row(name=rival, fraction=1.0, scores=scores_of(folders, rival), curves=[]) for rival in RIVALS
    ]


def main() -> None:
    """Trains, prints the tables, draws the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--stores", default="", help="NAME=STORE, ...")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=800)
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    base = changed(config_at(ROOT / "configs/own_data.py"), RELEASED_FORM)
    stores = named_parts("--stores", args.stores, "NAME=STORE") or {"simulated": ""}
    found = {name: rows_of(args, base, name, store) for name, store in stores.items()}
    write_json(
        args.workdir / "ablation.json",
        {name: [dataclasses.asdict(row) for row in rows] for name, rows in found.items()},
    )
    draw_curves(found, CURVE, args.workdir / "curves.png")
    for name, rows in found.items():
        print(f"\n{name}\n\n{table(rows)}")
    print(f"\n{args.workdir / 'ablation.json'}")


if __name__ == "__main__":
    main()

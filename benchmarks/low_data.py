"""Few perturbed cells: does a network that was pretrained on unperturbed and unlabelled cells need fewer of them?

    python benchmarks/low_data.py --workdir=runs/low_data [--fractions 0.01,0.05,0.2,1] [--seeds 2]
    python benchmarks/low_data.py --workdir=runs/low_data_own --sources "mine=stores/mine, atlas=stores/atlas"

Pretrains on all sources (config.data.sources: marginals, no perturbation is told), then trains on shares of the
training cells of the first source: "scratch" from drawn weights, "finetuned" from the pretrained ones, both in the
released form and for as many steps; and "scratch, anchored", which predicts the change of a control cell
(model.anchor=control). Scored are the held-out conditions, with "zero-shot", the pretrained network itself, and rivals
that were fitted on the same share. Without --sources a world of four data sets is simulated (simulate.form=sources).

Every seed draws other cells and other weights. Intervals are over conditions, of means over seeds. Prints one table;
writes low_data.json, low_data.png (scores against shares) and curves.png (validation against steps).
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
    apart,
    changed,
    config_at,
    curve_of,
    finished,
    scores_of,
    table,
)
from trained_rows_picture import draw_curves, draw_shares

from perturbdiff_jax.run_record import write_json
from perturbdiff_jax.run_store import open_store
from perturbdiff_jax.settings import from_config

PICTURED = ("pearson_delta", "energy", "r2", "discrimination_score_l1")
PRETRAINING = {
    "model.use_perturbation": "no",
    "objective.drop_control": 1.0,
    "loader.train_on_controls": "yes",
}
WORLD = {
    "simulate.form": "sources",
    "simulate.cell_types": 3,
    "simulate.batches": 4,
    "simulate.perturbations": 24,
    "simulate.genes": 300,
}


def pretrained(args: argparse.Namespace, base) -> tuple[Path, dict[str, str]]:
    """(folder of the finished pretraining, source -> store)."""
    folder = args.workdir / "pretraining"
    given = {"data.sources": args.sources} if args.sources else WORLD
    steps = {
        "train.steps": args.pretraining_steps,
        "train.validate_every": max(1, args.pretraining_steps // 6),
    }
    config = changed(base, PRETRAINING | given | steps)
    finished(config, folder)
    store = open_store(from_config(config), folder)
    return folder, dict(zip(store.names, (str(one.path) for one in store.stores)))


def shares(args: argparse.Namespace, base, pretraining: Path, source: str, store: str) -> list[Row]:
    """The table's rows: every way to train on every share."""
    begun = {"init_from": str(pretraining / "bundle"), "init_source": source, "init_layers": args.init_layers}
    ways = {"scratch": {}, "finetuned": begun, "scratch, anchored": {"model.anchor": "control"}}
    every = {"train.steps": args.steps, "train.validate_every": max(1, args.steps // 8), "data.store": store}
    rows = []
    for fraction in args.fractions:
        folders = {}
        for way, own in ways.items():
            folders[way] = []
            for seed in range(args.seeds):
                share = {"data.fraction": fraction, "data.fraction_seed": seed, "seed": seed}
                folder = args.workdir / f"{way.replace(', ', '_')}-{fraction:g}-{seed}"
                folders[way].append(finished(changed(base, every | own | share), folder))
            curves = [curve_of(folder, CURVE) for folder in folders[way]]
            rows.append(Row(name=way, fraction=fraction, scores=scores_of(folders[way]), curves=curves))
        rows += [
            Row(name=rival, fraction=fraction, scores=scores_of(folders["scratch"], rival), curves=[])
            for rival in RIVALS
        ]
    return rows


def main() -> None:
    """Trains, prints the table, draws the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--sources", default="", help="NAME=STORE, ...; the first is the one to finetune on")
    parser.add_argument(
        "--fractions", type=lambda text: [float(x) for x in text.split(",")], default="0.01,0.05,0.2,1"
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--pretraining-steps", type=int, default=3000)
    parser.add_argument("--init-layers", default="keep", choices=("keep", "fresh"))
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    base = changed(config_at(ROOT / "configs/own_data.py"), RELEASED_FORM)
    pretraining, stores = pretrained(args, base)
    source, store = next(iter(stores.items()))
    zero_shot = pretraining / "zero_shot" / source
    rows = [Row(name="zero-shot", fraction=0.0, scores=scores_of([zero_shot]), curves=[])]
    rows += shares(args, base, pretraining, source, store)
    write_json(args.workdir / "low_data.json", [dataclasses.asdict(row) for row in rows])
    drawn = [row for row in rows if row.name != "ceiling"]
    draw_shares(drawn, PICTURED, args.workdir / "low_data.png")
    by_share = {
        f"{100 * fraction:g} % of the cells": [row for row in rows if row.fraction == fraction]
        for fraction in args.fractions
    }
    draw_curves(by_share, CURVE, args.workdir / "curves.png")
    print("\n" + table(rows) + "\n")
    found = {(row.name, row.fraction): row.scores for row in rows}
    for fraction in args.fractions:
        one, other = found["finetuned", fraction], found["scratch", fraction]
        verdicts = [
            f"{metric} {one[metric]['mean']:.3f} against {other[metric]['mean']:.3f}"
            f"{' (apart)' if apart(one[metric], other[metric]) else ''}"
            for metric in PICTURED
        ]
        print(f"{100 * fraction:g} %, finetuned against scratch: {', '.join(verdicts)}")
    print(f"\n{args.workdir / 'low_data.json'}")


if __name__ == "__main__":
    main()

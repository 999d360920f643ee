"""How good are predictions after how many network evaluations? Every sampler and guidance on held-out conditions.

    python benchmarks/sampling.py --workdir runs/quickstart [runs/papalexi ...] [--output runs/sampling] [--full]
        [--guidance 0 0.5 1] [--walks "DDIM, 5" "fast, 4" ...]

Each WORKDIR is that of a finished training run: its best weights predict the test split of its store, and the
populations are compared with the real cells. Means over conditions with 95 % bootstrap intervals; "against the
released walk" is the difference condition by condition, so that hard and easy conditions cancel. Seconds are those of
one batch of sets, the walks by turns, without compilation. Prints one table for each run, writes sampling.json and
sampling.png after each; rows of earlier calls with the same --output stay.
"""

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sampling_picture import draw
from sampling_table import METRICS, fronts, place, table

import perturbdiff_jax as pdx
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.diffusion.samplers import SamplerOptions
from perturbdiff_jax.evaluation.contexts import pool
from perturbdiff_jax.evaluation.inputs import Keys
from perturbdiff_jax.evaluation.real_cells import read_contexts
from perturbdiff_jax.evaluation.scoring import Scorer
from perturbdiff_jax.evaluation.summary import interval
from perturbdiff_jax.prediction.controls import from_store
from perturbdiff_jax.prediction.design import split_design
from perturbdiff_jax.run_record import write_json

GUIDANCE = (0.0, 0.5, 1.0)
RELEASED = {"name": "ddim", "start": 100, "steps": 100}
WALKS = {
    "released (DDIM from t = 99)": RELEASED,
    "DDIM, 5": {"name": "ddim", "steps": 5},
    "DDIM, 10": {"name": "ddim", "steps": 10},
    "DDIM, 20": {"name": "ddim", "steps": 20},
    "DDIM, 50": {"name": "ddim", "steps": 50},
    "DDIM from t = 99, 10": {"name": "ddim", "start": 100, "steps": 10},
    "DDIM eta 1, 50": {"name": "ddim", "steps": 50, "eta": 1.0},
    "DDPM from t = 99": {"name": "ddpm", "start": 100, "steps": 100},
    "fast, 4": {"name": "fast", "steps": 4},
    "fast, 6": {"name": "fast", "steps": 6},
    "fast, 8": {"name": "fast", "steps": 8},
    "fast, 10": {"name": "fast", "steps": 10},
    "fast, 20": {"name": "fast", "steps": 20},
    "DDIM, even in log SNR, 10": {"name": "ddim", "steps": 10, "spacing": "log_snr"},
    "fast, even in log SNR, 4": {"name": "fast", "steps": 4, "spacing": "log_snr"},
    "fast, even in log SNR, 10": {"name": "fast", "steps": 10, "spacing": "log_snr"},
}
FULL = {
    "DDIM, all 1,000": {"name": "ddim", "steps": 1000},
    "DDPM, all 1,000": {"name": "ddpm", "steps": 1000},
}
SETS = 8  # of the timed batch
TIMED = ("start", "steps", "eta", "guidance", "cutoff", "spacing")
TURNS = 3


class HeldOut:
    """A finished run with the real cells of its test split."""

    def __init__(self, workdir: Path):
        self.model = pdx.load(workdir)
        own = workdir / "store"
        store = Store.open(own if own.exists() else self.model.options.data.store)
        self.controls, self.design = from_store(store, self.model.bundle), split_design(store, "test")
        named = store.manifest["keys"]
        keys = Keys(named["perturbation"], store.control, named["cell_type"], named["batch"])
        wanted = set(self.design[["perturbation", "cell_type", "batch"]].itertuples(index=False, name=None))
        if not named["cell_type"]:
            wanted = {(p, "all", b) for p, _, b in wanted}
        if not named["batch"]:
            wanted = {(p, c, "all") for p, c, _ in wanted}
        contexts, _ = read_contexts(
            store.path,
            keys,
            wanted,
            self.model.bundle.genes,
            target_sum=None,
            total_key=None,
            echo=lambda _: None,
        )
        self.keys = keys
        self.scorers = {
            context.cell_type: Scorer(context, store.control, use_celleval=False) for context in contexts
        }

    def scores(self, sampler: SamplerOptions) -> pd.DataFrame:
        """METRICS of every (cell type, perturbation), from as many cells as the real ones."""
        predicted = self.model.predict_design(
            self.design, self.controls, sampler=sampler, echo=lambda _: None
        )
        obs = predicted.obs
        cells = obs[obs[self.keys.perturbation].astype(str) != self.keys.control]
        columns = {"cell_type": self.keys.cell_type, "batch": self.keys.batch}
        labels = {
            role: cells[key].astype(str) if key else pd.Series("all", cells.index)
            for role, key in columns.items()
        }
        labels["perturbation"] = cells[self.keys.perturbation].astype(str)
        rows = pd.DataFrame(labels).reset_index(drop=True)
        frames = []
        for cell_type, scorer in self.scorers.items():
            own = rows[rows["cell_type"] == cell_type].groupby(["batch", "perturbation"]).indices
            inside = np.flatnonzero(rows["cell_type"] == cell_type)
            found = {key: predicted.X[inside[at]] for key, at in own.items()}
            frames.append(scorer.score(pool(found))[0])
        return pd.concat(frames).set_index(["cell_type", "perturbation"])[list(METRICS)]

    def batch(self) -> dict:
        """Sets of one timed batch, as arrays for the low door."""
        cells = self.model.options.loader.cells_per_set
        own = next(iter(self.controls.cells.values()))
        rows = np.arange(SETS * cells) % own.shape[0]
        control = own[rows].toarray().reshape(SETS, cells, -1) / self.model.bundle.values["divisor"]
        return {
            "control": control.astype(np.float32),
            "perturbation": np.zeros(SETS, np.int32),
            "cell_type": np.zeros(SETS, np.int32),
            "batch": np.zeros(SETS, np.int32),
            "source": None if not self.model.sources else 0,
        }


def timed(held: HeldOut, walks: dict[str, SamplerOptions]) -> dict[str, float]:
    """Seconds for 1,000 cells of every walk: medians of TURNS turns."""
    batch, taken = held.batch(), {name: [] for name in walks}
    cells = batch["control"].shape[0] * batch["control"].shape[1]
    for turn in range(TURNS + 1):
        for name, walk in walks.items():
            asked = {
                field: getattr(walk, field)
                for field in ("start", "steps", "eta", "guidance", "cutoff", "spacing")
            }
            began = time.perf_counter()
            held.model.sample(**batch, sampler=walk.name, **asked)
            if turn:  # the first compiles
                taken[name].append(time.perf_counter() - began)
    return {name: 1000 / cells * statistics.median(seconds) for name, seconds in taken.items()}


def measure(workdir: Path, walks: dict[str, dict], guidance: list[float]) -> list[dict]:
    """A row for every walk and guidance of one run."""
    held = HeldOut(workdir)
    cutoff = held.model.options.sampler.cutoff
    asked = {
        f"{name}, w = {w:g}": SamplerOptions(**walk, guidance=w, cutoff=cutoff)
        for w in guidance
        for name, walk in walks.items()
    }
    seconds = timed(held, asked)
    rows, found = [], {}
    for number, (name, walk) in enumerate(asked.items(), 1):
        found[name] = held.scores(walk)
        row = {
            "run": workdir.name,
            "walk": name.rsplit(", w", 1)[0],
            "sampler": walk.name,
            "guidance": walk.guidance,
            "evaluations": walk.steps * (2 if walk.guidance else 1),
            "seconds": seconds[name],
            "options": dataclasses.asdict(walk),
        }
        base = found[f"{next(iter(walks))}, w = {walk.guidance:g}"]
        for metric in METRICS:
            row[metric] = interval(found[name][metric].to_numpy())
            row[f"{metric} against released"] = interval((found[name][metric] - base[metric]).to_numpy())
        rows.append(row)
        print(f"[{number}/{len(asked)}] {workdir.name}: {name}", flush=True)
    return fronts(rows)


def main() -> None:
    """Measures every run, prints its table, draws the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", nargs="+", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/sampling"))
    parser.add_argument("--guidance", nargs="+", type=float, default=list(GUIDANCE))
    parser.add_argument("--full", action="store_true", help="walks of 1,000 steps as well")
    parser.add_argument("--walks", nargs="+", metavar="NAME", help="these alone, and the released one")
    args = parser.parse_args()
    walks = WALKS | (FULL if args.full or args.walks else {})
    if args.walks:
        unknown = [name for name in args.walks if name not in walks]
        if unknown:
            parser.error(f"--walks {unknown[0]!r}: allowed are {'; '.join(walks)}")
        # All are compared with the first.
        walks = {name: walk for name, walk in walks.items() if name in (next(iter(walks)), *args.walks)}
    args.output.mkdir(parents=True, exist_ok=True)
    file = args.output / "sampling.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    for workdir in args.workdir:
        found = measure(workdir, walks, args.guidance)
        table(found)
        new = {place(row) for row in found}
        rows = fronts([row for row in rows if place(row) not in new] + found)
        write_json(file, rows)
        draw(rows, METRICS, args.output / "sampling.png")
    print(f"\n{file}, {args.output / 'sampling.png'}")


if __name__ == "__main__":
    main()

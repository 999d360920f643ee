"""How long does it take to score a prediction, and how long does cell-eval take for its part of the same scores?

    python benchmarks/evaluation.py --workdir=runs/evaluation [--cells=20000] [--perturbations=100] [--genes=2000]
                                    [--rounds=3] [--quick]

Simulates a screen of two batches (about 89 % zeros), holds out one and takes the cells of the other as its prediction,
writes the h5ad files (once), and runs by turns, each as a process of its own:

  everything, cold     `perturbdiff evaluate` with all rivals, the ceiling and all intervals; nothing kept from before
  everything, warm     the same again, with the kept differential expression of the real cells
  prediction, cold     the same without a store: the prediction, the control rival and the ceiling
  cell-eval            `cell-eval run` on the same two files: the prediction alone, without energy distances
  page                 `perturbdiff report`: the pictures

Prints one table of wall and CPU seconds and memory, one of the stages inside, one of how far the scores of both tools
are apart, and writes evaluation.json. Linux only (it reads /proc).
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from prepare import resident

from perturbdiff_jax.data.prepare import PrepareOptions, prepare
from perturbdiff_jax.data.simulate import CONTROL, SimulateOptions, simulate
from perturbdiff_jax.run_record import write_json
from perturbdiff_jax.telemetry.environment import cores, versions

OURS = [sys.executable, "-c", "from perturbdiff_jax.cli import run; raise SystemExit(run())"]
THEIRS = [sys.executable, "-m", "cell_eval", "run"]
SKIPPED = "clustering_agreement,pearson_edistance"  # metrics that we do not report
KEYS = ["--perturbation-key=perturbation", f"--control={CONTROL}", "--batch-key=batch"]
PACKAGES = ("python", "cell-eval", "numpy", "scipy", "anndata", "pandas")


def write_screen(folder: Path, *, cells: int, perturbations: int, genes: int) -> None:
    """real.h5ad, pred.h5ad (log1p) and store in `folder`; about `cells` held-out cells, a tenth as many controls."""
    options = SimulateOptions(
        cell_types=1,
        batches=2,
        perturbations=perturbations,
        genes=genes,
        programs=40,
        cells_per_group=max(8, cells // perturbations),
        controls_per_context=max(40, cells // 10),
        library_size=0.2 * genes,
    )
    screen, _ = simulate(options)
    fresh = folder.with_name(folder.name + ".part")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    screen.write_h5ad(fresh / "screen.h5ad")
    held_out = {"fraction": 1.0, "context": {"batch": "B2"}}
    keys = PrepareOptions(
        perturbation_key="perturbation", control=CONTROL, batch_key="batch", hvg=None, holdout=held_out
    )
    prepare([fresh / "screen.h5ad"], fresh / "store", keys, echo=lambda _: None)
    totals = np.asarray(screen.X.sum(axis=1)).ravel()
    screen.X.data = np.log1p(screen.X.data * np.repeat(1e4 / totals, np.diff(screen.X.indptr))).astype(
        np.float32
    )
    is_control, is_test = (screen.obs["perturbation"] == CONTROL), (screen.obs["batch"] == "B2")
    predicted = anndata.concat([screen[~is_test & ~is_control], screen[is_test & is_control]])
    predicted.obs["batch"] = "B2"
    predicted.write_h5ad(fresh / "pred.h5ad")
    screen[is_test].copy().write_h5ad(fresh / "real.h5ad")
    (fresh / "screen.h5ad").unlink()
    os.replace(fresh, folder)


def measured(words: list[str], log: Path) -> dict[str, float]:
    """Runs a command; wall and CPU seconds, peak memory in GiB. What it says goes into `log`."""
    before, began, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), 0
    with log.open("w") as file:
        running = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)
        while running.poll() is None:
            peak = max(peak, resident(running.pid))
            time.sleep(0.05)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if running.returncode:
        raise SystemExit(f"{' '.join(words)}\nended with {running.returncode}:\n{log.read_text()[-2000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "cpu": cpu, "peak": peak / 2**30, "load": os.getloadavg()[0]}


def commands(screen: Path, output: Path) -> dict[str, list[str]]:
    """Row -> its command, in the order of a round."""
    files = [f"--pred={screen / 'pred.h5ad'}", f"--real={screen / 'real.h5ad'}", *KEYS]
    everything = [
        *OURS,
        "evaluate",
        *files,
        f"--baselines={screen / 'store'}",
        f"--output={output / 'everything'}",
    ]
    pair = [
        "-ap",
        str(screen / "pred.h5ad"),
        "-ar",
        str(screen / "real.h5ad"),
        "-o",
        str(output / "cell-eval"),
    ]
    columns = ["--pert-col=perturbation", f"--control-pert={CONTROL}", f"--num-threads={cores()}"]
    return {
        "everything, cold": everything,
        "cell-eval": [*THEIRS, *pair, *columns, f"--skip-metrics={SKIPPED}"],
        "prediction, cold": [*OURS, "evaluate", *files, f"--output={output / 'prediction'}"],
        "everything, warm": everything,
        "page": [*OURS, "report", f"--workdir={output / 'everything'}"],
    }


def one_round(screen: Path, output: Path) -> dict[str, dict]:
    """Row -> its figures; rows of ours with the stages that summary.json tells of."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    rows = {}
    for row, words in commands(screen, output).items():
        rows[row] = measured(words, output / "said.txt")
        if "evaluate" in words:
            folder = output / row.partition(",")[0]
            settings = json.loads((folder / "summary.json").read_text())["settings"]
            stages = settings["stages"]
            rows[row]["stages"] = stages | {"start, tables on disk": rows[row]["wall"] - sum(stages.values())}
            rows[row]["models"] = pd.read_csv(folder / "metrics_all.csv")["model"].nunique()
    return rows


def agreement(output: Path) -> dict[str, float]:
    """Metric that both tools report -> the largest difference over perturbations."""
    ours = pd.read_csv(output / "everything" / "metrics.csv", index_col="perturbation")
    theirs = pd.read_csv(output / "cell-eval" / "results.csv", index_col="perturbation")
    ours = ours.rename(columns={"n_sig_real": "de_nsig_counts_real", "n_sig_pred": "de_nsig_counts_pred"})
    shared = [name for name in ours.columns if name in theirs.columns]
    return {name: float((ours[name] - theirs.loc[ours.index, name]).abs().max()) for name in shared}


def summary(rounds: list[dict[str, dict]]) -> dict[str, dict]:
    """Row -> medians over the rounds, the quickest wall time, and the stages of the quickest round."""
    rows = {}
    for row in rounds[0]:
        found = [one[row] for one in rounds]
        quickest = min(found, key=lambda one: one["wall"])
        medians = {name: statistics.median(one[name] for one in found) for name in ("wall", "cpu", "peak")}
        rows[row] = (
            quickest | medians | {"quickest": quickest["wall"], "walls": [one["wall"] for one in found]}
        )
        rows[row]["of_cell_eval"] = statistics.median(
            one[row]["wall"] / one["cell-eval"]["wall"] for one in rounds
        )
    return rows


def lines(rows: dict[str, dict], apart: dict[str, float]) -> list[str]:
    """The three tables."""
    out = ["| | models | wall, s | quickest | CPU, s | peak, GiB | wall / cell-eval's |", "|---" * 7 + "|"]
    for row, got in rows.items():
        models = got.get("models", 1 if row == "cell-eval" else "")
        out.append(
            f"| {row} | {models} | {got['wall']:.1f} | {got['quickest']:.1f} | {got['cpu']:.1f} | {got['peak']:.2f} | "
            f"{got['of_cell_eval']:.2f} |"
        )
    ours = [row for row in rows if "stages" in rows[row]]
    out += ["", "| stage, s | " + " | ".join(ours) + " |", "|---" * (len(ours) + 1) + "|"]
    for stage in dict.fromkeys(stage for row in ours for stage in rows[row]["stages"]):
        seconds = (rows[row]["stages"].get(stage, 0.0) for row in ours)
        out.append(f"| {stage} | " + " | ".join(f"{value:.1f}" for value in seconds) + " |")
    out += ["", "| metric | largest difference from cell-eval's |", "|---|---|"]
    return out + [f"| {name} | {value:.1g} |" for name, value in apart.items()]


def main() -> None:
    """Runs the rounds and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workdir", type=Path, default=Path("runs/evaluation"))
    add("--cells", type=int, default=20_000, help="held-out cells, as many predicted, a tenth as controls")
    add("--perturbations", type=int, default=100)
    add("--genes", type=int, default=2_000)
    add("--rounds", type=int, default=3)
    add("--quick", action="store_true", help="a screen that is scored in seconds; its figures mean nothing")
    args = parser.parse_args()
    if args.quick:
        args.cells, args.perturbations, args.genes, args.rounds = 160, 4, 60, 1
    sizes = {"cells": args.cells, "perturbations": args.perturbations, "genes": args.genes}
    screen = args.workdir / "screen_{cells}_{perturbations}_{genes}".format(**sizes)
    if not screen.exists():
        write_screen(screen, **sizes)
    rounds = []
    for number in range(args.rounds):
        rounds.append(one_round(screen, args.workdir / "results"))
        told = ", ".join(
            f"{row} {got['wall']:.1f} s (load {got['load']:.1f})" for row, got in rounds[-1].items()
        )
        print(f"round {number + 1}: {told}", flush=True)
    rows, apart = summary(rounds), agreement(args.workdir / "results")
    known = versions()
    facts = {**sizes, "rounds": args.rounds, "cores": cores()}
    facts["versions"] = {name: known[name] for name in PACKAGES if name in known}
    write_json(args.workdir / "evaluation.json", {"rows": rows, "apart": apart, **facts})
    print("", facts, "", *lines(rows, apart), sep="\n")


if __name__ == "__main__":
    main()

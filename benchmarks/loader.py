"""How fast do cells reach the step, from memory and from the disk, and how fast do others read them?

    python benchmarks/loader.py --scratch DIR [--quick] [--cold] [--rows TEXT] [--repeats N] [--annbatch-python PYTHON]

Writes synthetic stores below DIR (once; 2.5 GB, with --cold another 2 GB), runs every row in a process of its own, and
prints one table and loader.json: cells per second of CPU time (all threads; perturbed and control cells both counted),
cells per second of wall time, how many times the former is of reading row by row, bytes shipped to a device per cell,
the share of cells and of shipped values that only fill up, seconds from opening to the first batch, and peak memory.
Medians of several turns, of an epoch each. --cold adds a store of ten million cells, also with its files dropped from
the page cache before every turn (posix_fadvise), so that its bytes come from the disk.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from loader_stores import Cells, groups_of, h5ad_at, store_at, words_at

from perturbdiff_jax.run_record import write_json

SETS = {"cells_per_set": 256, "sets_per_batch": 8, "densify": "device"}
TINY = {"cells_per_set": 32, "sets_per_batch": 64, "densify": "device"}
MIB = 2**20
BASE = "h5ad row by row, as released"


def stores(quick: bool) -> dict[str, Cells]:
    """Name -> cells of the synthetic stores."""
    part = 8 if quick else 1
    return {
        "plain": Cells(cells=1_000_000 // part),
        "wide": Cells(cells=160_000 // part, genes=12_626, controls=1_000, repeated=16_384),
        "dense": Cells(cells=320_000 // part, density=0.4, dense=True, controls=2_500, repeated=16_384),
        "tiny": Cells(cells=800_000 // part, group=5, ragged=True),
        "large": Cells(cells=10_000_000 // part, contexts=16, controls=20_000),
    }


def our_rows(cold: bool) -> dict[str, tuple[str, dict, dict]]:
    """Row -> (store, options of the source, more of the job)."""
    resident, streamed = {"tier": "resident"}, {"tier": "streamed"}
    rows = {
        "resident": ("plain", SETS | resident, {}),
        "streamed": ("plain", SETS | streamed, {}),
        "resident, 12,626 genes": ("wide", SETS | resident, {}),
        "streamed, 12,626 genes": ("wide", SETS | streamed, {}),
        "resident, 40 % dense": ("dense", SETS | resident, {}),
        "streamed, 40 % dense": ("dense", SETS | streamed, {}),
        "resident, groups of 5": ("tiny", TINY | resident, {}),
        "streamed, groups of 5": ("tiny", TINY | streamed, {}),
        "resident, dense on the host": ("plain", SETS | resident | {"densify": "host"}, {"most": 60}),
    }
    if cold:
        rows |= {
            "streamed, ten million cells": ("large", SETS | streamed, {"most": 2_000}),
            "the same, cold disk": ("large", SETS | streamed, {"most": 2_000, "cold": True}),
        }
    return rows


def job_groups(cells: Cells) -> list[dict]:
    """The group table as the opponents need it."""
    groups = groups_of(cells)
    return [
        {
            "start": int(groups.start[number]),
            "size": int(groups.size[number]),
            "is_control": bool(groups.is_control[number]),
            "control_start": int(groups.start[groups.control[number]]),
            "control_size": int(groups.size[groups.control[number]]),
        }
        for number in range(len(groups))
    ]


def jobs(scratch: Path, quick: bool, cold: bool, repeats: int) -> dict[str, dict]:
    """Row -> job of loader_worker.py; writes the stores that are missing."""
    kinds = stores(quick)
    made = {}
    for row, (name, options, more) in our_rows(cold).items():
        path = store_at(scratch, kinds[name])
        made[row] = {"kind": "ours", "store": str(path), "options": options, "steps": 0, **more}
    plain = kinds["plain"]
    sets = {"groups": job_groups(plain), "cells_per_set": 256}
    rows = {"kind": "per_row", "file": str(h5ad_at(scratch, plain)), "genes": plain.genes, **sets}
    steps = 4 if quick else 12
    made[BASE] = {**rows, "lean": False, "steps": steps}
    made["the same, arrays held open"] = {**rows, "lean": True, "steps": steps}
    words, pointers = words_at(scratch, plain)
    made["memory map, unshuffled"] = {
        "kind": "mapped",
        "words": str(words),
        "pointers": str(pointers),
        "steps": 2_000,
        **sets,
    }
    made["annbatch, blocks of 256"] = {
        "kind": "annbatch",
        "store": made["streamed"]["store"],
        "steps": 200 if quick else 1_500,
    }
    return {row: job | {"repeats": repeats} for row, job in made.items()}


def run(job: dict, python: str) -> dict:
    """The figures of a job, from a fresh process."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(job, file)
        file.flush()
        worker = Path(__file__).with_name("loader_worker.py")
        command = [python, str(worker), file.name]
        # One thread in BLAS: it is not used, and its threads would spin.
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    if done.returncode:
        return {"skipped": done.stderr.strip().splitlines()[-1] if done.stderr else f"exit {done.returncode}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def summary(figures: dict) -> dict:
    """Medians over the turns, with their range."""
    turns = figures["turns"]
    per_core = [turn["cells"] / turn["cpu"] for turn in turns]
    return {
        "cells_per_core_second": statistics.median(per_core),
        "range": [min(per_core), max(per_core)],
        "cells_per_second": statistics.median(turn["cells"] / turn["wall"] for turn in turns),
        "read_per_cell": statistics.median(turn["disk"] / turn["cells"] for turn in turns),
        **{name: value for name, value in figures.items() if name != "turns"},
    }


def lines(rows: dict[str, dict]) -> list[str]:
    """The table."""
    names = (
        "cells per core-second",
        "wall",
        "times",
        "shipped, B",
        "filling",
        "padding",
        "first batch, s",
        "peak, MiB",
    )
    out = ["| reader | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    base = rows.get(BASE, {}).get("cells_per_core_second")
    for row, got in rows.items():
        if "skipped" in got:
            out.append(f"| {row} | skipped: {got['skipped']} |" + " |" * (len(names) - 1))
            continue
        speed = got["cells_per_core_second"]
        shown = [
            f"{speed:,.0f}",
            f"{got['cells_per_second']:,.0f}",
            f"{speed / base:,.0f}" if base else "",
            f"{got['shipped']:,.0f}" if "shipped" in got else "",
            f"{got['filling']:.1%}" if "filling" in got else "",
            f"{got['padding']:.1%}" if "padding" in got else "",
            f"{got['first_batch']:.2f}" if "first_batch" in got else "",
            f"{got['memory_peak'] / MIB:,.0f}",
        ]
        out.append(f"| {row} | " + " | ".join(shown) + " |")
    return out


def growth(rows: dict[str, dict]) -> list[str]:
    """What the large store says besides its speed."""
    small, large, cold = (
        rows.get(name, {}) for name in ("streamed", "streamed, ten million cells", "the same, cold disk")
    )
    if "memory_first" not in large or "memory_first" not in small:
        return []
    cells = large["n_cells"] - small["n_cells"]
    per_cell = (large["memory_first"] - small["memory_first"]) / cells
    text = [f"Memory up to the first batch grows by {per_cell:.1f} bytes for each further cell of the store."]
    if "read_per_cell" in cold:
        text.append(f"Cold: {cold['read_per_cell']:.0f} bytes per cell came from the disk.")
    return text


def main() -> None:
    """Runs every row and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--scratch", required=True, help="folder for the synthetic stores; kept for the next run"
    )
    parser.add_argument("--quick", action="store_true", help="stores of an eighth of the size")
    parser.add_argument(
        "--cold", action="store_true", help="also ten million cells, from the page cache and the disk"
    )
    parser.add_argument("--rows", default="", help="only rows whose name contains this")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--annbatch-python", default=sys.executable, help="an interpreter that has annbatch")
    parser.add_argument("--output", default="runs/loader")
    args = parser.parse_args()
    scratch = Path(args.scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    rows = {}
    for row, job in jobs(scratch, args.quick, args.cold, args.repeats).items():
        if args.rows in row:
            python = args.annbatch_python if job["kind"] == "annbatch" else sys.executable
            figures = run(job, python)
            rows[row] = figures if "skipped" in figures else summary(figures)
            said = (
                rows[row].get("skipped") or f"{rows[row]['cells_per_core_second']:,.0f} cells per core-second"
            )
            print(f"{row}: {said}", flush=True)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    facts = {"python": platform.python_version(), "cores": len(os.sched_getaffinity(0)), "quick": args.quick}
    write_json(output / "loader.json", {"rows": rows, **facts})
    print("", facts, "", *lines(rows), "", *growth(rows), sep="\n")


if __name__ == "__main__":
    main()

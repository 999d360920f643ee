"""Does the full-size train step compile for TPUs and fit, and what does it compute and move there?

    pip install -e ".[tpu]"
    python benchmarks/tpu_aot.py [--topology v5e:4x4 ...] [--form finetuning ...] [--mesh data ...]
    python benchmarks/tpu_aot.py --scaling      # tables of docs/scaling.md, from the rows that are there

No TPU is needed: the compiler (libtpu) knows the topologies. Each row is compiled in a process of its own, is added to
the JSON file and is not compiled again as long as it stands there. What the columns are is told in hlo_cost.py and
hlo_collectives.py; the compiler's own `cost_analysis()` counts loops once and is not used.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import tpu_scaling
from tpu_chips import CHIPS, chip_of

HERE = Path(__file__).parent
TOPOLOGIES = ("v5e:4x4", "v5e:16x16", "v5p:4x4x4", "v6e:4x4")
FORMS = ("finetuning", "pretraining")
# Sizes of the mesh's axes; what is left of the chips is `data`.
MESHES = {"data": {}, "fsdp": {"fsdp": 16}, "tensor": {"tensor": 4}}
DEFAULT_MESHES = ("data", "fsdp")
GIB = 2**30


def rows(options: argparse.Namespace) -> list[dict]:
    """What to compile. Without options: every topology, form and mesh, and what they are compared with."""
    asked = [
        {
            "topology": topology,
            "form": form,
            "mesh": mesh,
            "batch": batch,
            "sets": sets,
            "remat": options.remat,
        }
        for topology in options.topology or TOPOLOGIES
        for form in options.form or FORMS
        for mesh in options.mesh or DEFAULT_MESHES
        for batch in options.batch or ("packed",)
        for sets in options.sets or (8,)
    ]
    if options.topology or options.form or options.mesh or options.batch or options.sets:
        return asked
    plain = {"form": "finetuning", "mesh": "data", "batch": "packed", "sets": 8, "remat": options.remat}
    small = [topology for topology in TOPOLOGIES if topology != "v5e:16x16"]
    return [
        *asked,
        *({**plain, "topology": topology, "sets": 1} for topology in small),
        {**plain, "topology": "v5e:4x4", "mesh": "tensor"},
        {**plain, "topology": "v5e:4x4", "batch": "dense"},
    ]


def compiled(row: dict, seconds: float, text: str = "") -> dict:
    """The row with what the worker found, or with `error`."""
    task = {
        **row,
        "mesh": MESHES[row["mesh"]],
        "cells": 256,
        "model": {"remat": row["remat"]},
        "text": text,
    }
    command = [sys.executable, str(HERE / "tpu_aot_worker.py"), json.dumps(task)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
    except subprocess.TimeoutExpired:
        return row | {"error": f"not compiled in {seconds:.0f} s"}
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "Error" in line or "EXHAUSTED" in line]
        return row | {"error": (lines or done.stderr.splitlines() or ["no message"])[-1][:400]}
    return row | json.loads(done.stdout.splitlines()[-1])


def peak_memory(row: dict) -> int:
    """Bytes that a device holds at most: arguments, results that are no argument's memory, temporaries, code."""
    memory = row["memory"]
    return sum(memory[name] for name in ("arguments", "temporary", "output", "code")) - memory["alias"]


def line(row: dict) -> str:
    """A row of the table."""
    name = f"{row['topology']} | {row['form']} | {row['mesh']}"
    marks = [f"{row['sets']} sets"] * (row["sets"] != 8) + [row["batch"]] * (row["batch"] != "packed")
    marks += [f"remat {row['remat']}"] * (row["remat"] != "none")
    name += f", {', '.join(marks)}" if marks else ""
    if "error" in row:
        return f"| {name} | {row['error']} |"
    chip, cost = chip_of(row["topology"]), row["cost"]
    memory = peak_memory(row)
    moved = {}
    for one in row["collectives"]:
        kind = {"all-reduce": "sum", "collective-permute": "ring"}.get(one["kind"], "gather")
        moved[kind] = moved.get(kind, 0.0) + one["bytes"] / 1e6
    shown = [f"{moved.get(kind, 0.0):,.0f}" for kind in ("sum", "gather", "ring")]
    fits = f"{memory / GIB:.1f} of {chip.memory / GIB:.0f}" + ("" if memory <= chip.memory else " (no!)")
    return (
        f"| {name} | {cost['flops'] / 1e12:.2f} | {cost['bytes'] / 1e9:.1f} | {fits} | {' | '.join(shown)} | "
        f"{1e3 * cost['cycles'] / chip.clock:.1f} | {row['compile_seconds']:.0f} |"
    )


HEAD = (
    "| topology | form | mesh | TFLOP | HBM traffic, GB | memory, GiB | sums, MB | gathers, MB | rings, MB | "
    "cycles, ms | compile, s |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def collective_lines(row: dict) -> list[str]:
    """Every kind of collective of a row: how many in the program, how often in a step, bytes."""
    lines = []
    for one in sorted(row["collectives"], key=lambda one: -one["bytes"]):
        if one["bytes"] < 1e5:
            continue
        place = ", ".join(
            text for text, yes in (("loop", one["in_loop"]), ("first pass", one["in_branch"])) if yes
        )
        lines.append(
            f"| {row['topology']} {row['form']} {row['mesh']} | {one['kind']} | {one['dtypes']} | {one['group']} | "
            f"{place or '-'} | {one['count']} | {one['runs']} | {one['bytes'] / 1e6:,.1f} | "
            f"{one['largest'] / 1e6:,.2f} |"
        )
    return lines


def main() -> None:
    """Compiles what is missing and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", nargs="+", metavar="KIND:SHAPE")
    parser.add_argument("--form", nargs="+", choices=FORMS)
    parser.add_argument("--mesh", nargs="+", choices=MESHES)
    parser.add_argument("--batch", nargs="+", choices=("packed", "dense"))
    parser.add_argument("--sets", nargs="+", type=int, help="sets of a batch for each chip")
    parser.add_argument("--remat", default="none", choices=("none", "full", "dots"))
    parser.add_argument("--output", default="runs/tpu_aot.json", type=Path)
    parser.add_argument("--text", default="", help="a file for the compiled text (one row)")
    parser.add_argument("--again", action="store_true", help="compile rows that are in the file already")
    parser.add_argument("--seconds", type=float, default=1800.0, help="at most for one row")
    parser.add_argument("--scaling", action="store_true", help="only the tables of docs/scaling.md")
    options = parser.parse_args()
    unknown = [name for name in options.topology or () if name.partition(":")[0] not in CHIPS]
    if unknown:
        parser.error(f"--topology {unknown[0]}: known kinds are {', '.join(CHIPS)}")
    done = json.loads(options.output.read_text()) if options.output.exists() else []
    if options.scaling:
        print(tpu_scaling.tables([row for row in done if "error" not in row]))
        return
    print(HEAD)
    asked = rows(options)
    for row in asked:
        known = [one for one in done if row.items() <= one.items() and "error" not in one]
        if not known or options.again:
            before = time.monotonic()
            known = [compiled(row, options.seconds, options.text)]
            known[0]["wall_seconds"] = time.monotonic() - before
            done = [one for one in done if not row.items() <= one.items()] + known
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(done, indent=1))
        print(line(known[0]), flush=True)
    print(
        "\n| step | kind | type | group | where | in the program | runs | MB | largest, MB |"
        "\n|---|---|---|---|---|---|---|---|---|"
    )
    for row in asked:
        (known,) = (one for one in done if row.items() <= one.items())
        if "error" not in known:
            print("\n".join(collective_lines(known)))


if __name__ == "__main__":
    main()

"""How fast does `perturbdiff prepare` turn an h5ad file into a store, and in how much memory?

    python benchmarks/prepare.py --workdir=runs/prepare [--cells=2000000] [--genes=2000] [--memory=1GiB] [--workers 1 2]
                                 [--gzip] [--hvg=2000]

Simulates a screen (CSR, float32, about 5 % of its numbers above 0), prepares it once for every number of workers
through the command line, prints one table and writes prepare.json. Memory is the largest sum over all processes of
what is resident, which counts shared pages again for every process. Linux only (it reads /proc).
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np

from perturbdiff_jax.commands.reading import size
from perturbdiff_jax.data.storage.writer import store_hash

BLOCK = 50_000  # cells drawn; they come again with other labels
COMMAND = "from perturbdiff_jax.cli import run; raise SystemExit(run())"
STRING = h5py.string_dtype()


def write_screen(path: Path, *, cells: int, genes: int, density: float = 0.05, gzip: bool = False) -> None:
    """An h5ad file of counts: 100 perturbations, 4 cell types, 10 batches; memory for one block of cells only."""
    rng = np.random.default_rng(0)
    block = min(cells, BLOCK)
    level = rng.gamma(0.5, 1.0, genes)
    above = rng.random((block, genes), dtype=np.float32) < np.clip(level / level.mean() * density, 0, 0.9)
    above[:, 0] = True  # no empty cell
    indices = np.nonzero(above)[1].astype(np.int32)
    sizes = above.sum(axis=1)
    data = rng.geometric(0.5, len(indices)).astype(np.float32)
    packing = {"chunks": (65_536,), "compression": "gzip", "compression_opts": 4} if gzip else {}
    fresh = path.with_suffix(".part")
    with h5py.File(fresh, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        matrix = file.create_group("X")
        shape = np.array([cells, genes])
        matrix.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
        pointers = np.concatenate([[0], np.cumsum(np.resize(sizes, cells))]).astype(np.int64)
        matrix["indptr"] = pointers
        for name, values in (("data", data), ("indices", indices)):
            array = matrix.create_dataset(name, (pointers[-1],), values.dtype, **packing)
            for first in range(0, cells, block):
                low, high = pointers[first], pointers[min(cells, first + block)]
                array[low:high] = values[: high - low]
        roles = {
            "perturbation": ["control", *(f"P{number:03}" for number in range(1, 100))],
            "cell_type": list("ABCD"),
            "batch": [f"B{number}" for number in range(10)],
        }
        obs = _frame(file, "obs", "AAACCTGAGAAACC{:08}-1", cells, list(roles))
        for name, names in roles.items():
            column = obs.create_group(name)
            column.attrs.update(
                {"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False}
            )
            codes = column.create_dataset("codes", data=rng.integers(0, len(names), cells).astype(np.int8))
            codes.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            texts = column.create_dataset("categories", data=names, dtype=STRING)
            texts.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
        _frame(file, "var", "gene{:05}", genes, [])
    os.replace(fresh, path)


def _frame(file: h5py.File, name: str, pattern: str, count: int, columns: list[str]) -> h5py.Group:
    frame = file.create_group(name)
    frame.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
    frame.attrs.create("column-order", np.array(columns, dtype=object if columns else "S1"), dtype=STRING)
    names = frame.create_dataset("_index", (count,), dtype=STRING)
    names.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    for first in range(0, count, BLOCK):
        names[first : first + BLOCK] = [pattern.format(i) for i in range(first, min(count, first + BLOCK))]
    return frame


def resident(process: int) -> int:
    """Bytes resident in a process and all below it."""
    total = 0
    try:
        total = int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        for thread in os.listdir(f"/proc/{process}/task"):
            children = Path(f"/proc/{process}/task/{thread}/children").read_text().split()
            total += sum(resident(int(child)) for child in children)
    except (OSError, IndexError):
        pass  # it has just ended
    return total


def measured(words: list[str], *, verb: str = "prepare") -> dict[str, float]:
    """Runs `perturbdiff` with a verb; wall and CPU seconds, peak memory."""
    before, began, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), 0
    running = subprocess.Popen([sys.executable, "-c", COMMAND, verb, *words])
    while running.poll() is None:
        peak = max(peak, resident(running.pid))
        time.sleep(0.02)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if running.returncode:
        raise SystemExit(running.returncode)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "cpu": cpu, "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--workdir", type=Path, required=True)
    add("--cells", type=int, default=2_000_000)
    add("--genes", type=int, default=2_000)
    add("--memory", default="1GiB")
    add("--workers", type=int, nargs="+", default=[1, 2])
    add("--gzip", action="store_true", help="the source's arrays are compressed")
    add("--hvg", type=int, help="choose so many highly variable genes; without it all are kept")
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    source = args.workdir / f"screen_{args.cells}_{args.genes}{'_gzip' if args.gzip else ''}.h5ad"
    if not source.exists():
        write_screen(source, cells=args.cells, genes=args.genes, gzip=args.gzip)
    store = args.workdir / "store"
    keys = ["--perturbation-key=perturbation", "--control=control"]
    keys += ["--cell-type-key=cell_type", "--batch-key=batch"]
    rows = []
    for workers in args.workers:
        shutil.rmtree(store, ignore_errors=True)
        words = [
            f"--input={source}",
            f"--output={store}",
            *keys,
            f"--memory={args.memory}",
            f"--workers={workers}",
        ]
        row = measured([*words, f"--hvg={args.hvg}" if args.hvg else "--all-genes"])
        manifest = json.loads((store / "manifest.json").read_text())
        files = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
        facts = {"workers": workers, "source_bytes": source.stat().st_size, "store_bytes": files}
        rows.append({**facts, **row, "hash": store_hash(manifest)})
    print(f"\n{args.cells:,} cells x {args.genes:,} genes, --memory {args.memory}\n")
    print(
        "| workers | wall, s | cells/s | cells/core-s | peak, MiB | allowed, MiB | source, B/cell | store, B/cell |"
    )
    print("|---|---|---|---|---|---|---|---|")
    allowed = size(args.memory) / 2**20 + 512
    for row in rows:
        print(
            f"| {row['workers']} | {row['wall']:.1f} | {args.cells / row['wall']:,.0f} | "
            f"{args.cells / row['cpu']:,.0f} | {row['peak'] / 2**20:,.0f} | {allowed:,.0f} | "
            f"{row['source_bytes'] / args.cells:,.0f} | {row['store_bytes'] / args.cells:,.0f} |"
        )
    assert len({row["hash"] for row in rows}) == 1, "the store depends on the number of workers"
    words = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    (args.workdir / "prepare.json").write_text(json.dumps({"asked": words, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()

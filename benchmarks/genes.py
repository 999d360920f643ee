"""How fast is a gene vocabulary made from many files, and does the memory depend on how large they are?

    python benchmarks/genes.py --workdir=runs/genes [--files=12] [--cells 10000 40000] [--genes=20000] [--workers 1 2]

Simulates files of counts (CSR, float32, about 500 numbers above 0 in a cell), each with its own 5/6 of the genes, makes
one vocabulary of four composites for every size and number of workers, prints one table and writes genes.json. Memory
is measured as in prepare.py.
"""

import argparse
import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from prepare import measured

ABOVE = 500  # numbers above 0 in a cell, about


def write_study(path: Path, *, cells: int, genes: int, seed: int) -> None:
    """An h5ad file of counts with `genes` of 1.2 times as many names."""
    rng = np.random.default_rng(seed)
    names = np.array([f"GENE{number:05}" for number in range(genes * 6 // 5)])
    level = rng.gamma(0.3, 1.0, genes)
    sizes = rng.poisson(ABOVE, cells) + 1
    indices = rng.choice(genes, size=sizes.sum(), p=level / level.sum()).astype(np.int32)
    data = rng.geometric(0.5, size=len(indices)).astype(np.float32)
    matrix = sp.csr_matrix((data, indices, np.concatenate([[0], np.cumsum(sizes)])), shape=(cells, genes))
    matrix.sum_duplicates()
    var = pd.DataFrame(index=names[np.sort(rng.choice(len(names), genes, replace=False))])
    obs = pd.DataFrame(index=[f"cell{number}" for number in range(cells)])
    anndata.AnnData(X=matrix, obs=obs, var=var).write_h5ad(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--workdir", type=Path, required=True)
    add("--files", type=int, default=12)
    add("--cells", type=int, nargs="+", default=[10_000, 40_000], help="cells of a file")
    add("--genes", type=int, default=20_000)
    add("--workers", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    rows = []
    for cells in args.cells:
        folder = args.workdir / f"{args.files}x{cells}x{args.genes}"
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"study{number:04}.h5ad" for number in range(args.files)]
        for number, path in enumerate(paths):
            if not path.exists():
                write_study(path, cells=cells, genes=args.genes, seed=number)
        lists = set()
        for workers in args.workers:
            output = folder / "vocabulary.txt"
            words = ["--input", *map(str, paths), "--composites=4", f"--output={output}", "--overwrite"]
            row = measured([*words, f"--workers={workers}"], verb="genes")
            source = sum(path.stat().st_size for path in paths)
            rows.append({"files": args.files, "cells": cells, "workers": workers, "bytes": source, **row})
            lists.add(output.read_text())
        assert len(lists) == 1, "the list depends on the number of workers"
    print(f"\n{args.files} files of {args.genes:,} genes\n")
    print("| cells | workers | wall, s | CPU, s | cells/core-s | peak, MiB | files, MiB |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        cells = row["files"] * row["cells"]
        print(
            f"| {cells:,} | {row['workers']} | {row['wall']:.1f} | {row['cpu']:.1f} | {cells / row['cpu']:,.0f} | "
            f"{row['peak'] / 2**20:,.0f} | {row['bytes'] / 2**20:,.0f} |"
        )
    (args.workdir / "genes.json").write_text(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()

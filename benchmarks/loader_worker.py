"""One row of loader.py in a process of its own: reads a job as JSON from its argument, prints its figures as JSON.

CPU time is that of all threads of this process, reading and decoding included. Where there is a stream, whole epochs
are timed, so that every window that is used has also been read.
"""

import itertools
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

SETTLED = 3  # batches before the clock starts


def memory() -> int:
    """Peak resident bytes of this process so far (`getrusage` would begin with those of the parent)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines["VmHWM"].split()[0])


def from_disk() -> int:
    """Bytes that this process had fetched from the disk, and not from the page cache."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def forget(path: Path) -> None:
    """Takes the files below `path` out of the page cache (they have to be written out for that)."""
    for file in (path,) if path.is_file() else path.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def timed(step, steps: int, repeats: int) -> list[dict]:
    """Runs `step()` -> cells, `steps` times, so often: cells, CPU seconds, wall seconds, bytes from the disk."""
    turns = []
    for _ in range(repeats):
        cpu, wall, disk = time.process_time(), time.perf_counter(), from_disk()
        cells = sum(step() for _ in range(steps))
        turns.append(
            {
                "cells": cells,
                "cpu": time.process_time() - cpu,
                "wall": time.perf_counter() - wall,
                "disk": from_disk() - disk,
            }
        )
    return turns


def ours(job: dict) -> dict:
    """The package's loader as training drives it: prefetched in a thread, packed for a device or dense."""
    from perturbdiff_jax.data.loader import SetSource
    from perturbdiff_jax.data.loading.prefetch import prefetch
    from perturbdiff_jax.data.store import Store

    path, options = Path(job["store"]), job["options"]
    if job.get("cold"):
        forget(path)
    before, began = memory(), time.perf_counter()
    store = Store.open(path)
    source = SetSource(store, seed=0, **options)
    batch = source[0]
    first = time.perf_counter() - began
    result = {"first_batch": first, "memory_first": memory() - before, "n_cells": store.n_cells}
    per_batch = 2 * options["sets_per_batch"] * options["cells_per_set"]
    shipped, used, room = 0, 0, 0
    for step in range(SETTLED):
        batch = source[step]
        arrays = [array for array in vars(batch).values() if array is not None]
        shipped += sum(array.nbytes for array in arrays)
        if options["densify"] == "device":
            rows = 1 + max(batch.perturbed.max(), batch.control.max())
            used += rows if batch.row_nnz is None else int(batch.row_nnz.sum())
            room += batch.data.shape[1]
    result |= {
        "shipped": shipped / SETTLED / per_batch,
        "filling": source.padding_share,
        "padding": 1 - used / room if room else 0.0,
    }
    ahead = prefetch(source, SETTLED)

    def step() -> int:
        next(ahead)
        return per_batch

    steps = job["steps"] or max(20, round(source.steps_per_epoch))
    steps = min(steps, job.get("most", steps))
    if not job.get("cold"):
        timed(step, steps, 1)  # what is not cold is warm
    result["turns"] = []
    for _ in range(job["repeats"]):
        if job.get("cold"):
            forget(path)
        result["turns"] += timed(step, steps, 1)
    ahead.close()
    return result


def rows_of_sets(job: dict):
    """Endless (perturbed rows, control rows) of sets of 256, from the job's group table."""
    draw = np.random.default_rng(0)
    conditions = [group for group in job["groups"] if not group["is_control"]]
    while True:
        group = conditions[draw.integers(len(conditions))]
        n = job["cells_per_set"]
        yield (
            group["start"] + draw.permutation(group["size"])[:n],
            group["control_start"] + draw.permutation(group["control_size"])[:n],
        )


def per_row(job: dict) -> dict:
    """Every cell for itself from an open h5ad file, made dense on the way.

    `lean`: two numbers and two slices of arrays that are held open. Otherwise with the HDF5 calls that the released
    loader makes for a cell: the group and its arrays looked up by name, attributes asked for, both row pointers
    read one by one.
    """
    import h5py

    genes, file = job["genes"], h5py.File(job["file"], "r")
    held = [file["X"][name] for name in ("indptr", "indices", "data")]

    def looked_up(row: int):
        matrix = file["X"]
        assert matrix.attrs["encoding-type"] == "csr_matrix"
        assert all(name in matrix for name in ("data", "indices", "indptr"))
        pointers = matrix["indptr"]
        low, high = int(pointers[row]), int(pointers[row + 1])
        return matrix["indices"][low:high], matrix["data"][low:high]

    def lean(row: int):
        pointers, indices, data = held
        low, high = pointers[row : row + 2]
        return indices[low:high], data[low:high]

    read = lean if job["lean"] else looked_up

    def cell(row: int) -> np.ndarray:
        columns, stored = read(row)
        dense = np.zeros(genes, np.float32)
        dense[columns] = stored
        return dense

    sets = rows_of_sets(job)

    def step() -> int:
        pair = next(sets)
        for rows in pair:
            np.stack([cell(int(row)) for row in rows])
        return sum(map(len, pair))

    step()
    return {"turns": timed(step, job["steps"], job["repeats"]), "shipped": 4 * genes}


def mapped(job: dict) -> dict:
    """The limit: a memory map in the page cache; perturbed cells as slices, control cells scattered, no shuffle."""
    from perturbdiff_jax.data.loading.blocks import copy_rows

    words, pointers = np.load(job["words"], mmap_mode="r"), np.load(job["pointers"])
    nothing = np.zeros(len(words), np.int8)
    words = words.view(np.ndarray)
    sets = rows_of_sets(job)
    drawn = list(itertools.islice(sets, 400))
    turn = itertools.cycle(drawn)

    def step() -> int:
        perturbed, control = next(turn)
        low = int(perturbed.min())
        stop = min(low + len(perturbed), len(pointers) - 1)
        words[pointers[low] : pointers[stop]].copy()
        rows = control.astype(np.int32)
        length = int((pointers[rows + 1] - pointers[rows]).sum())
        copy_rows(pointers, words, nothing, rows, (np.empty(length, np.int32), np.empty(length, np.int8)))
        return len(perturbed) + len(control)

    timed(step, job["steps"], 1)
    return {"turns": timed(step, job["steps"], job["repeats"])}


def annbatch(job: dict) -> dict:
    """annbatch on the same store: random blocks of 256 neighbouring cells, mixed among 128 blocks, as CSR."""
    import anndata
    import zarr

    try:
        import annbatch
    except ImportError:
        return {"skipped": "annbatch is not installed (it needs Python 3.12 or newer)"}
    try:
        import zarrs  # noqa: F401

        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    except ImportError:
        pass
    import pandas as pd

    matrix = anndata.io.sparse_dataset(zarr.open_group(job["store"], mode="r")["X"])
    cells, genes = matrix.shape
    frames = {
        "obs": pd.DataFrame(index=np.arange(cells).astype(str)),
        "var": pd.DataFrame(index=map(str, range(genes))),
    }
    loader = annbatch.Loader(
        batch_size=512,
        chunk_size=256,
        preload_nchunks=128,
        shuffle=True,
        preload_to_gpu=False,
        rng=np.random.default_rng(0),
    ).add_adata(anndata.AnnData(X=matrix, **frames))
    batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def step() -> int:
        return next(batches)["X"].shape[0]

    timed(step, 256, 1)
    return {"turns": timed(step, job["steps"], job["repeats"]), "version": annbatch.__version__}


KINDS = {"ours": ours, "per_row": per_row, "mapped": mapped, "annbatch": annbatch}

if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    start = memory()
    figures = KINDS[given["kind"]](given)
    print(json.dumps(figures | {"memory_start": start, "memory_peak": memory()}))

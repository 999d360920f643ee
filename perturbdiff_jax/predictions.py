"""Predicted cells as AnnData and h5ad, ready for cell-eval and scanpy."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from perturbdiff_jax.bundle import Bundle
from perturbdiff_jax.controls import ControlCells
from perturbdiff_jax.design import CONDITION
from perturbdiff_jax.diffusion.samplers import SamplerOptions
from perturbdiff_jax.errors import RequestError


def assemble(
    blocks: list[sp.csr_matrix],
    labels: list[tuple[str, str, str, int]],
    controls: ControlCells,
    used: dict[tuple[str, str], set[int]],
    *,
    bundle: Bundle,
    checkpoint: str,
    step: int,
    sampler: SamplerOptions,
    seed: int,
) -> anndata.AnnData:
    """Joins predicted cells and, behind them, the real control cells that were used.

    Args:
      blocks: predicted cells [n, G] each, log1p-normalised.
      labels: (perturbation, cell type, batch, draw) of every predicted cell.
      controls, used: where control cells come from, and which rows of which context served.
      bundle, checkpoint, step, sampler, seed: what `uns["perturbdiff"]` tells about the prediction.
    """
    keys = bundle.keys
    blocks = list(blocks)
    names = [f"predicted{i:07d}" for i in range(len(labels))]
    for context, rows in sorted(used.items()):
        rows = sorted(rows)
        blocks.append(controls.cells[context][rows])
        labels = labels + [(bundle.control, *context, 0)] * len(rows)
        names += [controls.names[context][row] for row in rows]
    table = pd.DataFrame(labels, columns=[*CONDITION, "draw"], index=names)
    trained = {name for name, _, _ in bundle.trained}
    table["seen_perturbation"] = table["perturbation"].isin(trained | {bundle.control})
    table["batch"] = [controls.spelling.get(name, name) for name in table["batch"]]
    renamed = {role: keys[role] for role in CONDITION if keys.get(role)}
    table = table.drop(columns=[role for role in CONDITION if role not in renamed]).rename(columns=renamed)
    for column in renamed.values():
        table[column] = table[column].astype("category")
    matrix = sp.vstack(blocks, format="csr").astype(np.float32)
    predicted = anndata.AnnData(X=matrix, obs=table, var=pd.DataFrame(index=list(bundle.genes)))
    predicted.obs_names_make_unique()
    predicted.uns["perturbdiff"] = {
        "checkpoint": checkpoint,
        "checkpoint_step": step,
        "sampler": dataclasses.asdict(sampler),
        "seed": seed,
        "target_sum": float(bundle.values["target_sum"]),
        "divisor": float(bundle.values["divisor"]),
        "keys": {role: name for role, name in keys.items() if name},
        "control": bundle.control,
        "versions": bundle.versions,
    }
    if bundle.origin:  # converted weights: the file they come from, and which of its weights
        predicted.uns["perturbdiff"]["origin"] = {key: bundle.origin[key] for key in ("file", "weights")}
    return predicted


def write_predictions(predicted: anndata.AnnData, output: str | Path) -> Path:
    """Writes the h5ad aside and renames it; raises RequestError as `check_output`."""
    output = check_output(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    try:
        predicted.write_h5ad(partial, compression="gzip")
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)
    return output


def check_output(
    output: str | Path, inputs: Sequence[str | Path] = (), *, flag: str = "--output", kind: str = "h5ad"
) -> Path:
    """The path itself, asked before long work.

    Raises:
      RequestError: `output` is a directory or one of the `inputs`, or lies below something that is none.
    """
    output = Path(output)
    if output.is_dir():
        raise RequestError(f"{flag} {output}: is a directory; give the name of an {kind} file.")
    if output.resolve() in [Path(path).resolve() for path in inputs]:
        raise RequestError(f"{flag} {output}: is the input; it would be overwritten.")
    above = next(parent for parent in output.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise RequestError(f"{flag} {output}: nothing can be written in {above}.")
    return output

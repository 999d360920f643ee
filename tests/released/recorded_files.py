"""Checkpoints in the released format for every recorded kind of network, made from tests/golden.

A recording holds what the released code computed with weights from a formula, the shapes of those weights and the
hyper_parameters: enough to write the file that the released code would have saved.
"""

import copy
import functools
import importlib.util
import json
import pathlib

import numpy as np
from checkpoint_files import write_checkpoint
from tiny_run import said

from perturbdiff_jax import cli

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
KINDS = ("case1", "esm2", "genept", "chemberta", "by_name", "finetuned_2k")


def _seeded(names_and_shapes):
    spec = importlib.util.spec_from_file_location("weights_of_recordings", GOLDEN / "seeded_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.seeded(names_and_shapes)


@functools.cache
def recording(kind: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"released_{kind}.npz") as file:
        return dict(file)


@functools.cache
def _parts(kind: str) -> tuple[dict, dict]:
    spec = json.loads(str(recording(kind)["spec"]))
    stored = {name: recording(kind)[name] for name in spec["stored"]}
    return stored | _seeded(spec["state_dict"]), spec["hyper_parameters"]


def tensors(kind: str) -> dict[str, np.ndarray]:
    """The state_dict of a recording; the arrays are shared, the dictionary is the caller's."""
    return dict(_parts(kind)[0])


def hyper_parameters(kind: str) -> dict:
    """What the file says about itself; the caller's to change."""
    return copy.deepcopy(_parts(kind)[1])


def live(kind: str) -> dict[str, np.ndarray]:
    """Weights of the last step, as far from the averaged ones as a run would leave them: a little, everywhere."""
    return {
        name: array if array.dtype.kind != "f" else (array * np.float32(1.01)).astype(np.float32)
        for name, array in tensors(kind).items()
    }


def write(path: pathlib.Path, kind: str, change=None, both: bool = False, **top) -> pathlib.Path:
    """Writes the checkpoint of a recording; `change(tensors, hyper_parameters)` may spoil it before."""
    arrays, facts = tensors(kind), hyper_parameters(kind)
    if change is not None:
        change(arrays, facts)
    return write_checkpoint(path, arrays, facts, live=live(kind) if both else None, **top)


def convert(*words) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `perturbdiff convert`."""
    return said(cli.run, "convert", *words)


def codes(kind: str) -> dict[str, np.ndarray]:
    """The recorded covariates, as the low door takes them."""
    found = recording(kind)
    return {
        "perturbation": found["cov_pert"],
        "cell_type": found["cov_celltype"],
        "batch": found["cov_batch"],
    }

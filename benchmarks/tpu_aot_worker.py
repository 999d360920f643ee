"""One row of tpu_aot.py in a process of its own: compiles a full-size train step for a TPU topology that is not here.

Reads the row (JSON) from the command line, prints what the compiler says about it (JSON) as the last line.
"""

import importlib.metadata
import json
import os
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
# Names that the TPU library asks a virtual machine's metadata for.
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import hlo_collectives
import hlo_cost
import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct as Array
from jax.experimental import topologies

from perturbdiff_jax import rng, sharding
from perturbdiff_jax.array_types import Batch, PackedBatch
from perturbdiff_jax.diffusion.objective import ObjectiveOptions
from perturbdiff_jax.models.mmdit import Denoiser, ModelOptions
from perturbdiff_jax.optim import optimizer
from perturbdiff_jax.settings import Settings
from perturbdiff_jax.state import create_state, init_params
from perturbdiff_jax.step import StepParts, compile_step

# genes, perturbations, cell types, batches, sources; the released full-size model and its pretraining form.
FORMS = {"finetuning": (2000, 90, 18, 12, 0), "pretraining": (12_626, 3250, 734, 10_969, 4)}
STORED = 0.05  # share of genes with a count
SLACK = 1.02  # packed arrays are a little longer than what is expected


def step_parts(form: str, **model) -> StepParts:
    """The step of the released recipe with bfloat16 products."""
    genes, perturbations, cell_types, batches, sources = FORMS[form]
    pretraining = form == "pretraining"
    use_perturbation = "no" if pretraining else "yes"
    options = ModelOptions(**{"dtype": "bfloat16", "scan": "yes", **model}, use_perturbation=use_perturbation)
    settings = Settings(model=options, objective=ObjectiveOptions(drop_control=1.0 if pretraining else 0.0))
    return StepParts(
        model=Denoiser(options, genes, perturbations, cell_types, batches, sources),
        tx=optimizer(settings.optim, settings.train.steps),
        schedule=settings.schedule,
        objective=settings.objective,
        ema=settings.ema,
        seed=settings.seed,
    )


def batch_shapes(form: str, packed: bool, sets: int, cells: int, runs: int) -> Batch | PackedBatch:
    """Shapes of a batch of `sets` sets of `cells` cells; in pretraining every cell has its own batch code."""
    genes = FORMS[form][0]
    pretraining = form == "pretraining"

    def ints(*shape):
        return Array(shape, jnp.int32)

    codes = {"perturbation": ints(sets), "cell_type": ints(sets), "mask": Array((sets, cells), jnp.float32)}
    codes["batch"] = ints(sets, cells) if pretraining else ints(sets)
    codes["source"] = ints(sets) if pretraining else None
    if not packed:
        expression = Array((sets, cells, genes), jnp.float32)
        return Batch(perturbed=expression, control=expression, **codes)
    held = 2 * sets * cells // runs
    return PackedBatch(
        data=Array((runs, int(held * genes * STORED * SLACK)), jnp.uint32),
        indices=None,
        row_nnz=ints(runs, held),
        scale=Array((runs, held), jnp.float32),
        perturbed=ints(sets, cells),
        control=ints(sets, cells),
        **codes,
    )


def compile_row(row: dict) -> dict:
    """What the compiler says about a row.

    Args:
      row: topology, form (a key of FORMS), mesh (sizes by axis), batch ("packed" or "dense"), sets (for each device),
        cells (in a set), model (options besides dtype), accumulate, text (a file for the compiled text, or "").
    """
    devices = topologies.get_topology_desc(platform="tpu", topology_name=row["topology"]).devices
    mesh = sharding.make_mesh(sharding.MeshOptions(**row["mesh"]), devices)
    runs, sets = sharding.runs_of(mesh), row["sets"] * len(devices)
    parts = step_parts(row["form"], **row["model"])
    state = jax.eval_shape(
        lambda: create_state(init_params(parts.model, rng.key_for(parts.seed, "init")), parts.tx)
    )
    batch = batch_shapes(row["form"], row["batch"] == "packed", sets, row["cells"], runs)
    before = time.monotonic()
    lowered = compile_step(parts, mesh).lower(state, batch)
    between = time.monotonic()
    compiled = lowered.compile()
    after = time.monotonic()
    text = compiled.as_text()
    if row.get("text"):
        with open(row["text"], "w") as file:
            file.write(text)
    memory = compiled.memory_analysis()
    found = hlo_collectives.collectives(text, len(devices))
    return {
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
        "devices": len(devices),
        "shape": dict(mesh.shape),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "cells_per_step": sets * row["cells"],
        "lower_seconds": between - before,
        "compile_seconds": after - between,
        "memory": {
            "arguments": memory.argument_size_in_bytes,
            "temporary": memory.temp_size_in_bytes,
            "output": memory.output_size_in_bytes,
            "alias": memory.alias_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
        },
        "state_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
        "cost": hlo_cost.cost(text),
        "collectives": hlo_collectives.table(found),
        "largest": [vars(one) for one in found[:8]],
    }


if __name__ == "__main__":
    print(json.dumps(compile_row(json.loads(sys.argv[1]))))

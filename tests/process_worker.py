"""Two training steps on eight devices, by one process or by several; process 0 keeps what came out.

    python tests/process_worker.py STORE OUT.npz CASE...

The processes are told of each other by the variables that launch/local.sh sets.
"""

import pathlib
import sys

import numpy as np

from perturbdiff_jax import processes, sharding
from perturbdiff_jax.data.loader import SetSource
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.diffusion.objective import ObjectiveOptions
from perturbdiff_jax.diffusion.schedule import Schedule
from perturbdiff_jax.models.mmdit import Denoiser, ModelOptions
from perturbdiff_jax.optim import EmaOptions, OptimOptions, optimizer
from perturbdiff_jax.placement import placed
from perturbdiff_jax.sharding import MeshOptions
from perturbdiff_jax.step import StepParts, compile_step, initial_state

SETS, CELLS, STEPS = 16, 4, 2
CASES = {  # name -> mesh, form of a batch
    "data": (MeshOptions(), "host"),
    "mixed": (MeshOptions(data=2, fsdp=2, tensor=2), "device"),
}


def trained(store: Store, options: MeshOptions, form: str) -> dict[str, np.ndarray]:
    """Metrics of every step, and all parameters at the end, whole."""
    import jax
    from jax.experimental import multihost_utils

    model = Denoiser(
        ModelOptions(width=16, depth=1, heads=2, covariate_width=8),
        *(len(names) for names in (store.genes, store.perturbations, store.cell_types, store.batches)),
    )
    # Adam divides a gradient by its own size, so that with the usual eps rounding decides the sign of tiny ones.
    optim = OptimOptions(learning_rate=3e-3, warmup_steps=0, eps=1e-3)
    parts = StepParts(
        model=model,
        tx=optimizer(optim, 100),
        schedule=Schedule(),
        objective=ObjectiveOptions(self_condition=0.0),
        ema=EmaOptions(),
        seed=3,
    )
    mesh = sharding.make_mesh(options)
    source = SetSource(
        store,
        cells_per_set=CELLS,
        sets_per_batch=SETS,
        seed=5,
        tier="resident",
        densify=form,
        rows=sharding.rows_here(mesh, SETS),
        blocks=len(sharding.rows_here(mesh, sharding.runs_of(mesh))),
    )
    state, step, found = initial_state(parts, mesh), compile_step(parts, mesh), {}
    for number, batch in placed(source, mesh, 0, STEPS):
        state, metrics = step(state, batch)
        found |= {f"{name} {number}": np.asarray(value) for name, value in metrics.items()}
    whole = multihost_utils.process_allgather(state.params, tiled=True)
    return found | {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(whole)}


def main(store: str, out: str, *cases: str) -> None:
    """Writes metrics and parameters of the cases by `case/name`."""
    processes.start()
    opened = Store.open(store)
    found = {f"{case}/{name}": value for case in cases for name, value in trained(opened, *CASES[case]).items()}
    processes.lead(lambda: np.savez(pathlib.Path(out), **found))


if __name__ == "__main__":
    main(*sys.argv[1:])

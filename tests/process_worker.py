"""Two training steps on eight devices, by one process or by several; process 0 keeps what came out.

    python tests/process_worker.py STORE OUT.npz

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
# With two processes of four devices one axis crosses them, with four of two devices two do.
MESH = MeshOptions(data=2, fsdp=2, tensor=2)


def trained(store: Store) -> dict[str, np.ndarray]:
    """Lengths and metrics of every step on packed batches, and all parameters at the end, whole."""
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
    mesh = sharding.make_mesh(MESH)
    source = SetSource(
        store,
        cells_per_set=CELLS,
        sets_per_batch=SETS,
        seed=5,
        tier="resident",
        densify="device",
        rows=sharding.rows_here(mesh, SETS),
        blocks=len(sharding.rows_here(mesh, sharding.runs_of(mesh))),
    )
    state, step, found = initial_state(parts, mesh), compile_step(parts, mesh), {}
    for number, batch in placed(source, mesh, 0, STEPS):
        lengths = multihost_utils.process_allgather(np.array(batch.data.shape[1]))
        found |= {f"least length {number}": lengths.min(), f"largest length {number}": lengths.max()}
        state, metrics = step(state, batch)
        found |= {f"{name} {number}": np.asarray(value) for name, value in metrics.items()}
    whole = multihost_utils.process_allgather(state.params, tiled=True)
    return found | {
        jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(whole)
    }


def main(store: str, out: str) -> None:
    """Writes what `trained` gives."""
    processes.start()
    found = trained(Store.open(store))
    processes.lead(lambda: np.savez(pathlib.Path(out), **found))


if __name__ == "__main__":
    main(*sys.argv[1:])

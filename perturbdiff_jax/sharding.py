"""Where arrays live: the mesh, the placement of a batch, the placement of the state.

Sets are sharded over the `data` axis and parameters are replicated. Cells of one set stay together, since the
energy distance needs all pairs in a set.
"""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from perturbdiff_jax.errors import RequestError

AXES = ("data",)


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A one-axis mesh over `devices` (default: all of this run's devices)."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), AXES, axis_types=(AxisType.Auto,), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis (sets) over `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same values on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_divisible(sets: int, mesh: Mesh) -> None:
    """Raises RequestError when a batch of `sets` sets cannot be dealt evenly to the devices."""
    if sets % mesh.size:
        raise RequestError(
            f"config.loader.sets_per_batch={sets}: must be a multiple of the {mesh.size} devices of this run."
        )

"""Where arrays live: the mesh, one table for parameters, moments and average, the placement of a batch.

    data    sets are dealt to it; parameters are whole on each of its members (data-parallel)
    fsdp    sets are dealt to it as well; parameters and moments are cut, and gathered when a layer needs them
    tensor  one layer is computed together: kernels are cut, and so are the features in between

Cells of one set stay together, since the energy distance needs all pairs in a set. An axis of size 1 costs nothing.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from perturbdiff_jax.errors import RequestError

AXES = ("data", "fsdp", "tensor")
SETS = ("data", "fsdp")  # what the leading axis of a batch is dealt to

# (end of a parameter's path, axes of its last dimensions). The first rule that matches holds; dimensions in front of
# those named (layers of the scan, sources) are whole, and so is a dimension that its axes do not divide.
PARAM_RULES = (
    # Columns over both axes: the rows are genes, whose number has few divisors (12,626 = 2 x 59 x 107).
    (r"embed_(perturbed|control)/kernel", (None, ("fsdp", "tensor"))),
    # Rows: the columns are split into six right away, and a cut through those is not put together again well.
    (r"to_parts/linear/kernel", (("fsdp", "tensor"), None)),
    (r"(qkv|mlp_[xu]/hidden|head/out|mix)/linear/kernel", ("fsdp", "tensor")),
    (r"(attention/out|mlp_[xu]/out|condition)/linear/kernel", ("tensor", "fsdp")),
    (r"time/hidden/kernel", ("fsdp", "tensor")),
    (r"time/out/kernel", ("tensor", "fsdp")),
    (r"covariates/map_\w+/linear/kernel", (None, "fsdp")),
    (r"covariates/(frozen_)?(perturbation|cell_type|batch|dose)", (None, "fsdp")),
    (r"(bias|weight|gene_vector|null_condition)", ()),
)

# Dimensions of activations, by name. "features" are those between two kernels cut over `tensor`.
ACTIVATIONS = {"sets": SETS, "whole": None, "features": "tensor"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshOptions:
    """Sizes of the mesh's axes; their product is the number of devices, and at most one is -1 = what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        """Refuses sizes that no number of devices can have."""
        for name in AXES:
            if getattr(self, name) < 1 and getattr(self, name) != -1:
                raise RequestError(f"config.mesh.{name}={getattr(self, name)}: must be at least 1, or -1.")
        if [self.data, self.fsdp, self.tensor].count(-1) > 1:
            raise RequestError("config.mesh: only one of data, fsdp and tensor can be -1 (what is left).")

    def shape(self, devices: int) -> tuple[int, int, int]:
        """(data, fsdp, tensor) for so many devices. RequestError when they do not fit."""
        asked = (self.data, self.fsdp, self.tensor)
        fixed = math.prod(size for size in asked if size != -1)
        if devices % fixed or (-1 not in asked and fixed != devices):
            text = " x ".join(f"{name} {size}" for name, size in zip(AXES, asked) if size != -1)
            raise RequestError(f"config.mesh: {text} does not fit the {devices} devices of this run.")
        return tuple(devices // fixed if size == -1 else size for size in asked)


def make_mesh(options: MeshOptions = MeshOptions(), devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices` (default: all of this run's, over all of its processes).

    Slices of a TPU that only the data-centre network joins are members of `data`. Raises RequestError.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = options.shape(len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    kinds = (AxisType.Auto,) * len(AXES)
    if slices == 1:
        return jax.make_mesh(shape, AXES, axis_types=kinds, devices=devices)
    if shape[0] % slices:
        raise RequestError(
            f"config.mesh.data={shape[0]}: must be a multiple of the {slices} slices of this run."
        )
    inside = (shape[0] // slices, *shape[1:])
    arranged = mesh_utils.create_hybrid_device_mesh(inside, (slices, 1, 1), devices)
    return Mesh(arranged, AXES, axis_types=kinds)


def runs_of(mesh: Mesh) -> int:
    """Number of runs of sets that a batch is dealt to: data x fsdp."""
    return math.prod(mesh.shape[name] for name in SETS)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis (sets, or runs of sets) over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(SETS))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same values on every device."""
    return NamedSharding(mesh, PartitionSpec())


def rows_here(mesh: Mesh, sets: int) -> list[range]:
    """The sets of a batch of `sets` that this process's devices hold, a range for each run, ascending."""
    held = batch_sharding(mesh).addressable_devices_indices_map((sets,)).values()
    spans = {(cut.start or 0, sets if cut.stop is None else cut.stop) for (cut,) in held}
    return [range(*span) for span in sorted(spans)]


def rule_of(path: str) -> int | None:
    """Number of the rule for a parameter (or its moment, or its average), by the names of its path joined by /."""
    for number, (pattern, _) in enumerate(PARAM_RULES):
        if re.search(rf"(^|/){pattern}$", path):
            return number
    return None


def spec_of(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """How a leaf of the training state is cut; what no rule knows (counters) is whole."""
    number = rule_of(path)
    axes = () if number is None else PARAM_RULES[number][1]
    if len(shape) < len(axes):
        return PartitionSpec()
    fitting = [
        axis if axis and size % math.prod(mesh.shape[name] for name in _names(axis)) == 0 else None
        for axis, size in zip(axes, shape[len(shape) - len(axes) :])
    ]
    return PartitionSpec(*[None] * (len(shape) - len(axes)), *fitting)


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """A sharding for every leaf of a training state, a tree of parameters, or their shapes."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec_of(path_of(path), leaf.shape, mesh)), state
    )


def path_of(path: tuple) -> str:
    """The names of a tree path joined by /."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def constrain(x: jax.Array, *names: str) -> jax.Array:
    """Says how an activation is cut, by the names of its dimensions; does nothing where no mesh is set.

    A hint for the partitioner, never a change of values. The names are those of ACTIVATIONS.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or set(AXES) - set(mesh.axis_names):
        return x
    axes = []
    for name, size in zip(names, x.shape, strict=True):
        axis = ACTIVATIONS[name]
        fits = axis and size % math.prod(mesh.shape[one] for one in _names(axis)) == 0
        axes.append(axis if fits else None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def pieces(name: str) -> int:
    """Over how many devices a dimension of that name (see ACTIVATIONS) is cut; 1 where no mesh is set."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(dict(mesh.shape).get(axis, 1) for axis in _names(ACTIVATIONS[name] or ()))


def check_divisible(sets: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raises RequestError when a batch of `sets` sets, or a part of it, cannot be dealt evenly to the devices."""
    runs = runs_of(mesh)
    if sets % (runs * accumulate):
        parts = f" times config.train.accumulate={accumulate}" if accumulate > 1 else ""
        raise RequestError(
            f"config.loader.sets_per_batch={sets}: must be a multiple of the {runs} devices of this run that sets are "
            f"dealt to{parts}."
        )


def _names(axis: str | tuple[str, ...]) -> tuple[str, ...]:
    return (axis,) if isinstance(axis, str) else axis

"""The mesh and the table of rules: every large parameter meets a rule, every rule a parameter."""

import math
import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from perturbdiff_jax import sharding
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.models.mmdit import Denoiser, ModelOptions
from perturbdiff_jax.optim import OptimOptions, optimizer
from perturbdiff_jax.sharding import MeshOptions, make_mesh
from perturbdiff_jax.state import create_state, init_params

LARGE = 100_000  # numbers; what is smaller may stay whole


def network(genes=2000, sources=0, **options):
    return Denoiser(
        ModelOptions(**options),
        genes,
        perturbations=900,
        cell_types=734,
        batches=10_969,
        sources=sources,
        perturbation_table=(900, 1536) if sources else None,
        dose_codes=tuple(range(900)) if sources else (),
    )


NETWORKS = {
    "full size": network(),
    "pretraining": network(12_626, sources=4),
    "anchored": network(anchor="scaled_control", depth=1),
}


def state_of(model, absent="zero"):
    tx = optimizer(OptimOptions(absent=absent), 100)
    return jax.eval_shape(lambda: create_state(init_params(model, jax.random.key(0)), tx))


def leaves(tree):
    return [(sharding.path_of(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("absent", ["zero", "skip"])
def test_every_parameter_its_moments_and_average_are_cut_alike(name, absent):
    """And all large ones are cut: a device of fsdp 4 x tensor 2 holds little more than an eighth."""
    state = state_of(NETWORKS[name], absent)
    mesh = make_mesh(MeshOptions(fsdp=4, tensor=2))
    cut = {path: sharding.spec_of(path, leaf.shape, mesh) for path, leaf in leaves(state)}
    shapes = {path: leaf.shape for path, leaf in leaves(state)}
    parameters = [path.removeprefix("params/") for path in cut if path.startswith("params/")]
    held = whole = 0
    for path in parameters:
        same = [p for p in cut if re.search(rf"(^|/){re.escape(path)}$", p) and "taken" not in p]
        assert len(same) == 4, same  # parameter, average, two moments
        assert len({(cut[p], shapes[p]) for p in same}) == 1
        axes = [axis for axis in cut[f"params/{path}"] if axis]
        names = [name for axis in axes for name in ((axis,) if isinstance(axis, str) else axis)]
        assert len(names) == len(set(names))
        share = math.prod(mesh.shape[name] for name in names)
        held += math.prod(shapes[f"params/{path}"]) // share
        whole += math.prod(shapes[f"params/{path}"])
        if math.prod(shapes[f"params/{path}"]) >= LARGE:
            assert share > 1, path
    assert held < whole / 8 * (1.12 if name != "pretraining" else 1.25)


def test_every_parameter_has_a_rule_and_every_rule_a_parameter():
    met = set()
    for model in NETWORKS.values():
        for path, _ in leaves(state_of(model).params):
            number = sharding.rule_of(path)
            assert number is not None, path
            met.add(number)
    assert met == set(range(len(sharding.PARAM_RULES)))
    assert sharding.rule_of("step") is None and sharding.rule_of("opt_state/1/0/count") is None


def test_a_dimension_that_an_axis_does_not_divide_is_whole():
    mesh = make_mesh(MeshOptions(fsdp=2, tensor=4))
    spec = sharding.spec_of("params/head/out/linear/kernel", (512, 12_626), mesh)
    assert spec == PartitionSpec("fsdp", None)
    assert sharding.spec_of("opt_state/0/mu/blocks/mlp_u/out/linear/kernel", (7, 2048, 512), mesh) == (
        PartitionSpec(None, "tensor", "fsdp")
    )


@pytest.mark.parametrize(
    "asked, shape",
    [
        ({}, (8, 1, 1)),
        ({"fsdp": 4}, (2, 4, 1)),
        ({"data": 1, "fsdp": -1, "tensor": 2}, (1, 4, 2)),
        ({"data": 4, "tensor": -1}, (4, 1, 2)),
        ({"data": 2, "fsdp": 2, "tensor": 2}, (2, 2, 2)),
    ],
)
def test_the_axis_of_minus_one_gets_what_is_left(asked, shape):
    mesh = make_mesh(MeshOptions(**asked))
    assert tuple(mesh.shape.values()) == shape and mesh.axis_names == sharding.AXES
    assert sharding.runs_of(mesh) == shape[0] * shape[1]
    # Sets are dealt in the order of the runs; members of a tensor group have the same ones.
    rows = sharding.rows_here(mesh, 32)
    assert [row for span in rows for row in span] == list(range(32)) and len(rows) == shape[0] * shape[1]


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"fsdp": 3}, "fsdp 3 x tensor 1 does not fit the 8 devices"),
        ({"data": 2, "fsdp": 2}, "data 2 x fsdp 2 x tensor 1 does not fit"),
        ({"fsdp": -1}, "only one of data, fsdp and tensor can be -1"),
        ({"tensor": 0}, r"config.mesh.tensor=0: must be at least 1, or -1"),
        ({"data": -2}, r"config.mesh.data=-2"),
    ],
)
def test_sizes_that_do_not_fit_are_named(asked, message):
    with pytest.raises(RequestError, match=message):
        make_mesh(MeshOptions(**asked))


def test_sets_must_be_dealt_evenly():
    sharding.check_divisible(16, make_mesh())
    sharding.check_divisible(12, make_mesh(MeshOptions(fsdp=2, tensor=2)), accumulate=3)
    with pytest.raises(
        RequestError, match=r"config.loader.sets_per_batch=12: must be a multiple of the 8 devices"
    ):
        sharding.check_divisible(12, make_mesh())
    with pytest.raises(RequestError, match=r"8 devices of this run .* times config.train.accumulate=3"):
        sharding.check_divisible(16, make_mesh(), accumulate=3)


def test_slices_joined_by_a_slower_network_are_members_of_data():
    """Four slices of two chips: a tensor or fsdp group never leaves its slice."""

    class Chip:
        platform, device_kind, process_index = "tpu", "TPU v5 lite", 0

        def __init__(self, number):
            self.id, self.slice_index, self.core_on_chip = number, number // 2, 0
            self.coords = (number % 2, 0, 0)

        client = None

    chips = [Chip(number) for number in range(8)]
    mesh = make_mesh(MeshOptions(fsdp=2), chips)
    slices = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
    assert mesh.devices.shape == (4, 2, 1)
    assert (slices[:, :1] == slices).all() and len(set(slices[:, 0, 0])) == 4
    with pytest.raises(RequestError, match=r"config.mesh.data=1: must be a multiple of the 4 slices"):
        make_mesh(MeshOptions(fsdp=8, data=1), chips)


def test_constraints_do_nothing_without_a_mesh():
    x = jax.numpy.ones((8, 3, 4))
    assert sharding.constrain(x, "sets", "whole", "features") is x
    mesh = make_mesh(MeshOptions(fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        cut = jax.jit(lambda x: sharding.constrain(x, "sets", "whole", "features"))(x)
        odd = jax.jit(lambda x: sharding.constrain(x, "sets", "whole", "features"))(x[:3, :, :3])
    assert cut.sharding.spec == PartitionSpec(("data", "fsdp"), None, "tensor")
    assert odd.sharding.is_fully_replicated

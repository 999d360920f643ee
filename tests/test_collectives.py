"""No collective larger than expected: those of small programs that are known, and of the train step on eight devices.

The bounds follow from the shapes of the network and of the batch. The batch is chosen so that one layer's parameters
are smaller than the activations of a device.
"""

import dataclasses
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest
from jax import ShapeDtypeStruct as Array
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from perturbdiff_jax import sharding
from perturbdiff_jax.array_types import Batch, PackedBatch
from perturbdiff_jax.diffusion.objective import ObjectiveOptions
from perturbdiff_jax.diffusion.schedule import Schedule
from perturbdiff_jax.kernels.densify import densify
from perturbdiff_jax.models.mmdit import Denoiser, ModelOptions
from perturbdiff_jax.optim import EmaOptions, OptimOptions, optimizer
from perturbdiff_jax.state import create_state, init_params
from perturbdiff_jax.step import StepParts, compile_step

sys.path.append(str(pathlib.Path(__file__).parents[1] / "benchmarks"))
from hlo_collectives import collectives, group_size, table

F32 = 4  # bytes
LOCAL = 16 * 8 * F32  # bytes of the array that each device has in the known programs


def known(function, *specs):
    """Collectives of `function` on a mesh of 4 x 2; every device has a [16, 8] float32 array."""
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    inside = jax.shard_map(
        function, mesh=mesh, in_specs=(P("a", "b"), P()), out_specs=P("a", "b"), check_vma=False
    )
    shapes = Array((64, 16), jnp.float32), Array((), jnp.bool_)
    return collectives(jax.jit(inside).lower(*shapes).compile().as_text(), 8)


def repeated(times, body):
    return lambda x: jax.lax.scan(lambda c, _: (body(2.0 * c), None), x, length=times)[0]


def summed(axes):
    return lambda x: jax.lax.psum(x, axes)


KNOWN = {
    "sum over an axis": (lambda x, _: summed("a")(x), ("all-reduce", LOCAL, 4, 1, 0, False)),
    "sum over all": (lambda x, _: summed(("a", "b"))(x), ("all-reduce", LOCAL, 8, 1, 0, False)),
    "gather": (
        lambda x, _: jax.lax.all_gather(x, "b").sum(axis=0),
        ("all-gather", 2 * LOCAL, 2, 1, 0, False),
    ),
    "scatter": (
        lambda x, _: jnp.tile(jax.lax.psum_scatter(x, "a", tiled=True), (4, 1)),
        ("reduce-scatter", LOCAL, 4, 1, 0, False),
    ),
    "all to all": (
        lambda x, _: jax.lax.all_to_all(x, "a", 0, 0, tiled=True),
        ("all-to-all", LOCAL, 4, 1, 0, False),
    ),
    "permute": (
        lambda x, _: jax.lax.ppermute(x, "a", [(0, 1), (1, 2), (2, 3), (3, 0)]),
        ("collective-permute", LOCAL, 2, 1, 0, False),
    ),
    "in a loop": (lambda x, _: repeated(5, summed("b"))(x), ("all-reduce", LOCAL, 2, 5, 1, False)),
    "in two loops": (
        lambda x, _: repeated(3, repeated(5, summed("b")))(x),
        ("all-reduce", LOCAL, 2, 15, 2, False),
    ),
    "in a branch": (
        lambda x, yes: jax.lax.cond(yes, summed("a"), lambda x: x + 1.0, x),
        ("all-reduce", LOCAL, 4, 1, 0, True),
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_collective_is_found(name):
    function, expected = KNOWN[name]
    (one,) = known(function)
    assert (one.kind, one.bytes, one.group, one.times, one.loops, one.branch) == expected
    assert not one.overlaps
    assert one.dtypes == ("f32",) and one.largest == one.bytes and one.moved == one.bytes * one.times


def test_what_a_device_sends():
    """By a ring of four: 3/4 of the array to gather or to scatter, both for a sum."""
    (total,), (scattered,) = known(KNOWN["sum over an axis"][0]), known(KNOWN["scatter"][0])
    assert total.sent == 2 * 3 / 4 * LOCAL and scattered.sent == 3 / 4 * LOCAL
    assert table([total, total])[0] == {
        "kind": "all-reduce", "dtypes": "f32", "group": 4, "in_loop": False, "in_branch": False, "overlaps": False,
        "count": 2, "runs": 2, "bytes": 2 * LOCAL, "sent": 2 * total.sent, "largest": LOCAL,
    }  # fmt: skip


def test_no_collective_no_row():
    assert known(lambda x, _: x + 1.0) == []


@pytest.mark.parametrize(
    ("attributes", "members"),
    [
        ("channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add", 4),
        ("replica_groups=[2,4]<=[8], dimensions={0}", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}", 2),
        ("replica_groups={}, to_apply=%add", 8),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, to_apply=%add", 2),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}, to_apply=%add", 8),
        ("replica_groups=mesh[axis_0=8,axis_1=8,axis_2=16] {axis_0:(2)4,axis_1:(2)4}", 16),
        ("replica_groups=mesh['axis_0'=8] {'axis_0':(2)4}", 4),
        ("channel_id=3, source_target_pairs={{0,1},{1,0}}", 2),
        ("channel_id=3, source_target_pairs={{0,0},{1,1}}", 1),
    ],
)
def test_notations_of_groups(attributes, members):
    assert group_size(attributes, 8) == members


def test_an_unknown_notation_is_refused():
    with pytest.raises(ValueError, match="replica groups of an unknown form: 'everyone"):
        group_size("replica_groups=everyone", 8)


# As a TPU's compiler writes it: a loop that counts by two, asynchronous forms, one collective in three fusions.
ASYNCHRONOUS = """HloModule step, is_scheduled=true

%start (p: bf16[4,8]) -> (bf16[4,8], bf16[16,8]) {
  %p = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[16,8]{1,0} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %call.1 = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%done (p.2: bf16[4,8], q: bf16[16,8]) -> bf16[16,8] {
  %p.2 = bf16[4,8]{1,0} parameter(0)
  %q = bf16[16,8]{1,0} parameter(1)
  %all-gather.2 = bf16[16,8]{1,0} all-gather(%p.2), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %call.2 = bf16[16,8]{1,0} custom-call(%all-gather.2, %q), custom_call_target="AsyncCollectiveDone"
}

%condition (state: (s32[], bf16[4,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(8)
  %state = (s32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %less = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

%body (state.1: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %state.1 = (s32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %counter.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%counter.1, %two)
  %x = bf16[4,8]{1,0} get-tuple-element(%state.1), index=1
  %send = (bf16[4,8]{1,0}, bf16[4,8]{1,0:S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=2, source_target_pairs={{0,1},{1,0}}
  %sent = bf16[4,8]{1,0} collective-permute-done(%send)
  ROOT %state.2 = (s32[]{:T(128)}, bf16[4,8]{1,0}) tuple(%next, %sent)
}

ENTRY %main (x.1: bf16[4,8], y: bf16[2,8]) -> bf16[16,8] {
  %x.1 = bf16[4,8]{1,0} parameter(0)
  %y = bf16[2,8]{1,0} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %first = (s32[]{:T(128)}, /*index=1*/bf16[4,8]{1,0}) tuple(%zero, %x.1)
  %loop = (s32[]{:T(128)}, bf16[4,8]{1,0}) while(%first), condition=%condition, body=%body
  %gather = ((bf16[4,8]{1,0}, bf16[2,8]{1,0}), (bf16[32,8]{1,0}, bf16[16,8]{1,0})) all-gather-start(%x.1, %y), channel_id=3, replica_groups=[1,8]<=[8], dimensions={0}
  %gathered = (bf16[32,8]{1,0}, bf16[16,8]{1,0}) all-gather-done(%gather)
  %alone = bf16[4,8]{1,0} all-reduce(%x.1), channel_id=9, replica_groups=[8,1]<=[8], to_apply=%add
  %begun = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) fusion(%x.1), kind=kCustom, calls=%start
  %mine = bf16[4,8]{1,0} get-tuple-element(%begun), index=0
  %all = bf16[16,8]{1,0} get-tuple-element(%begun), index=1
  ROOT %end = bf16[16,8]{1,0} fusion(%mine, %all), kind=kCustom, calls=%done
}
"""  # noqa: E501


def test_asynchronous_forms_are_counted_once():
    """And a sum over groups of one, which moves nothing, not at all."""
    found = {one.kind + str(one.group): one for one in collectives(ASYNCHRONOUS, 8)}
    assert set(found) == {"all-gather8", "all-gather4", "collective-permute2"} and len(found) == 3
    assert len(collectives(ASYNCHRONOUS, 8)) == 3
    assert found["all-gather8"].bytes == 2 * (32 + 16) * 8 and found["all-gather8"].largest == 2 * 32 * 8
    assert found["all-gather4"].bytes == 2 * 16 * 8
    assert all(one.overlaps for one in found.values())
    ring = found["collective-permute2"]
    assert (ring.bytes, ring.times, ring.loops, ring.dtypes) == (2 * 4 * 8, 4, 1, ("bf16",))


# The train step: B sets of S cells and G genes, width D, three layers, two of them in a scan.
B, S, G, D, LAYERS = 16, 64, 24, 16, 3
NET = Denoiser(ModelOptions(width=D, depth=LAYERS, heads=2, covariate_width=8, scan="yes"), G, 4, 2, 2)
PARTS = StepParts(
    model=NET,
    tx=optimizer(OptimOptions(), 100),
    schedule=Schedule(),
    objective=ObjectiveOptions(),
    ema=EmaOptions(),
    seed=3,
)
MODULATION = B * 6 * D * F32  # a shift, a scale or a gate for every set and sublayer of one stream
A_LAYER = 2 * D * 6 * D * F32  # the largest kernel of a layer: queries, keys and values of both streams


@functools.cache
def state():
    return jax.eval_shape(lambda: create_state(init_params(NET, jax.random.key(0)), PARTS.tx))


def parameter_bytes():
    return sum(leaf.size * F32 for leaf in jax.tree.leaves(state().params))


def batch(packed, runs):
    codes = {name: Array((B,), jnp.int32) for name in ("perturbation", "cell_type", "batch")}
    codes["mask"] = Array((B, S), jnp.float32)
    if not packed:
        cells = Array((B, S, G), jnp.float32)
        return Batch(perturbed=cells, control=cells, **codes)
    held = 2 * B * S // runs
    rows = Array((B, S), jnp.int32)
    return PackedBatch(
        data=Array((runs, 3 * held), jnp.uint32),
        indices=None,
        row_nnz=Array((runs, held), jnp.int32),
        scale=Array((runs, held), jnp.float32),
        perturbed=rows,
        control=rows,
        **codes,
    )


@functools.cache
def found_in_step(packed=False, first_pass=True, **sizes):
    mesh = sharding.make_mesh(sharding.MeshOptions(**sizes))
    options = ObjectiveOptions(self_condition=0.5 if first_pass else 0.0)
    step = compile_step(dataclasses.replace(PARTS, objective=options), mesh)
    return collectives(step.lower(state(), batch(packed, sharding.runs_of(mesh))).compile().as_text(), 8)


def moved(found, **wanted):
    return sum(
        one.moved for one in found if all(getattr(one, name) == value for name, value in wanted.items())
    )


def test_data_parallel_sums_gradients_and_nothing_else():
    """Every parameter once and some scalars, but nothing that no loss depends on.

    That is the last block's control stream (its MLP, its half of the attention's output) and the control embedder's
    zero half.
    """
    found = found_in_step(packed=True)
    unused = sum(leaf.size for leaf in jax.tree.leaves(state().params["last_block"]["mlp_u"])) + G * D
    unused += 2 * D * D + D
    expected = parameter_bytes() - unused * F32
    assert {one.kind for one in found} == {"all-reduce"} and {one.group for one in found} == {8}
    assert expected <= moved(found) <= expected + 64 * F32
    assert moved(found, branch=True) == 0


def test_densifying_moves_nothing():
    mesh = sharding.make_mesh()
    unpack = jax.jit(
        lambda packed: densify(packed, genes=G, divisor=10.0), in_shardings=sharding.batch_sharding(mesh)
    )
    compiled = unpack.lower(batch(True, 8)).compile()
    assert collectives(compiled.as_text(), 8) == []
    assert compiled.output_shardings.perturbed.is_equivalent_to(sharding.batch_sharding(mesh), 3)


def test_fully_sharded_gathers_parameters_and_sums_gradients():
    """Parameters are gathered for each pass; gradients are summed once (the CPU's compiler sums, then cuts)."""
    found = found_in_step(data=1, fsdp=8)
    gathered = [one for one in found if one.kind == "all-gather"]
    # Or the kernel of the time features.
    assert max(one.largest for one in gathered) <= max(A_LAYER, 256 * D * F32)
    assert 0.5 * parameter_bytes() < moved(gathered, branch=True) <= parameter_bytes()
    assert parameter_bytes() < moved(gathered, branch=False) <= 2 * parameter_bytes()
    sums = [one for one in found if one.kind in ("all-reduce", "reduce-scatter")]
    assert 0.5 * parameter_bytes() < moved(sums) <= parameter_bytes() + MODULATION
    rest = [one for one in found if one not in gathered and one not in sums]
    assert moved(rest) <= MODULATION
    assert A_LAYER < B // 8 * S * 2 * D * F32, "too small a batch to tell kernels from activations"


def test_tensor_parallel_sums_activations_where_kernels_are_cut():
    """Forth and back: one sum after the attention [b, S, 2D], one after each MLP [b, S, D]."""
    found = [one for one in found_in_step(first_pass=False, data=4, tensor=2) if one.group == 2]
    cells = B // 4 * S * F32
    layer = 4 * cells * D
    sums = [one for one in found if one.kind == "all-reduce"]
    looped = [one for one in sums if one.loops]
    assert (LAYERS - 1) * 2 * layer <= moved(looped) <= (LAYERS - 1) * (2 * layer + MODULATION)
    # Outside the loop the distances [b, S, S] of the loss, and what enters and leaves the network.
    assert max(one.largest for one in sums) <= cells * max(S, 2 * D)
    gathered = [one for one in found if one.kind == "all-gather"]
    assert max(one.largest for one in gathered) <= cells * G
    assert max(one.largest for one in gathered if one.loops) <= A_LAYER
    rest = [one for one in found if one not in gathered and one not in sums]
    assert moved(rest) <= MODULATION

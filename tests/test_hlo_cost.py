"""FLOPs and bytes of compiled modules: against XLA's own count where there is no loop, by hand where there is one."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest
from jax import ShapeDtypeStruct as Array

sys.path.append(str(pathlib.Path(__file__).parents[1] / "benchmarks"))
from hlo_cost import cost


def compiled(function, *shapes):
    return jax.jit(function).lower(*(Array(shape, jnp.float32) for shape in shapes)).compile()


def convolved(**options):
    def run(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)

    return run


CONVOLUTIONS = {
    "padded": {"window_strides": (1, 1), "padding": ((1, 1), (2, 0))},
    "strided": {"window_strides": (2, 3), "padding": ((0, 4), (1, 5))},
    "dilated input": {"window_strides": (2, 1), "padding": ((2, 2), (0, 0)), "lhs_dilation": (3, 2)},
    "dilated kernel": {"window_strides": (1, 1), "padding": ((2, 2), (3, 3)), "rhs_dilation": (2, 3)},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_has_the_flops_that_xla_counts(name):
    made = compiled(convolved(**CONVOLUTIONS[name]), (2, 7, 8, 5), (3, 2, 5, 4))
    assert "convolution(" in made.as_text()
    assert cost(made.as_text())["flops"] == made.cost_analysis()["flops"] > 0


def test_a_product_has_two_flops_for_each_multiply_add():
    text = compiled(lambda x, y: jnp.einsum("bij,bjk->bik", x, y), (3, 10, 20), (3, 20, 7)).as_text()
    assert cost(text)["flops"] == 2 * 3 * 10 * 20 * 7


def test_a_loop_counts_as_often_as_it_runs_and_a_branch_half():
    def step(x, kernels, yes):
        once = jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]
        return jax.lax.cond(yes.sum() > 0, lambda x: x @ kernels[0], lambda x: x, once)

    text = compiled(step, (10, 20), (6, 20, 20), (1,)).as_text()
    assert cost(text)["flops"] == 2 * 10 * 20 * 20 * (6 + 0.5)


# A loop over the layers of a stacked kernel; S(1) is memory on the chip. The fusion reads one layer of six.
LOOP = """HloModule step

%layer (kernels.1: f32[6,20,20], x.1: f32[10,20], i.1: s32[]) -> f32[10,20] {
  %kernels.1 = f32[6,20,20]{2,1,0} parameter(0)
  %x.1 = f32[10,20]{1,0} parameter(1)
  %i.1 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  %taken = f32[1,20,20]{2,1,0} dynamic-slice(%kernels.1, %i.1, %zero.1, %zero.1), dynamic_slice_sizes={1,20,20}
  %kernel = f32[20,20]{1,0} bitcast(%taken)
  ROOT %y = f32[10,20]{1,0} convolution(%x.1, %kernel), dim_labels=bf_io->bf
}

%store (out.2: f32[6,10,20], x.2: f32[10,20], i.2: s32[]) -> f32[6,10,20] {
  %out.2 = f32[6,10,20]{2,1,0} parameter(0)
  %x.2 = f32[10,20]{1,0} parameter(1)
  %row = f32[1,10,20]{2,1,0} bitcast(%x.2)
  %i.2 = s32[] parameter(2)
  %zero.2 = s32[] constant(0)
  ROOT %stored = f32[6,10,20]{2,1,0} dynamic-update-slice(%out.2, %row, %i.2, %zero.2, %zero.2)
}

%condition (state.3: (s32[], f32[10,20], f32[6,20,20], f32[6,10,20])) -> pred[] {
  %state.3 = (s32[], f32[10,20]{1,0:S(1)}, f32[6,20,20]{2,1,0}, f32[6,10,20]{2,1,0}) parameter(0)
  %i.3 = s32[] get-tuple-element(%state.3), index=0
  %limit = s32[] constant(6)
  ROOT %less = pred[] compare(%i.3, %limit), direction=LT
}

%body (state: (s32[], f32[10,20], f32[6,20,20], f32[6,10,20])) -> (s32[], f32[10,20], f32[6,20,20], f32[6,10,20]) {
  %state = (s32[], f32[10,20]{1,0:S(1)}, f32[6,20,20]{2,1,0}, f32[6,10,20]{2,1,0}) parameter(0)
  %i = s32[]{:S(1)} get-tuple-element(%state), index=0
  %one = s32[]{:S(1)} constant(1)
  %next = s32[]{:S(1)} add(%i, %one)
  %x = f32[10,20]{1,0:S(1)} get-tuple-element(%state), index=1
  %kernels = f32[6,20,20]{2,1,0} get-tuple-element(%state), index=2
  %out = f32[6,10,20]{2,1,0} get-tuple-element(%state), index=3
  %made = f32[10,20]{1,0:S(1)} fusion(%kernels, %x, %i), kind=kOutput, calls=%layer, backend_config={"window_config":{"estimated_cycles":"108"}}
  %kept = f32[6,10,20]{2,1,0} fusion(%out, %made, %i), kind=kLoop, calls=%store
  ROOT %after = (s32[], f32[10,20]{1,0:S(1)}, f32[6,20,20]{2,1,0}, f32[6,10,20]{2,1,0}) tuple(%next, %made, %kernels, %kept)
}

ENTRY %main (x.4: f32[10,20], kernels.4: f32[6,20,20], out.4: f32[6,10,20]) -> f32[6,10,20] {
  %x.4 = f32[10,20]{1,0} parameter(0)
  %kernels.4 = f32[6,20,20]{2,1,0} parameter(1)
  %out.4 = f32[6,10,20]{2,1,0} parameter(2)
  %zero = s32[] constant(0)
  %copy = (f32[10,20]{1,0:S(1)}, f32[10,20]{1,0}, u32[]{:S(2)}) copy-start(%x.4)
  %near = f32[10,20]{1,0:S(1)} copy-done(%copy)
  %first = (s32[], f32[10,20]{1,0:S(1)}, f32[6,20,20]{2,1,0}, f32[6,10,20]{2,1,0}) tuple(%zero, %near, %kernels.4, %out.4)
  %loop = (s32[], f32[10,20]{1,0:S(1)}, f32[6,20,20]{2,1,0}, f32[6,10,20]{2,1,0}) while(%first), condition=%condition, body=%body
  ROOT %all = f32[6,10,20]{2,1,0} get-tuple-element(%loop), index=3
}
"""  # noqa: E501


def test_bytes_are_those_that_leave_or_enter_main_memory():
    """Once the input; each time one layer's kernel and one layer's output, which is not read."""
    found = cost(LOOP)
    assert found["bytes"] == 4 * (10 * 20 + 6 * (20 * 20 + 10 * 20))
    assert found["flops"] == 6 * 2 * 10 * 20 * 20
    assert found["cycles"] == 6 * 108

"""Model FLOPs against a count by hand and against XLA's own count of the program.

XLA counts every element-wise operation as well, about half a per cent at these sizes, and products whose result is cut
away afterwards or whose factor is zero (`uncut`). So its totals lie between ours and ours with those on top, and
differences between two programs, which have them in common, agree to two per cent.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from perturbdiff_jax.array_types import Batch
from perturbdiff_jax.diffusion import objective
from perturbdiff_jax.diffusion.objective import ObjectiveOptions
from perturbdiff_jax.diffusion.schedule import Schedule
from perturbdiff_jax.models.mmdit import Denoiser, ModelOptions
from perturbdiff_jax.optim import EmaOptions, OptimOptions, optimizer
from perturbdiff_jax.state import init_params
from perturbdiff_jax.step import StepParts, loss_gradient
from perturbdiff_jax.telemetry.flops import energy_flops, network_flops, step_flops

SETS, CELLS = 2, 128


def network(genes=1000, width=512, depth=2, **changes):
    own = {f.name for f in dataclasses.fields(ModelOptions)}
    options = {name: value for name, value in changes.items() if name in own}
    others = {name: value for name, value in changes.items() if name not in own}
    return Denoiser(
        options=ModelOptions(width=width, depth=depth, scan="no", **options),
        genes=genes,
        perturbations=5,
        cell_types=3,
        batches=2,
        **others,
    )


def batch_of(model, codes_per_cell, cells=CELLS):
    codes = jnp.zeros((SETS, cells) if codes_per_cell else (SETS,), jnp.int32)
    expression = jax.ShapeDtypeStruct((SETS, cells, model.genes), jnp.float32)
    mask = jnp.ones((SETS, cells))
    return Batch(expression, expression, codes, codes, codes, mask, None)


@functools.cache
def counted_forward(model, *, previous=True, codes_per_cell=False, compiled=False, cells=CELLS):
    """XLA's count of one evaluation."""
    batch = batch_of(model, codes_per_cell, cells)
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))

    def evaluation(params, xt, control, t, perturbation, cell_type, codes, estimate):
        return model.apply(
            {"params": params}, xt, t, control, perturbation, cell_type, codes, False, estimate
        )

    lowered = jax.jit(evaluation).lower(
        params,
        batch.perturbed,
        batch.control,
        jnp.zeros(SETS, jnp.int32),
        batch.perturbation,
        batch.cell_type,
        batch.batch,
        batch.perturbed if previous else None,
    )
    return (lowered.compile() if compiled else lowered).cost_analysis()["flops"]


@functools.cache
def counted_gradient(model, options):
    """XLA's count of loss and gradient; of a branch it counts the dearer side."""
    parts = StepParts(
        model=model,
        tx=optimizer(OptimOptions(), 10),
        schedule=Schedule(),
        objective=options,
        ema=EmaOptions(),
        seed=0,
    )
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    shape = (SETS, CELLS, model.genes)
    draws = jax.eval_shape(lambda: objective.draw(jax.random.key(0), shape, Schedule(), options))
    gradient = jax.jit(lambda params, batch, draws: loss_gradient(parts, params, batch, draws))
    return gradient.lower(params, batch_of(model, False), draws).cost_analysis()["flops"]


def uncut(model, codes_per_cell=False):
    """Products of one pass that nothing uses: the last block's control stream behind the attention."""
    width, tokens = model.options.width, SETS * CELLS
    return tokens * (2 * width) ** 2 + 4 * 2 * (tokens if codes_per_cell else SETS) * width**2


def forward(model, previous=True, codes_per_cell=False, cells=CELLS):
    return network_flops(model, sets=SETS, cells=cells, previous=previous, codes_per_cell=codes_per_cell)


def step(model, options, **codes):
    return step_flops(model, options, sets=SETS, cells=CELLS, **codes)


def test_a_network_counted_by_hand():
    model = network(genes=7, width=4, depth=2, heads=2, mlp_ratio=3, covariate_width=5)
    sets, cells = 2, 3
    tokens = 2 * 3
    embed = 2 * tokens * 7 * 4  # one of: perturbed, control, previous estimate
    time = 2 * sets * 256 * 4, 2 * sets * 4 * 4
    covariates = 2 * sets * (3 * 5) * 7 + 2 * sets * 7 * 4  # three tables, mixed, and into the width
    part = 2 * sets * 4 * 4  # one of the 6 + 6 of a block
    qkv, out = 2 * tokens * 8 * 24, 2 * tokens * 8 * 8  # of tokens of both streams
    pairs = 2 * (2 * sets * 3 * 3 * 8)  # scores, and sums of values
    mlp = 2 * tokens * 4 * 12 * 2
    blocks = (12 + 8) * part + 2 * (qkv + pairs) + 1.5 * out + 3 * mlp
    head = 2 * part + 2 * tokens * 4 * 7
    whole = 3 * embed + sum(time) + covariates + blocks + head
    assert network_flops(model, sets=sets, cells=cells, previous=True) == whole
    assert network_flops(model, sets=sets, cells=cells, previous=False) == whole - embed

    energy = 5 * 2 * sets * 3 * 3 * 7
    options = ObjectiveOptions(self_condition=0.25)
    # Inputs that are data need no gradient: forward and weights only.
    once = 2 * (2.25 * embed + time[0]) + 3 * (time[1] + covariates + blocks + head)
    expected = once + 0.25 * (whole - embed) + energy
    assert step_flops(model, options, sets=sets, cells=cells) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "arguments"),
    [
        ({}, {}),
        ({}, {"previous": False}),
        ({"use_batch": "no", "use_cell_type": "no"}, {"previous": False}),
        ({"anchor": "scaled_control"}, {"codes_per_cell": True}),
        ({"covariate_genes": 300, "dose_codes": (0, 1, 1, 0, 2)}, {"codes_per_cell": True}),
        ({"perturbation_table": (5, 1280), "cell_type_table": (3, 1536)}, {"codes_per_cell": True}),
        ({"width": 256, "mlp_ratio": 2, "heads": 4, "genes": 2000, "depth": 3}, {}),
        ({"depth": 1, "sources": 4}, {}),
    ],
    ids=lambda value: ",".join(map(str, value)) or "plain",
)
def test_a_forward_pass_as_xla_counts_it(changes, arguments):
    model = network(**changes)
    ours, xla = forward(model, **arguments), counted_forward(model, **arguments)
    more = uncut(model, arguments.get("codes_per_cell", False))
    assert ours < xla < 1.01 * (ours + more) and more < 0.075 * ours


def test_the_optimised_program_as_xla_counts_it():
    model = network()
    ours = forward(model)
    assert ours < counted_forward(model, compiled=True) < 1.01 * (ours + uncut(model))


@pytest.mark.parametrize(
    ("more", "fewer", "arguments"),
    [
        ({"depth": 3}, {"depth": 2}, {}),  # one whole block
        ({"mlp_ratio": 8}, {"mlp_ratio": 4}, {}),
        ({"genes": 2000}, {"genes": 1000}, {"codes_per_cell": True}),
        ({"anchor": "scaled_control"}, {"anchor": "control"}, {"codes_per_cell": True}),
        ({"dose_codes": (0, 1)}, {}, {"codes_per_cell": True}),
        ({"perturbation_table": (5, 1280)}, {}, {"codes_per_cell": True}),
        ({}, {"use_cell_type": "no"}, {"codes_per_cell": True}),
        ({"covariate_genes": 1100}, {"covariate_genes": 100}, {"codes_per_cell": True}),
    ],
    ids=str,
)
def test_parts_of_the_network_as_xla_counts_them(more, fewer, arguments):
    pair = network(**more), network(**fewer)
    ours = [forward(model, **arguments) for model in pair]
    xla = [counted_forward(model, **arguments) for model in pair]
    assert xla[0] - xla[1] == pytest.approx(ours[0] - ours[1], rel=0.02)


def test_the_previous_estimate_and_the_cells_as_xla_counts_them():
    model = network()
    ours = forward(model) - forward(model, previous=False)
    assert counted_forward(model) - counted_forward(model, previous=False) == pytest.approx(ours, rel=0.01)
    # Twice the cells: twice everything but the attention's pairs, which are four times as many.
    ours = forward(model, cells=512) - 2 * forward(model, cells=256)
    xla = counted_forward(model, cells=512) - 2 * counted_forward(model, cells=256)
    assert xla == pytest.approx(ours, rel=0.03)


def test_a_training_step_as_xla_counts_it():
    model = network()
    plain = ObjectiveOptions(self_condition=0.0, mmd_weight=0.0)
    energy = ObjectiveOptions(self_condition=0.0)
    always = ObjectiveOptions(self_condition=1.0)
    xla = {options: counted_gradient(model, options) for options in (plain, energy, always)}
    more = uncut(model)
    for options, counted in xla.items():
        ours = step(model, options)
        # The first pass multiplies the zeros that stand for an estimate.
        first = options.self_condition * (more + 2 * SETS * CELLS * model.genes * 512)
        assert ours < counted < 1.015 * (ours + 3 * more + first), options
    assert xla[energy] - xla[plain] == pytest.approx(
        energy_flops(sets=SETS, cells=CELLS, genes=model.genes), rel=0.02
    )
    half = dataclasses.replace(always, self_condition=0.5)
    mean = (step(model, energy) + step(model, always)) / 2
    assert step(model, half) == pytest.approx(mean, rel=1e-9)


def test_a_block_costs_three_times_its_forward_pass():
    options = ObjectiveOptions(self_condition=0.0)
    deep, flat = network(depth=3), network(depth=2)
    block = forward(deep) - forward(flat)
    assert step(deep, options) - step(flat, options) == 3 * block
    xla = counted_gradient(deep, options) - counted_gradient(flat, options)
    assert xla == pytest.approx(3 * block, rel=0.02)


def test_neither_rematerialisation_nor_zeroed_control_cells_count():
    model = network()
    options = ObjectiveOptions()
    assert step(network(remat="full"), options) == step(model, options)
    none = dataclasses.replace(options, drop_control=1.0)
    embed = 2 * SETS * CELLS * model.genes * 512
    assert step(model, options) - step(model, none) == pytest.approx(2.5 * embed)

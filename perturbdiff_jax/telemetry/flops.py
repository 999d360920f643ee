"""Model FLOPs of a training step and of one evaluation of the network, by counting its matrix products.

What counts: two FLOPs (multiply, add) for every term of every matrix product that the method (4 in models/, the energy
distance in kernels/) needs. A product y = x W costs as much again for dW and, where x depends on parameters, once more
for dx. What does not count: element-wise work (norms, softmax, GELU, optimizer), anything computed a second time to
save memory (that is why utilisation by model FLOPs falls with rematerialisation), and products whose result nothing
uses or whose factor is zero: control features after the last block's attention, the control's self-conditioning half,
the previous estimate where there is none.
"""

from typing import NamedTuple

from perturbdiff_jax.diffusion.objective import ObjectiveOptions
from perturbdiff_jax.models.layers import TIME_FEATURES
from perturbdiff_jax.models.mmdit import Denoiser


class Product(NamedTuple):
    """A group of matrix products."""

    forward: float  # FLOPs of one pass over a batch
    # How often that is spent in training: forward, gradient of the weights, gradient of the input.
    training: int


def network_products(
    model: Denoiser, *, sets: int, cells: int, codes_per_cell: bool = False
) -> dict[str, Product]:
    """The matrix products of the denoiser on `sets` sets of `cells` cells, by what they are for.

    `previous` is the self-conditioning half of the input, there only where an estimate is fed back. With
    `codes_per_cell` (marginal pretraining) covariates and modulation are computed for each cell instead of each set.
    """
    options = model.options
    width, ratio, genes = options.width, options.mlp_ratio, model.genes
    tokens = sets * cells
    codes = tokens if codes_per_cell else sets
    joint = 2 * width  # a token of the attention holds both streams

    embed = _product(tokens, genes, width)
    attention = _product(tokens, joint, 3 * joint) + 2 * sets * _product(cells, joint, cells)
    project = _product(tokens, joint, joint)
    mlp = _product(tokens, width, ratio * width) + _product(tokens, ratio * width, width)
    part = _product(codes, width, width)  # one shift, scale or gate
    whole, depth = options.depth - 1, options.depth
    # Of the last block's control stream only what enters the attention is used: two parts of six, no projection.
    products = {
        "embed": Product(2 * embed, 2),
        "previous": Product(embed, 2),
        "time, first layer": Product(_product(sets, TIME_FEATURES, width), 2),
        "time, second layer": Product(_product(sets, width, width), 3),
        "modulation": Product((12 * whole + 8) * part, 3),
        "attention": Product(depth * attention + (whole + 0.5) * project, 3),
        "mlp": Product((2 * whole + 1) * mlp, 3),
        "head": Product(2 * part + _product(tokens, width, genes), 3),
    }
    if options.anchor == "scaled_control":
        products["anchor"] = Product(_product(codes, width, genes), 3)
    return products | _covariate_products(model, codes)


def _covariate_products(model: Denoiser, codes: int) -> dict[str, Product]:
    options = model.options
    used = [
        True,
        bool(model.dose_codes),
        options.use_cell_type != "no" and model.cell_types > 0,
        options.use_batch != "no" and model.batches > 0,
    ]
    frozen = [model.perturbation_table, model.cell_type_table if used[2] else None]
    width, genes = options.covariate_width, model.covariate_genes or model.genes
    return {
        "frozen tables": Product(sum(_product(codes, table[1], width) for table in frozen if table), 2),
        "covariates": Product(
            _product(codes, sum(used) * width, genes) + _product(codes, genes, options.width), 3
        ),
    }


def network_flops(
    model: Denoiser, *, sets: int, cells: int, previous: bool, codes_per_cell: bool = False
) -> float:
    """FLOPs of one evaluation of the network, with or without a `previous` estimate to condition on."""
    products = network_products(model, sets=sets, cells=cells, codes_per_cell=codes_per_cell)
    return sum(product.forward for name, product in products.items() if previous or name != "previous")


def energy_flops(*, sets: int, cells: int, genes: int) -> float:
    """FLOPs of the energy distance in training: three Gram matrices, and two products for the derivative."""
    return 5 * sets * _product(cells, genes, cells)


def step_flops(
    model: Denoiser, objective: ObjectiveOptions, *, sets: int, cells: int, codes_per_cell: bool = False
) -> float:
    """Model FLOPs of one training step on a whole batch, the mean over the draws of the objective.

    Args:
      model: the network with its vocabularies.
      objective: says whether there is an energy distance, how often a set conditions on a first estimate (one more
        evaluation without a derivative), and how often its control cells are zero.
      sets, cells: sets in the batch, over all devices, and cells in a set.
      codes_per_cell: covariates differ between cells of a set (batches, of sets that mix them).
    """
    products = network_products(model, sets=sets, cells=cells, codes_per_cell=codes_per_cell)
    shares = {"previous": objective.self_condition, "embed": 1 - objective.drop_control / 2}
    pass_ = sum(shares.get(name, 1.0) * one.forward for name, one in products.items() if name != "previous")
    total = sum(shares.get(name, 1.0) * one.forward * one.training for name, one in products.items())
    total += objective.self_condition * pass_
    if objective.mmd_weight > 0:
        total += energy_flops(sets=sets, cells=cells, genes=model.genes)
    return total


def _product(rows: int, inner: int, columns: int) -> float:
    return 2.0 * rows * inner * columns

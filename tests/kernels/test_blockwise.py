"""The energy distance block by block: that of whole matrices, in bounded memory, each pair looked at once."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_energy import distances, energy, expression, gradients, off, shares

from perturbdiff_jax.kernels import blockwise, gram

GENES = 300
# (cells of x, cells of y, cells of a block)
SIZES = {
    "blocks that divide both": (48, 24, 8),
    "blocks that divide neither": (41, 23, 8),
    "one cell more than blocks have": (33, 17, 16),
    "one of two sets smaller than a block": (37, 5, 8),
    "both smaller than a block": (5, 7, 64),
    "blocks of one cell": (6, 4, 1),
}


def given(cells_x, cells_y, seed=0):
    """(x, y, wx, wy): unequal weights that sum to 1, every fourth of 0."""
    draw = np.random.default_rng(seed)
    x, y = expression(draw, cells_x, GENES), expression(draw, cells_y, GENES, 0.2)
    weights = [draw.uniform(0.2, 2.0, n) * (np.arange(n) % 4 != 1) for n in (cells_x, cells_y)]
    wx, wy = (jnp.array(w / w.sum(), jnp.float32) for w in weights)
    return jnp.array(x), jnp.array(y), wx, wy


def differentiated(function, cells):
    return jax.jit(jax.value_and_grad(function, argnums=(0, 1)))(*cells)


@pytest.mark.parametrize("case", SIZES)
def test_value_and_derivatives_of_cells_in_blocks(case):
    *sizes, block = SIZES[case]
    cells = given(*sizes)
    value, pulls = differentiated(functools.partial(blockwise.energy, block=block), cells)
    np.testing.assert_allclose(value, energy(*cells), atol=2e-7)
    for got, want in zip(pulls, gradients(*cells), strict=True):
        assert off(got, want) < 3e-6


def test_whole_matrices_give_the_same():
    cells = given(41, 23)
    value, pulls = differentiated(functools.partial(blockwise.energy, block=8), cells)
    wanted, wanted_pulls = differentiated(gram.energy, cells)
    np.testing.assert_allclose(value, wanted, atol=2e-7)
    for got, want in zip(pulls, wanted_pulls, strict=True):
        assert off(got, np.asarray(want, np.float64)) < 3e-6


def test_cells_that_weigh_nothing_could_as_well_be_missing():
    x, y, wx, wy = given(41, 23)
    want = energy(x[wx > 0], y[wy > 0], wx[wx > 0], wy[wy > 0])
    there, here = jnp.where(wx[:, None] > 0, x, 50.0), jnp.where(wy[:, None] > 0, y, -50.0)
    got = jax.jit(functools.partial(blockwise.energy, block=8))(there, here, wx, wy)
    np.testing.assert_allclose(got, want, atol=2e-7)


def test_one_array_with_two_weightings_is_two_sets():
    """Half of the pairs may stand for all only where both sides weigh alike."""
    x, _, wx, _ = given(20, 4)
    other = jnp.array(shares(x, np.linspace(0.1, 3, 20)), jnp.float32)
    # A cell of the one is at the other's, but for rounding: 5e-6 is what that leaves.
    np.testing.assert_allclose(blockwise.energy(x, x, wx, other, 8), energy(x, x, wx, other), atol=5e-6)


@pytest.mark.parametrize("derivative", [False, True])
def test_memory_is_that_of_blocks(derivative):
    """4096 cells against 4096 have 64 MiB of distances; a block of 256 has a 256th of them."""
    cells, genes, block = 4096, 8, 256
    function = functools.partial(blockwise.energy, block=block)
    if derivative:
        function = jax.grad(function, argnums=(0, 1))
    set_, weights = jnp.zeros((cells, genes)), jnp.zeros(cells)
    compiled = jax.jit(function).lower(set_, set_, weights, weights).compile()
    inputs, one_block = 4 * cells * genes, 4 * block * block
    taken = compiled.memory_analysis().temp_size_in_bytes
    assert one_block < taken < 4 * one_block + 2 * inputs < 4 * cells * cells / 32


@pytest.mark.parametrize("cells", [1, 7, 16, 17, 24, 33, 4097])
def test_blocks_are_as_equal_as_can_be(cells):
    """No more of them than needed, and together hardly more cells than there are."""
    count, size = blockwise.blocks_of(cells, 16)
    assert count == -(-cells // 16) and size <= 16
    assert cells <= count * size < cells + count


def test_sums_of_many_blocks_keep_their_last_digits():
    """65,536 blocks, one after the other onto one number: a plain sum is off by thirty units in the last place."""
    draw = np.random.default_rng(0)
    x, y = (expression(draw, 256, 50) for _ in range(2))
    weights = jnp.full(256, 1 / 256)
    nowhere = {"centre": jnp.zeros((1, 50)), "shift": jnp.zeros(())}
    got, *_ = jax.jit(functools.partial(blockwise.mean_distance, block=1))(x, y, weights, weights, **nowhere)
    np.testing.assert_allclose(got, distances(x, y).mean(), rtol=2e-7)


def test_of_a_set_and_itself_half_of_the_blocks_are_looked_at():
    """Five blocks of x, three of y: 5 x 3 pairs between them, 5 x 6 / 2 and 3 x 4 / 2 within."""
    x, y, wx, wy = given(33, 20)
    graph = jax.make_jaxpr(functools.partial(blockwise.energy, block=8))(x, y, wx, wy)
    assert sorted(map(int, re.findall(r"length=(\d+)", str(graph)))) == [6, 15, 15]


def test_programs_make_only_what_is_used():
    """A derivative costs three products: one across, two (both sides of a pair) within."""
    cells = [jnp.array(part)[None] for part in given(33, 20)[:2]]
    value = lambda x, y: blockwise.energy(x[0], y[0], *given(33, 20)[2:], 8)  # noqa: E731

    def products(function):
        found = re.findall(r"= f32\[[\d,]*\]\S* dot\(", jax.jit(function).lower(*cells).compile().as_text())
        # Weighted means are products with a vector, or none.
        return sum(min(map(int, re.search(r"\[([\d,]*)\]", line)[1].split(","))) > 1 for line in found)

    counts = [products(jax.value_and_grad(value, argnums=wanted)) for wanted in (0, 1, (0, 1))]
    assert [count - products(value) for count in counts] == [3, 3, 6]

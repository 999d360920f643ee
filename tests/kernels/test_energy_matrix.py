"""Many populations at once: for every two of them what the energy distance gives for their cells alone."""

import sys

import ml_dtypes
import numpy as np
import pytest
from exact_energy import energy, expression

import perturbdiff_jax as pdx
from perturbdiff_jax.kernels.energy_distance import energy_distance
from perturbdiff_jax.kernels.energy_matrix import energy_matrix

GENES = 300
# Cells of the populations: single ones, some with more cells than most blocks, many small ones side by side.
ROWS = [1, 40, 3, 3, 1, 2, 1, 1, 30, 5]
COLUMNS = [17, 1, 1, 26]


def screen(counts, seed, mean=0.1):
    """(cells, codes), in no order; every population has a mean of its own."""
    draw = np.random.default_rng(seed)
    cells = np.concatenate(
        [expression(draw, n, GENES, mean * (1 + code / len(counts))) for code, n in enumerate(counts)]
    )
    order = draw.permutation(len(cells))
    return cells[order], np.repeat(np.arange(len(counts)), counts)[order]


def pair_by_pair(x, codes_x, y, codes_y):
    return np.array(
        [
            [energy(x[codes_x == p], y[codes_y == q]) for q in range(codes_y.max() + 1)]
            for p in range(codes_x.max() + 1)
        ]
    )


ROW_CELLS, COLUMN_CELLS = screen(ROWS, 0), screen(COLUMNS, 1, 0.2)
WITHIN = pair_by_pair(*ROW_CELLS, *ROW_CELLS)
BETWEEN = pair_by_pair(*ROW_CELLS, *COLUMN_CELLS)
# 87 and 45 cells: blocks that divide, that cut through populations, of one cell, and larger than all there is.
BLOCKS = [29, 16, 1, 60, 2048]


@pytest.mark.parametrize("block", BLOCKS)
def test_every_two_populations_of_one_screen(block):
    got = energy_matrix(*ROW_CELLS, block=block)
    assert got.dtype == np.float32 and got.shape == (10, 10)
    np.testing.assert_allclose(got, WITHIN, atol=3e-6)
    np.testing.assert_array_equal(np.diagonal(got), 0.0)
    np.testing.assert_allclose(got, got.T, atol=1e-6)


@pytest.mark.parametrize("block", BLOCKS)
def test_populations_of_one_screen_against_those_of_another(block):
    got = energy_matrix(*ROW_CELLS, *COLUMN_CELLS, block=block)
    assert got.dtype == np.float32 and got.shape == (10, 4)
    np.testing.assert_allclose(got, BETWEEN, atol=3e-6)
    np.testing.assert_allclose(energy_matrix(*COLUMN_CELLS, *ROW_CELLS, block=block), got.T, atol=1e-6)


def test_it_is_the_energy_distance_of_the_two():
    (x, codes_x), (y, codes_y) = ROW_CELLS, COLUMN_CELLS
    got = energy_matrix(x, codes_x, y, codes_y)
    for p, q in ((0, 1), (1, 3), (8, 0)):
        want = energy_distance(x[codes_x == p], y[codes_y == q])
        np.testing.assert_allclose(got[p, q], want, atol=1e-6)


def test_one_population_and_a_screen_of_itself():
    x, _ = ROW_CELLS
    codes = np.zeros(len(x), int)
    np.testing.assert_array_equal(energy_matrix(x, codes, block=16), [[0.0]])
    # Given a second time it is another screen, whose equal cells products see a little apart.
    np.testing.assert_allclose(energy_matrix(x, codes, x, codes, block=16), [[0.0]], atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float64, ml_dtypes.bfloat16, np.float16])
def test_cells_of_any_float_are_computed_in_float32(dtype):
    (x, codes_x), (y, codes_y) = ROW_CELLS, COLUMN_CELLS
    x, y = x.astype(dtype), y.astype(dtype)
    got = energy_matrix(x, codes_x, y, codes_y.astype(np.int8), block=29)
    assert got.dtype == np.float32
    want = energy_matrix(x.astype(np.float32), codes_x, y.astype(np.float32), codes_y, block=29)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "codes, said",
    [
        ([0, 1, 1], "one whole number for each of 4 cells"),
        ([0, 1, 1, 2, 2], "one whole number for each of 4 cells"),
        ([[0], [1], [1], [2]], "one whole number for each of 4 cells"),
        ([0.0, 1.0, 1.0, 2.0], "one whole number for each of 4 cells"),
        (["a", "b", "b", "c"], "one whole number for each of 4 cells"),
        (None, "one whole number for each of 4 cells"),
        ([0, 1, -1, 2], "0 to P - 1, each with a cell; -1 is none of them"),
        ([0, 3, 3, 1], "each with a cell; 2 has none"),
        ([1, 2, 2, 1], "each with a cell; 0 has none"),
    ],
)
@pytest.mark.parametrize("side", ["codes_x", "codes_y"])
def test_codes_that_are_no_populations_are_refused(side, codes, said):
    cells, good = np.zeros((4, 3), np.float32), np.array([0, 1, 1, 0])
    codes = None if codes is None else np.array(codes)
    given = (cells, codes, cells, good) if side == "codes_x" else (cells, good, cells, codes)
    with pytest.raises(ValueError, match=f"^{side}: must be .*{said}"):
        energy_matrix(*given)


def test_no_cells_and_other_genes_are_refused():
    with pytest.raises(ValueError, match="codes_x: must be one whole number for each of 0 cells"):
        energy_matrix(np.zeros((0, 3)), np.zeros(0, int))
    codes = np.zeros(4, int)
    with pytest.raises(ValueError, match="cells of 3 and 5 genes"):
        energy_matrix(np.zeros((4, 3)), codes, np.zeros((4, 5)), codes)


def test_the_package_offers_both():
    cells, codes = ROW_CELLS
    np.testing.assert_allclose(pdx.energy_matrix(cells, codes), WITHIN, atol=1e-6)
    two = [cells[codes == code] for code in (1, 8)]
    np.testing.assert_allclose(pdx.energy_distance(*two, way="blockwise"), WITHIN[1, 8], atol=1e-6)
    np.testing.assert_allclose(pdx.energy_matrix(cells, codes, *COLUMN_CELLS, block=16), BETWEEN, atol=1e-6)


def test_cells_far_from_nothing_lose_no_digits():
    """Twenty units off in every gene: products of such cells as they are would keep two digits of a distance."""
    x, codes = ROW_CELLS
    np.testing.assert_allclose(energy_matrix(x + 20, codes, block=16), WITHIN, atol=2e-5)


def test_own_populations_cost_their_own_pairs_alone(monkeypatch):
    """Six blocks of the rows and three of the columns: 18 pairs between, within only where a population goes on."""
    module = sys.modules[energy_matrix.__module__]
    looked_at = []

    def counted(rows, columns, centre, shift, pairs, *rest):
        looked_at.append(sorted(map(tuple, pairs.tolist())))
        return summed(rows, columns, centre, shift, pairs, *rest)

    summed = module._summed
    monkeypatch.setattr(module, "_summed", counted)
    energy_matrix(*ROW_CELLS, *COLUMN_CELLS, block=15)

    def shared(codes):
        blocks = [set(np.sort(codes)[i : i + 15].tolist()) for i in range(0, len(codes), 15)]
        return [(i, j) for i in range(len(blocks)) for j in range(i, len(blocks)) if blocks[i] & blocks[j]]

    between = [(i, j) for i in range(6) for j in range(3)]
    assert looked_at == [between, shared(ROW_CELLS[1]), shared(COLUMN_CELLS[1])]
    assert [len(pairs) for pairs in looked_at] == [18, 13, 5]

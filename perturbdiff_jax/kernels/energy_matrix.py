"""Energy distances between many populations at once: every condition against every other.

Cells of all conditions lie in one array; distances are made block by block, and a block is summed up by condition in
two small products. So conditions of ten cells and of ten thousand cost what their cells cost, and no matrix of all
cells against all cells exists.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from perturbdiff_jax.kernels.blockwise import BLOCK, blocks_of
from perturbdiff_jax.kernels.distances import EXACT, FLOOR, distance_of, norms, products


def energy_matrix(
    x: np.ndarray,
    codes_x: np.ndarray,
    y: np.ndarray | None = None,
    codes_y: np.ndarray | None = None,
    *,
    block: int = BLOCK,
) -> np.ndarray:
    """Half energy distances between populations, [P, Q] float32.

    Args:
      x: [N, G] cells, any float dtype.
      codes_x: [N] population of each cell, 0 to P - 1, in any order; each population has a cell.
      y, codes_y: [M, G] and [M], the populations of the columns; None = those of x.
      block: cells of a block; memory is that of x, y and a few block x block matrices.

    Returns:
      At [p, q] what `energy_distance` gives for the cells of p and q. Of x alone the matrix is symmetric with a zero
      diagonal.

    Raises:
      ValueError: codes that are no populations of the cells.
    """
    rows = _Populations.of("codes_x", x, codes_x)
    columns = rows if y is None else _Populations.of("codes_y", y, codes_y)
    if rows.cells.shape[1] != columns.cells.shape[1]:
        raise ValueError(f"cells of {rows.cells.shape[1]} and {columns.cells.shape[1]} genes")
    centre = rows.cells.mean(axis=0, keepdims=True)
    # A constant cancels in an energy distance: taken off, it leaves the digits of what is small.
    shift = jnp.sqrt(norms(rows.cells - centre).mean() + norms(columns.cells - centre).mean())
    between = _means(rows, columns, centre, shift, block)
    if y is None:
        own_rows = own_columns = jnp.diagonal(between)
    else:
        own_rows, own_columns = (
            jnp.diagonal(_means(side, side, centre, shift, block, own=True)) for side in (rows, columns)
        )
    return np.asarray(between - 0.5 * own_rows[:, None] - 0.5 * own_columns[None, :])


@dataclasses.dataclass(frozen=True, eq=False)
class _Populations:
    """Cells sorted by population."""

    cells: jax.Array  # [N, G] float32
    codes: jax.Array  # [N] int32, ascending
    weights: jax.Array  # [N], of one over the cells of the population
    count: int

    @classmethod
    def of(cls, name: str, cells, codes) -> "_Populations":
        codes = np.asarray(codes)
        if codes.shape != cells.shape[:1] or not len(codes) or not np.issubdtype(codes.dtype, np.integer):
            raise ValueError(f"{name}: must be one whole number for each of {cells.shape[0]} cells")
        if codes.min() < 0:
            raise ValueError(f"{name}: must be 0 to P - 1, each with a cell; {codes.min()} is none of them")
        counts = np.bincount(codes)
        if (counts == 0).any():
            raise ValueError(f"{name}: must be 0 to P - 1, each with a cell; {np.argmin(counts)} has none")
        order = np.argsort(codes, kind="stable")
        return cls(
            cells=jnp.asarray(np.asarray(cells, np.float32)[order]),
            codes=jnp.asarray(codes[order], jnp.int32),
            weights=jnp.asarray(1.0 / counts[codes[order]], jnp.float32),
            count=len(counts),
        )


def _means(
    rows: _Populations, columns: _Populations, centre, shift, block: int, own: bool = False
) -> jax.Array:
    """Mean of distance - shift between every two populations, [P, Q]; `own` = only the diagonal is wanted."""
    same = rows is columns
    (count_x, block_x), (count_y, block_y) = (blocks_of(len(side.cells), block) for side in (rows, columns))
    last = np.asarray(rows.codes)[block_x - 1 :: block_x]
    first = np.asarray(columns.codes)[::block_y]
    pairs = np.array(
        [
            (i, j)
            for i in range(count_x)
            for j in range(count_y)
            # Cells lie by population: blocks that share none are no part of the diagonal.
            if not same or j == i or (j > i and not (own and first[j] > last[i]))
        ],
        np.int32,
    )
    sides = [(side.cells, norms(side.cells - centre), side.codes, side.weights) for side in (rows, columns)]
    widths = [_width(np.asarray(side.codes), size) for side, size in ((rows, block_x), (columns, block_y))]
    sums = _summed(
        *sides, centre, shift, pairs, (rows.count, columns.count), tuple(widths), (block_x, block_y), same
    )
    return sums[: rows.count, : columns.count]


def _width(codes: np.ndarray, size: int) -> int:
    """Most populations of a block: they lie side by side."""
    starts = np.minimum(np.arange(0, len(codes), size), len(codes) - size)
    return int((codes[starts + size - 1] - codes[starts]).max()) + 1


@functools.partial(jax.jit, static_argnums=(5, 6, 7, 8))
def _summed(rows, columns, centre, shift, pairs, counts, widths, sizes, same):
    # A block may begin with the last population: behind it there is room for as many as a block can have.
    total = jnp.zeros(tuple(count + width for count, width in zip(counts, widths)), jnp.float32)

    def add(total, pair):
        i, j = pair
        a, a2, first_a, share_a = _block(rows, i, sizes[0], widths[0], centre)
        b, b2, first_b, share_b = _block(columns, j, sizes[1], widths[1], centre)
        distance = distance_of(products(a, b), a2, b2)
        if same:
            own = jnp.eye(len(a), dtype=bool) & (i == j)
            distance = jnp.where(own, FLOOR**0.5, distance)
        part = jnp.einsum("ip,ij,jq->pq", share_a, distance - shift, share_b, precision=EXACT)
        total = _added(total, part, first_a, first_b)
        if same:
            total = _added(total, jnp.where(i == j, 0.0, part.T), first_b, first_a)
        return total, None

    return jax.lax.scan(add, total, pairs)[0]


def _added(total, part, row, column):
    old = jax.lax.dynamic_slice(total, (row, column), part.shape)
    return jax.lax.dynamic_update_slice(total, old + part, (row, column))


def _block(side, number, size, width, centre):
    """(cells around the centre, squared lengths, first population, share of each cell in populations from there on)."""
    start = jnp.minimum(number * size, len(side[0]) - size)
    cells, lengths, codes, weights = (jax.lax.dynamic_slice_in_dim(array, start, size) for array in side)
    weights = jnp.where(start + jnp.arange(size) >= number * size, weights, 0.0)
    member = (codes - codes[0])[:, None] == jnp.arange(width)[None]
    return cells - centre, lengths, codes[0], jnp.where(member, weights[:, None], 0.0)

"""From a packed batch to a dense one, inside the jitted step: what leaves the host is a tenth of what is trained on.

Expression of a cell is log1p(count * scale) / divisor, computed once per stored value with the host's own float32
operations, so that a run does not depend on where cells are densified (beyond the last bit of log1p).
"""

import jax
import jax.numpy as jnp

from perturbdiff_jax.array_types import Batch, PackedBatch


def densify(packed: PackedBatch, *, genes: int, divisor: float) -> Batch:
    """The batch with expression as [B, S, G] float32, log1p / divisor.

    Every run of sets is unpacked on its own, so under a sharding of the leading axes over D devices nothing is sent
    between them. All shapes are static; `genes` and `divisor` too.
    """
    cells = _dense_cells(packed, genes, jnp.float32(divisor))
    runs = cells.shape[0]

    def taken(rows: jax.Array) -> jax.Array:
        sets, size = rows.shape
        chosen = jax.vmap(lambda x, i: x[i])(cells, rows.reshape(runs, -1))
        return chosen.reshape(sets, size, genes)

    return Batch(
        perturbed=taken(packed.perturbed),
        control=taken(packed.control),
        perturbation=packed.perturbation,
        cell_type=packed.cell_type,
        batch=packed.batch,
        mask=packed.mask,
        source=packed.source,
    )


def _dense_cells(packed: PackedBatch, genes: int, divisor: jax.Array) -> jax.Array:
    """[D, U, G] float32, log1p / divisor."""
    if packed.row_nnz is None:
        counts = packed.data.astype(jnp.float32)
        return jnp.log1p(counts * packed.scale[:, :, None]) / divisor
    if packed.indices is None:
        gene, value = packed.data & jnp.uint32(0xFFFF), packed.data >> jnp.uint32(16)
    else:
        gene, value = packed.indices, packed.data
    gene, value = gene.astype(jnp.int32), value.astype(jnp.float32)
    row = jax.vmap(lambda nnz: row_of_value(nnz, value.shape[1]))(packed.row_nnz)
    if packed.scale is not None:
        scale = jax.vmap(lambda x, i: x.at[i].get(mode="clip"))(packed.scale, row)
        value = jnp.log1p(value * scale)
    return jax.vmap(lambda v, r, g: _scattered(v, r, g, packed.row_nnz.shape[1], genes))(
        value / divisor, row, gene
    )


def row_of_value(row_nnz: jax.Array, length: int) -> jax.Array:
    """The row of each of `length` stored values, [length] int32; U, which is no row, for those behind the last.

    A one where a row ends and a running sum: faster to compile and to run than bisection (on a CPU, both).
    """
    ends = jnp.cumsum(row_nnz)
    return jnp.cumsum(jnp.zeros(length, jnp.int32).at[ends].add(1, mode="drop"))


def _scattered(value: jax.Array, row: jax.Array, gene: jax.Array, rows: int, genes: int) -> jax.Array:
    # Values behind the last row go to row U, which does not exist and is dropped. Their columns are made different:
    # then all places differ and ascend, as the two promises say, and no atomic operation is needed.
    gene = jnp.where(row < rows, gene, jnp.arange(len(gene), dtype=jnp.int32))
    places = jnp.zeros((rows, genes), jnp.float32).at[row, gene]
    return places.set(value, mode="drop", unique_indices=True, indices_are_sorted=True)

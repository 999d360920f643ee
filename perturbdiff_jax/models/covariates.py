"""Covariate encoder (method 5): perturbation, cell type and batch codes to one vector of gene width.

Each covariate is embedded to `width` (128), the embeddings are concatenated and mapped by one linear layer to G
values. The released width is the gene count of the training that made the encoder; it is kept so that released
weights load. An embedding is a learned table, or a frozen one (language-model vectors of proteins, genes, drugs, cell
types) behind a linear layer.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from perturbdiff_jax.models.layers import Linear

TABLE_INIT = nn.initializers.normal(1.0)
# Frozen tables are parameters so that they travel with the weights; by this prefix the optimizer leaves them alone.
FROZEN = "frozen_"


class CovariateEncoder(nn.Module):
    """Tables for the covariates; perturbation row 0 means "none", so perturbation codes are shifted by one.

    Attributes:
      perturbations, cell_types, batches: vocabulary sizes; 0 leaves a covariate out (not the perturbation).
      genes: the output width (G, or the width that imported weights have).
      width: embedding width of each covariate.
      ignore_perturbation: every cell gets row 0, as in marginal pretraining.
      perturbation_table, cell_type_table: (rows, width) of a frozen table; None = learned.
      dose_codes: row of the learned dose table for each perturbation; empty = no doses.
    """

    perturbations: int
    cell_types: int
    batches: int
    genes: int
    width: int = 128
    ignore_perturbation: bool = False
    perturbation_table: tuple[int, int] | None = None
    cell_type_table: tuple[int, int] | None = None
    dose_codes: tuple[int, ...] = ()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, perturbation: jax.Array, cell_type: jax.Array, batch: jax.Array) -> jax.Array:
        """Maps codes [B, 1] or [B, S] (perturbation -1 = none) to [B, 1 or S, genes]."""
        row = jnp.zeros_like(perturbation) if self.ignore_perturbation else perturbation + 1
        parts = [self._embed("perturbation", row, self.perturbations + 1, self.perturbation_table)]
        if self.dose_codes:
            # "None" has no dose of its own; the lowest one stands in.
            dose = jnp.asarray((0, *self.dose_codes), jnp.int32)[row]
            parts.append(self._embed("dose", dose, max(self.dose_codes) + 1, None))
        if self.cell_types:
            parts.append(self._embed("cell_type", cell_type, self.cell_types, self.cell_type_table))
        if self.batches:
            parts.append(self._embed("batch", batch, self.batches, None))
        # Some covariates may be told for every cell and the others for the set.
        cells = jnp.broadcast_shapes(*(part.shape[:-1] for part in parts))
        mixed = jnp.concatenate([jnp.broadcast_to(part, (*cells, part.shape[-1])) for part in parts], axis=-1)
        return Linear(self.genes, dtype=self.dtype, name="mix")(mixed)

    def _embed(self, name: str, row: jax.Array, rows: int, frozen: tuple[int, int] | None) -> jax.Array:
        if frozen is None:
            table = self.param(name, TABLE_INIT, (rows, self.width), jnp.float32)
            return jnp.take(table, row, axis=0).astype(self.dtype)
        table = jax.lax.stop_gradient(self.param(FROZEN + name, TABLE_INIT, frozen, jnp.float32))
        vectors = jnp.take(table, row, axis=0).astype(self.dtype)
        return Linear(self.width, dtype=self.dtype, name=f"map_{name}")(vectors)

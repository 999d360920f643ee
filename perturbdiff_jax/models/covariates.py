"""Covariate encoder (method 5): perturbation, cell type and batch codes to one vector of gene width.

Each covariate is embedded to `width` (128), the embeddings are concatenated and mapped by one linear layer to G
values. The released width is the gene count of the training that made the encoder; it is kept so that released
weights load. An embedding is a learned table, a frozen one (language-model vectors of proteins, genes, drugs, cell
types) behind a linear layer, or the sum of both.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

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
      perturbation_rows, cell_type_rows: learned rows that are added up for each row of the vocabulary (perturbations
        have "none" first); () = the row of the same number, or nothing learned where there is a frozen table.
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
    perturbation_rows: tuple[tuple[int, ...], ...] = ()
    cell_type_rows: tuple[tuple[int, ...], ...] = ()
    dose_codes: tuple[int, ...] = ()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, perturbation: jax.Array, cell_type: jax.Array, batch: jax.Array) -> jax.Array:
        """Maps codes [B, 1] or [B, S] (perturbation -1 = none) to [B, 1 or S, genes]."""
        row = jnp.zeros_like(perturbation) if self.ignore_perturbation else perturbation + 1
        sizes = (self.perturbations + 1, self.perturbation_table, self.perturbation_rows)
        parts = [self._embed("perturbation", row, *sizes)]
        if self.dose_codes:
            # "None" has no dose of its own; the lowest one stands in.
            dose = jnp.asarray((0, *self.dose_codes), jnp.int32)[row]
            parts.append(self._embed("dose", dose, max(self.dose_codes) + 1))
        if self.cell_types:
            sizes = (self.cell_types, self.cell_type_table, self.cell_type_rows)
            parts.append(self._embed("cell_type", cell_type, *sizes))
        if self.batches:
            parts.append(self._embed("batch", batch, self.batches))
        # Some covariates may be told for every cell and the others for the set.
        cells = jnp.broadcast_shapes(*(part.shape[:-1] for part in parts))
        mixed = jnp.concatenate([jnp.broadcast_to(part, (*cells, part.shape[-1])) for part in parts], axis=-1)
        return Linear(self.genes, dtype=self.dtype, name="mix")(mixed)

    def _embed(
        self,
        name: str,
        row: jax.Array,
        rows: int,
        frozen: tuple[int, int] | None = None,
        learned: tuple[tuple[int, ...], ...] = (),
    ) -> jax.Array:
        mapped = None
        if frozen is not None:
            table = jax.lax.stop_gradient(self.param(FROZEN + name, TABLE_INIT, frozen, jnp.float32))
            vectors = jnp.take(table, row, axis=0).astype(self.dtype)
            mapped = Linear(self.width, dtype=self.dtype, name=f"map_{name}")(vectors)
            if not learned:
                return mapped
        if learned:
            rows = 1 + max(max(own, default=0) for own in learned)
        table = self.param(name, TABLE_INIT, (rows, self.width), jnp.float32)
        if learned:
            # A row of zeros behind the last one fills up what has fewer parts than others.
            most = max(len(own) for own in learned)
            padded = np.array([[*own, *[rows] * (most - len(own))] for own in learned], np.int32)
            table = jnp.concatenate([table, jnp.zeros((1, self.width), table.dtype)])
            found = jnp.take(table, jnp.asarray(padded)[row], axis=0).sum(axis=-2)
        else:
            found = jnp.take(table, row, axis=0)
        found = found.astype(self.dtype)
        return found if mapped is None else mapped + found

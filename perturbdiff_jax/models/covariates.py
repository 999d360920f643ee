"""Covariate encoder (method 5): perturbation, cell type and batch codes to one vector of gene width.

Each covariate is embedded to `width` (128), the embeddings are concatenated and mapped by one linear layer to G
values. The released width is the gene count; it is kept so that released weights load.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from perturbdiff_jax.models.layers import Linear

TABLE_INIT = nn.initializers.normal(1.0)


class CovariateEncoder(nn.Module):
    """Learned tables for the three covariates; perturbation row 0 means "none", so codes are shifted by one.

    Attributes:
      perturbations, cell_types, batches: vocabulary sizes; 0 leaves a covariate out (not the perturbation).
      width: embedding width of each covariate.
      genes: G, the output width.
    """

    perturbations: int
    cell_types: int
    batches: int
    genes: int
    width: int = 128
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, perturbation: jax.Array, cell_type: jax.Array, batch: jax.Array) -> jax.Array:
        """Maps codes [...] (perturbation -1 = none) to [..., G]."""
        tables = {
            "perturbation": (perturbation + 1, self.perturbations + 1),
            "cell_type": (cell_type, self.cell_types),
            "batch": (batch, self.batches),
        }
        parts = []
        for name, (code, size) in tables.items():
            if size:
                table = self.param(name, TABLE_INIT, (size, self.width), jnp.float32)
                parts.append(jnp.take(table, code, axis=0))
        mixed = jnp.concatenate(parts, axis=-1).astype(self.dtype)
        return Linear(self.genes, dtype=self.dtype, name="mix")(mixed)

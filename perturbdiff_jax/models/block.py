"""What the denoiser's trunk is made of: one MM-DiT block on both streams, and the head behind the last one."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from perturbdiff_jax.models.arithmetic import gated, layer_norm, modulate
from perturbdiff_jax.models.layers import CellAttention, Linear, Mlp, Modulation
from perturbdiff_jax.sharding import constrain


class Block(nn.Module):
    """One MM-DiT block on (x, u); both sublayers read the norm of the block's input, as released."""

    width: int
    heads: int
    mlp_ratio: int
    norm_of_block_input: bool
    dtype: jnp.dtype
    last: bool = False

    @nn.compact
    def __call__(self, streams: tuple[jax.Array, jax.Array], c: jax.Array):
        """Maps ((x, u) [B, S, D] each, c [B, 1 or S, D]) to the next (x, u); second value None (for scan).

        The last block returns (x, None).
        """
        x, u = streams
        parts = [
            Modulation(self.width, 6, dtype=self.dtype, name=name)(c) for name in ("modulate_x", "modulate_u")
        ]
        normed = [layer_norm(x), layer_norm(u)]
        joint = jnp.concatenate([modulate(n, p[0], p[1]) for n, p in zip(normed, parts)], axis=-1)
        # Nobody reads the control stream that leaves the last block: there it has parameters, as released, but no more.
        alive = 1 if self.last and not self.is_initializing() else 2
        attention = CellAttention(self.heads, dtype=self.dtype, used=alive * self.width, name="attention")
        changes = jnp.split(attention(joint), alive, axis=-1)
        out = []
        for stream, norm, part, change, name in zip((x, u), normed, parts, changes, ("mlp_x", "mlp_u")):
            stream = gated(stream, part[2], change)
            if not self.norm_of_block_input:
                norm = layer_norm(stream)
            mlp = Mlp(self.width, self.mlp_ratio, dtype=self.dtype, name=name)
            stream = gated(stream, part[5], mlp(modulate(norm, part[3], part[4])))
            out.append(constrain(stream, "sets", "whole", "whole"))
        return (*out, None)[:2], None


class Head(nn.Module):
    """`mod(LN(x))` -> Linear(D, G).

    The released linear is not zeroed because x0 is read through a ReLU. With an anchor it is: the untrained network
    then returns the control cells.
    """

    width: int
    genes: int
    zero: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, c: jax.Array) -> jax.Array:
        """Maps x [B, S, D] to expression before the ReLU [B, S, G], float32."""
        shift, scale = Modulation(self.width, 2, dtype=self.dtype, name="modulate")(c)
        normed = modulate(layer_norm(x), shift, scale)
        out = Linear(self.genes, zero=self.zero, dtype=self.dtype, name="out")(normed).astype(jnp.float32)
        return constrain(out, "sets", "whole", "features")

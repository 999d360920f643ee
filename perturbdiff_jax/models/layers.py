"""Layers of the denoiser, with their parameters: time, modulation, the input layer, attention over cells, the MLP.

They know arrays only: no diffusion, no data, and they draw nothing. Initialisers follow method 4: Xavier-uniform
linears with zero bias, normal(0.02) in the time MLP, zero modulation so that every block starts as the identity.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from perturbdiff_jax import sharding
from perturbdiff_jax.models.arithmetic import attention, product, rms_norm, wide
from perturbdiff_jax.sharding import constrain

XAVIER = nn.initializers.xavier_uniform()
XAVIER_EACH = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", batch_axis=(0,))
TIME_FEATURES = 256
# The released frequencies come from a float32 exponential that is one unit in the last place high at these three
# of 128 (seen in the recorded features); at t = 999 that is worth 3e-5.
ONE_UNIT_HIGH = (13, 44, 119)


def time_features(t: jax.Array) -> jax.Array:
    """Sinusoidal features [..., 256] of integer timesteps [...]: cosines first, then sines, max period 10000.

    The exponent is formed in float32, as released (in float64 features would move by up to 9e-5 at t = 999).
    """
    half = TIME_FEATURES // 2
    exponent = np.float32(-np.log(10000.0)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequency = np.exp(exponent.astype(np.float64)).astype(np.float32)
    high = list(ONE_UNIT_HIGH)
    frequency[high] = np.nextafter(frequency[high], np.float32(np.inf))
    angle = jnp.einsum("...,f->...f", t.astype(jnp.float32), frequency)
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class Dense(nn.Module):
    """`x @ kernel + bias`, the product in `dtype`; parameters are float32. `cut` is a shape for the output's features.

    The kernel is cut, not the output: to cut features that lie on several devices is to move them.
    """

    features: int
    kernel_init: nn.initializers.Initializer
    dtype: jnp.dtype
    cut: tuple[int, ...] = (-1,)
    used: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., features], [..., used] or [..., *cut]."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        kernel, bias = kernel[:, : self.used], bias[: self.used]
        bias = jnp.expand_dims(bias.reshape(self.cut), tuple(range(x.ndim - 1)))
        out = product(x.astype(self.dtype), kernel.reshape(-1, *self.cut) if len(self.cut) > 1 else kernel)
        return (wide(out) + bias).astype(self.dtype)


class Linear(nn.Module):
    """Dense layer with Xavier-uniform kernel and zero bias."""

    features: int
    zero: bool = False
    dtype: jnp.dtype = jnp.float32
    cut: tuple[int, ...] = (-1,)
    used: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., features], [..., used] or [..., *cut]."""
        kernel_init = nn.initializers.zeros_init() if self.zero else XAVIER
        return Dense(self.features, kernel_init, self.dtype, self.cut, self.used, name="linear")(x)


class Modulation(nn.Module):
    """`SiLU -> Linear(D, parts * D)` of the conditioning, zero at the start; returns `parts` arrays."""

    width: int
    parts: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, c: jax.Array) -> list[jax.Array]:
        """Maps c [B, 1 or S, D] to a list of `parts` arrays of the same shape."""
        out = Linear(self.parts * self.width, zero=True, dtype=self.dtype, name="to_parts")(nn.silu(c))
        return jnp.split(out, self.parts, axis=-1)


class CellEmbedder(nn.Module):
    """Linear(2G, D) on `[x, second]`; a missing second half (all zeros) is never multiplied.

    With `sources` > 0 every source of data has its own layer (marginal pretraining); a set picks its own, so a call
    holds B kernels at once.
    """

    width: int
    sources: int = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        second: jax.Array | None = None,
        source: jax.Array | None = None,
        filled: jax.Array | bool = True,
    ) -> jax.Array:
        """Maps x [B, S, G] (second [B, S, G], source [B] int) to tokens [B, S, D].

        A scalar `filled` that is False says, while the program runs, that `second` is all zeros.
        """
        genes = x.shape[-1]
        zeros = nn.initializers.zeros_init()
        if self.sources:
            kernel = self.param("kernel", XAVIER_EACH, (self.sources, 2 * genes, self.width), jnp.float32)
            bias = self.param("bias", zeros, (self.sources, self.width), jnp.float32)
            kernel, bias = jnp.take(kernel, source, axis=0), jnp.take(bias, source, axis=0)[:, None]
            multiply = jax.vmap(product)
        else:
            kernel = self.param("kernel", XAVIER, (2 * genes, self.width), jnp.float32)
            bias = self.param("bias", zeros, (self.width,), jnp.float32)[None, None]
            multiply = product
        out = multiply(x.astype(self.dtype), kernel[..., :genes, :])
        if second is not None:

            def product_of_second():
                return multiply(second.astype(self.dtype), kernel[..., genes:, :])

            if filled is not True:
                out = out + jax.lax.cond(filled, product_of_second, lambda: jnp.zeros_like(out))
            else:
                out = out + product_of_second()
        return (wide(out) + bias).astype(self.dtype)


class TimeEmbedder(nn.Module):
    """Sinusoid of 256 -> Linear -> SiLU -> Linear, both D wide, normal(0.02) kernels."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        """Maps integer t [B] to [B, D]."""
        init = nn.initializers.normal(0.02)
        hidden = Dense(self.width, init, self.dtype, name="hidden")(time_features(t))
        return Dense(self.width, init, self.dtype, name="out")(nn.silu(hidden))


class Mlp(nn.Module):
    """Linear -> GELU (tanh form) -> Linear."""

    width: int
    ratio: int = 4
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, S, D] to [B, S, D]."""
        hidden = Linear(self.ratio * self.width, dtype=self.dtype, name="hidden")(x)
        hidden = constrain(hidden, "sets", "whole", "features")
        return Linear(self.width, dtype=self.dtype, name="out")(nn.gelu(hidden, approximate=True))


class RmsNorm(nn.Module):
    """`rms_norm` with a trained weight, one at first."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., d] to [..., d]."""
        weight = self.param("weight", nn.initializers.ones_init(), (x.shape[-1],), jnp.float32)
        return rms_norm(x, weight)


class CellAttention(nn.Module):
    """Self-attention over the S cells of a set with RMS-normed queries and keys; no position: a set has no order."""

    heads: int
    dtype: jnp.dtype = jnp.float32
    used: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, S, E] to [B, S, E] or [B, S, used]; E is 2D here because both streams share a token."""
        width = x.shape[-1]
        heads = (3, self.heads, width // self.heads)
        # Features that lie on several devices cannot be cut into heads without moving; there the kernel is cut.
        cut = heads if sharding.pieces("features") > 1 else (-1,)
        qkv = Linear(3 * width, dtype=self.dtype, cut=cut, name="qkv")(x).reshape(*x.shape[:-1], *heads)
        qkv = constrain(qkv, "sets", "whole", "whole", "features", "whole")
        # Heads before cells, as their products want them. A split's derivative is one concatenation, where indexing
        # would pad and add three times.
        q, k, v = (part.squeeze(0) for part in jax.lax.split(qkv.transpose(2, 0, 3, 1, 4), (1, 1, 1), axis=0))
        q, k = RmsNorm(name="q_norm")(q), RmsNorm(name="k_norm")(k)
        attended = jnp.swapaxes(attention(q, k, v), 1, 2).reshape(x.shape)
        return Linear(width, dtype=self.dtype, used=self.used, name="out")(attended)

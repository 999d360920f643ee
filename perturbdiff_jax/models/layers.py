"""Layers of the denoiser: time features, modulation, the input layer, self-attention over cells, the MLP.

They know arrays only: no diffusion, no data, and they draw nothing. Initialisers follow method 4: Xavier-uniform
linears with zero bias, normal(0.02) in the time MLP, zero modulation so that every block starts as the identity.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from perturbdiff_jax.sharding import constrain

XAVIER = nn.initializers.xavier_uniform()
XAVIER_EACH = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform", batch_axis=(0,))
TIME_FEATURES = 256
NORM_EPS = 1e-6
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


def wide(x: jax.Array) -> jax.Array:
    """`x` as float32.

    What is broadcast over cells is broadcast in float32: its gradient is a sum over cells, in the same precision.
    """
    return x.astype(jnp.float32)


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """`x * (1 + scale) + shift`; shift and scale are [B, 1, D] (one per set) or [B, S, D] (one per cell)."""
    return (wide(x) * (1.0 + wide(scale)) + wide(shift)).astype(x.dtype)


def gated(x: jax.Array, gate: jax.Array, change: jax.Array) -> jax.Array:
    """`x + gate * change`; the gate is [B, 1, D] or [B, S, D]."""
    return (wide(x) + wide(gate) * wide(change)).astype(x.dtype)


def layer_norm(x: jax.Array) -> jax.Array:
    """Layer norm over features without affine parameters, statistics in float32, eps 1e-6."""
    centred = wide(x) - wide(x).mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + NORM_EPS)).astype(x.dtype)


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel` in the dtype of x: [..., I] and float32 [I, ...] to [..., ...].

    The gradient of the kernel is summed in float32, over cells and over devices; the usual rule rounds each device's
    part to the dtype of x before it is added to those of the others.
    """
    return jnp.tensordot(x, kernel.astype(x.dtype), axes=1)


def _product_forward(x, kernel):
    return product(x, kernel), (x, kernel)


def _product_backward(kept, g):
    x, kernel = kept
    cells, outputs = tuple(range(x.ndim - 1)), tuple(range(x.ndim - 1, g.ndim))
    kernel_gradient = jnp.tensordot(x, g, axes=(cells, cells), preferred_element_type=jnp.float32)
    x_gradient = jnp.tensordot(g, kernel.astype(g.dtype), axes=(outputs, tuple(range(1, kernel.ndim))))
    return x_gradient, kernel_gradient


product.defvjp(_product_forward, _product_backward)


class Dense(nn.Module):
    """`x @ kernel + bias`, the product in `dtype`; parameters are float32. `cut` is a shape for the output's features.

    The kernel is cut, not the output: to cut features that lie on several devices is to move them.
    """

    features: int
    kernel_init: nn.initializers.Initializer
    dtype: jnp.dtype
    cut: tuple[int, ...] = (-1,)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., features], or [..., *cut]."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        bias = jnp.expand_dims(bias.reshape(self.cut), tuple(range(x.ndim - 1)))
        out = product(x.astype(self.dtype), kernel.reshape(-1, *self.cut) if len(self.cut) > 1 else kernel)
        return (wide(out) + bias).astype(self.dtype)


class Linear(nn.Module):
    """Dense layer with Xavier-uniform kernel and zero bias."""

    features: int
    zero: bool = False
    dtype: jnp.dtype = jnp.float32
    cut: tuple[int, ...] = (-1,)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., features], or [..., *cut]."""
        kernel_init = nn.initializers.zeros_init() if self.zero else XAVIER
        return Dense(self.features, kernel_init, self.dtype, self.cut, name="linear")(x)


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
        self, x: jax.Array, second: jax.Array | None = None, source: jax.Array | None = None
    ) -> jax.Array:
        """Maps x [B, S, G] (second [B, S, G], source [B] int) to tokens [B, S, D]."""
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
            out = out + multiply(second.astype(self.dtype), kernel[..., genes:, :])
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
    """`x / sqrt(mean(x^2) + 1e-6) * weight` over the last axis, statistics in float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., d] to [..., d]."""
        weight = self.param("weight", nn.initializers.ones_init(), (x.shape[-1],), jnp.float32)
        scale = jax.lax.rsqrt(jnp.square(wide(x)).mean(axis=-1, keepdims=True) + NORM_EPS)
        weight = jnp.expand_dims(weight, tuple(range(x.ndim - 1)))
        return (wide(x) * scale * weight).astype(x.dtype)


class CellAttention(nn.Module):
    """Self-attention over the S cells of a set with RMS-normed queries and keys; no position: a set has no order."""

    heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, S, E] to [B, S, E]; E is 2D here because both streams share a token."""
        width = x.shape[-1]
        cut = (3, self.heads, width // self.heads)
        qkv = Linear(3 * width, dtype=self.dtype, cut=cut, name="qkv")(x)
        qkv = constrain(qkv, "sets", "whole", "whole", "features", "whole")
        # A split, whose derivative is one concatenation, where indexing would pad and add three times.
        q, k, v = (part.squeeze(2) for part in jax.lax.split(qkv, (1, 1, 1), axis=2))
        q, k = RmsNorm(name="q_norm")(q), RmsNorm(name="k_norm")(k)
        return Linear(width, dtype=self.dtype, name="out")(attention(q, k, v).reshape(x.shape))


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """`softmax(q k^T / sqrt(d)) v` of every head, [B, S, H, d] from three of that shape.

    Logits and softmax are float32 whatever the dtype; the weights enter the second product in the dtype of `v`.
    """
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) / q.shape[-1] ** 0.5
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits, axis=-1).astype(v.dtype), v)

"""What layers compute, without parameters: how wide sums are, and derivatives where they are written down.

Arrays come in the dtype of the run, float32 or bfloat16. Whatever is summed is summed in float32.
"""

import jax
import jax.numpy as jnp

NORM_EPS = 1e-6


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


@jax.custom_vjp
def layer_norm(x: jax.Array) -> jax.Array:
    """Layer norm over features without affine parameters, statistics in float32, eps 1e-6.

    The derivative is written down, here and in `rms_norm`: it keeps the input and two numbers a cell, where a derived
    one keeps every step in between.
    """
    return _layer_norm_forward(x)[0]


def _layer_norm_forward(x):
    mean = wide(x).mean(axis=-1, keepdims=True)
    centred = wide(x) - mean
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + NORM_EPS)
    return (centred * inverse).astype(x.dtype), (x, mean, inverse)


def _layer_norm_backward(kept, g):
    x, mean, inverse = kept
    g, y = wide(g), (wide(x) - mean) * inverse
    g = g - g.mean(axis=-1, keepdims=True) - y * (g * y).mean(axis=-1, keepdims=True)
    return ((g * inverse).astype(x.dtype),)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@jax.custom_vjp
def rms_norm(x: jax.Array, weight: jax.Array) -> jax.Array:
    """`x / sqrt(mean(x^2) + 1e-6) * weight` over the last axis: [..., d] and float32 [d] to [..., d]."""
    return _rms_forward(x, weight)[0]


def _rms_forward(x, weight):
    inverse = jax.lax.rsqrt(jnp.square(wide(x)).mean(axis=-1, keepdims=True) + NORM_EPS)
    return (wide(x) * inverse * _last(weight, x)).astype(x.dtype), (x, inverse, weight)


def _rms_backward(kept, g):
    x, inverse, weight = kept
    n, g = wide(x) * inverse, wide(g)
    weight_gradient = (g * n).sum(axis=tuple(range(x.ndim - 1)))
    g = g * _last(weight, x)
    return (inverse * (g - n * (g * n).mean(axis=-1, keepdims=True))).astype(x.dtype), weight_gradient


def _last(weight, x):
    return jnp.expand_dims(weight, tuple(range(x.ndim - 1)))


rms_norm.defvjp(_rms_forward, _rms_backward)


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
    outputs = tuple(range(x.ndim - 1, g.ndim))
    x_gradient = jnp.tensordot(g, kernel.astype(g.dtype), axes=(outputs, tuple(range(1, kernel.ndim))))
    # Summed over one axis: for a sum over two, compilers for CPUs write x transposed first.
    x, g = x.reshape(-1, x.shape[-1]), g.reshape(-1, *kernel.shape[1:])
    return x_gradient, jnp.tensordot(x, g, axes=((0,), (0,)), preferred_element_type=jnp.float32)


product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """`softmax(q k^T / sqrt(d)) v` of every head, [B, H, S, d] from three of that shape.

    Logits, softmax and sums are float32 whatever the dtype; the weights enter the second product in the dtype of `v`
    and are divided by their sum after it. The derivative is written down: where a derived one adds up S x S numbers,
    the output tells the same from S x d.
    """
    return _attention_forward(q, k, v)[0]


def _attention_forward(q, k, v):
    logits = _each_head(q, k, 3, 3) / q.shape[-1] ** 0.5
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    inverse = 1.0 / weights.sum(axis=-1, keepdims=True)
    out = (_each_head(weights.astype(v.dtype), v, 3, 2) * inverse).astype(v.dtype)
    return out, (q, k, v, weights, inverse, out)


def _attention_backward(kept, g):
    q, k, v, weights, inverse, out = kept
    along = (wide(g) * wide(out)).sum(axis=-1, keepdims=True) * inverse
    g = (wide(g) * inverse).astype(g.dtype)
    logits = weights * (_each_head(g, v, 3, 3) - along) / q.shape[-1] ** 0.5
    logits, weights = logits.astype(q.dtype), weights.astype(g.dtype)
    pairs = ((logits, k, 3, 2), (logits, q, 2, 2), (weights, g, 2, 2))
    return tuple(_each_head(*pair).astype(q.dtype) for pair in pairs)


def _each_head(a, b, i, j):
    """Float32 product over axis i of `a` and j of `b`, for every set and head by itself."""
    axes = (((i,), (j,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


attention.defvjp(_attention_forward, _attention_backward)

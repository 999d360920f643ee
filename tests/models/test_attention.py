"""Attention over the cells of a set: against loops in float64, and what bfloat16 must not cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturbdiff_jax.models.arithmetic import attention
from perturbdiff_jax.models.layers import CellAttention


def by_loops(q, k, v):
    """The definition, head by head and query by query, in float64."""
    out = np.zeros(v.shape)
    for b, h, i in np.ndindex(q.shape[:3]):
        logits = k[b, h] @ q[b, h, i] / np.sqrt(q.shape[-1])
        weight = np.exp(logits - logits.max())
        out[b, h, i] = weight @ v[b, h] / weight.sum()
    return out


@pytest.fixture
def heads():
    draw = np.random.default_rng(0)
    return [draw.normal(size=(2, 3, 7, 4)) for _ in range(3)]


def test_attention_is_what_loops_give(heads):
    got = attention(*(jnp.asarray(a, jnp.float32) for a in heads))
    np.testing.assert_allclose(got, by_loops(*heads), atol=1e-6)


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_derivative_is_the_one_that_would_be_derived(heads, sharpness, dtype):
    def plain(q, k, v):
        logits = jnp.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5
        return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(logits, axis=-1), v)

    given = [jnp.asarray(a * s, dtype) for a, s in zip(heads, (sharpness, sharpness, 1.0))]
    weight = jnp.asarray(np.random.default_rng(1).normal(size=given[0].shape))
    found = jax.grad(lambda *x: (attention(*x).astype(jnp.float32) * weight).sum(), (0, 1, 2))(*given)
    with jax.enable_x64(True):
        exact = [np.asarray(x, np.float64) for x in given]
        want = jax.grad(lambda *x: (plain(*x) * np.float64(weight)).sum(), (0, 1, 2))(*exact)
    digits = 1e-5 if dtype == jnp.float32 else 2e-2
    for a, b in zip(found, want):
        assert a.dtype == dtype
        np.testing.assert_allclose(np.float64(a), b, atol=digits * np.abs(b).max())


def test_bfloat16_sees_differences_of_logits_that_it_cannot_hold():
    # Logits 64 and 64.25: neighbours of 64 in bfloat16 are half a unit away.
    q = jnp.full((1, 1, 1, 4), 1.0, jnp.bfloat16)
    k = jnp.asarray([[[[32.0] * 4, [32.0, 32.0, 32.0, 32.5]]]], jnp.bfloat16)
    v = jnp.asarray([[[[0.0] * 4, [1.0] * 4]]], jnp.bfloat16)
    np.testing.assert_allclose(attention(q, k, v).astype(np.float32), 1 / (1 + np.exp(-0.25)), atol=2e-3)


def test_bfloat16_adds_up_many_cells_in_float32():
    # 1 + 1 + ... in bfloat16 stops at 256: each of 2,048 equal weights would be far from 1 / 2,048.
    cells = 2048
    q = k = v = jnp.ones((1, 1, cells, 2), jnp.bfloat16)
    np.testing.assert_allclose(attention(q[:, :, :1], k, v).astype(np.float32), 1.0, atol=4e-3)


def test_a_layer_normalises_queries_and_keys_and_keeps_heads_apart():
    draw = np.random.default_rng(1)
    x = draw.normal(size=(2, 5, 8)).astype(np.float32)
    layer = CellAttention(heads=2)
    params = layer.init(jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda a: draw.normal(size=a.shape).astype(np.float32), params)

    qkv = x @ params["qkv"]["linear"]["kernel"] + params["qkv"]["linear"]["bias"]
    q, k, v = (
        np.stack([third[..., 4 * head : 4 * head + 4] for head in range(2)], axis=1)
        for third in (qkv[..., :8], qkv[..., 8:16], qkv[..., 16:])
    )
    q, k = (
        a / np.sqrt((a**2).mean(axis=-1, keepdims=True) + 1e-6) * params[name]["weight"]
        for a, name in ((q, "q_norm"), (k, "k_norm"))
    )
    joined = np.concatenate([by_loops(q, k, v)[:, head] for head in range(2)], axis=-1)
    want = joined @ params["out"]["linear"]["kernel"] + params["out"]["linear"]["bias"]
    np.testing.assert_allclose(layer.apply({"params": params}, x), want, atol=1e-4)

"""The denoiser: shapes, symmetry, scan, conditioning, anchors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.models.block import Block
from perturbdiff_jax.models.layers import time_features
from perturbdiff_jax.models.mmdit import Denoiser, ModelOptions
from perturbdiff_jax.state import count_parameters, init_params

B, S, G = 2, 5, 11
SIZES = {"genes": G, "perturbations": 4, "cell_types": 2, "batches": 3}


def build(**options):
    base = {"width": 16, "depth": 3, "heads": 4, "covariate_width": 8}
    return Denoiser(ModelOptions(**base | options), **SIZES)


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    xt, control = (jnp.float32(rng.random((B, S, G))) for _ in range(2))
    codes = (jnp.array([1, 3]), jnp.array([0, 1]), jnp.array([2, 0]))
    return xt, jnp.array([10, 800]), control, *codes


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, *arguments):
    """`model.apply`, compiled as a whole: op by op it takes ten times as long."""
    return model.apply(params, *arguments)


@functools.cache
def randomised(model, seed=0):
    """Parameters all different from their initial zeros, so that every path matters."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(seed)))
    noise = jax.tree.map(lambda p: jnp.float32(0.1 * rng.normal(size=p.shape)), shapes)
    return {"params": jax.tree.map(jnp.add, init_params(model, jax.random.key(seed)), noise)}


def test_output(inputs):
    model = build()
    out = apply(model, randomised(model), *inputs)
    assert out.shape == (B, S, G) and out.dtype == jnp.float32
    assert (out >= 0).all() and (out > 0).any()


def test_joint_permutation_of_cells(inputs):
    model = build()
    params, order = randomised(model), jnp.array([3, 0, 4, 1, 2])
    xt, t, control, *codes = inputs
    moved = apply(model, params, xt[:, order], t, control[:, order], *codes)
    np.testing.assert_allclose(moved, apply(model, params, *inputs)[:, order], atol=1e-5)
    only_control = apply(model, params, xt, t, control[:, order], *codes)
    assert not np.allclose(only_control, moved, atol=1e-4)


@pytest.mark.parametrize("anchor", ["none", "control", "scaled_control"])
@pytest.mark.parametrize("per_cell", [False, True], ids=["codes of sets", "codes of cells"])
def test_branches_are_passes_of_their_own(inputs, anchor, per_cell):
    """Guidance: [conditional of all sets, unconditional of all sets] in one pass that reads the cells once."""
    model = build(anchor=anchor)
    params = randomised(model)
    xt, t, control, *codes = inputs
    if per_cell:
        codes = [jnp.tile(code[:, None], (1, S)) for code in codes]
    previous = jnp.roll(xt, 1, axis=1)
    drop = jnp.array([False, False, True, True])
    both = apply(model, params, xt, t, control, *codes, drop, previous)
    assert both.shape == (2 * B, S, G)
    for part, dropped in zip(jnp.split(both, 2), (False, True)):
        alone = apply(model, params, xt, t, control, *codes, jnp.full(B, dropped), previous)
        np.testing.assert_allclose(part, alone, atol=1e-6)
    assert not np.allclose(both[:B], both[B:], atol=1e-3)


def test_branches_of_sets_from_several_sources(inputs):
    options = ModelOptions(width=16, depth=2, heads=4, covariate_width=8)
    model = Denoiser(options, **SIZES, sources=2)
    params, source, drop = randomised(model), jnp.array([1, 0]), jnp.array([False, True])
    both = apply(model, params, *inputs, jnp.repeat(drop, B), None, source)
    for part, dropped in zip(jnp.split(both, 2), drop):
        alone = apply(model, params, *inputs, jnp.full(B, dropped), None, source)
        np.testing.assert_allclose(part, alone, atol=1e-6)


def test_scan_equals_a_written_out_stack(inputs):
    model = build(depth=4)
    params = randomised(model)
    stacked = params["params"]["blocks"]
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(stacked))
    rng = np.random.default_rng(1)
    x, u = (jnp.float32(rng.normal(size=(B, S, 16))) for _ in range(2))
    c = jnp.float32(rng.normal(size=(B, 1, 16)))
    block = Block(16, 4, 4, True, jnp.float32)
    one = jax.jit(lambda params, streams: block.apply({"params": params}, streams, c))
    want = (x, u)
    for i in range(3):
        want, _ = one(jax.tree.map(lambda p, i=i: p[i], stacked), want)
    scanned = jax.jit(lambda p: jax.lax.scan(lambda s, p: one(p, s), (x, u), p)[0])(stacked)
    np.testing.assert_allclose(scanned[0], want[0], atol=1e-5)
    assert not np.allclose(want[0], x, atol=1e-2)


def test_codes_per_cell_equal_codes_per_set(inputs):
    model = build()
    params = randomised(model)
    xt, t, control, *codes = inputs
    per_cell = [jnp.repeat(code[:, None], S, axis=1) for code in codes]
    np.testing.assert_allclose(
        apply(model, params, xt, t, control, *per_cell), apply(model, params, *inputs), atol=1e-5
    )


def test_every_covariate_and_the_time_matter_unless_dropped(inputs):
    model = build()
    params = randomised(model)
    xt, t, control, *codes = inputs
    base = apply(model, params, *inputs)
    for i in range(3):
        other = list(codes)
        other[i] = (codes[i] + 1) % 2
        assert not np.allclose(apply(model, params, xt, t, control, *other), base, atol=1e-5)
        dropped = [apply(model, params, xt, t, control, *c, jnp.array([True, True])) for c in (codes, other)]
        np.testing.assert_array_equal(*dropped)
    assert not np.allclose(apply(model, params, xt, t + 50, control, *codes), base, atol=1e-5)


def test_no_perturbation_has_a_row_of_its_own(inputs):
    model = build()
    params = randomised(model)
    xt, t, control, _, k, b = inputs
    outs = [apply(model, params, xt, t, control, jnp.full(B, code), k, b) for code in (-1, 0, 1, 2, 3)]
    assert all(not np.allclose(outs[0], out, atol=1e-6) for out in outs[1:])


def test_missing_self_condition_equals_zeros(inputs):
    model = build()
    params = randomised(model)
    zeros = jnp.zeros((B, S, G))
    np.testing.assert_allclose(
        apply(model, params, *inputs), apply(model, params, *inputs, False, zeros), atol=1e-6
    )
    assert not np.allclose(apply(model, params, *inputs), apply(model, params, *inputs, False, zeros + 1.0))


def test_what_was_not_fed_back_is_not_multiplied(inputs):
    model = build()
    params = randomised(model)
    second = jnp.ones((B, S, G))
    without, fed = apply(model, params, *inputs), apply(model, params, *inputs, False, second)
    for flag, want in ((False, without), (True, fed)):
        got = apply(model, params, *inputs, False, second, None, jnp.array(flag))
        np.testing.assert_allclose(got, want, atol=1e-6)
    kernel = jax.grad(lambda p: apply(model, p, *inputs, False, second, None, jnp.array(False)).sum())(params)
    kernel = kernel["params"]["embed_perturbed"]["kernel"]
    assert (kernel[G:] == 0).all() and (kernel[:G] != 0).any()


def test_the_last_block_leaves_out_the_control_stream_that_nobody_reads(inputs):
    rng = np.random.default_rng(1)
    streams = tuple(jnp.float32(rng.normal(size=(B, S, 16))) for _ in range(2))
    c = jnp.float32(rng.normal(size=(B, 1, 16)))
    model = build()
    params = {"params": randomised(model)["params"]["last_block"]}
    (whole, _), _ = Block(16, 4, 4, True, jnp.float32).apply(params, streams, c)
    (last, nothing), _ = Block(16, 4, 4, True, jnp.float32, last=True).apply(params, streams, c)
    np.testing.assert_allclose(last, whole, atol=1e-6)
    assert nothing is None
    gradient = jax.grad(lambda p: apply(model, p, *inputs).sum())(randomised(model))["params"]["last_block"]
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient["mlp_u"]))
    kernel = gradient["attention"]["out"]["linear"]["kernel"]
    assert (kernel[:, :16] != 0).any() and (kernel[:, 16:] == 0).all()


def test_untrained_anchors_return_the_control_cells_moved_by_one_projection(inputs):
    xt, t, control, *codes = inputs
    params = {
        name: {"params": init_params(build(anchor=name), jax.random.key(0))}
        for name in ("none", "control", "scaled_control")
    }
    for name in params:
        head = params[name]["params"]["head"]["out"]["linear"]
        head["kernel"] = jnp.zeros_like(head["kernel"])
    out = {name: apply(build(anchor=name), params[name], *inputs) for name in params}
    np.testing.assert_array_equal(out["none"], 0.0)
    np.testing.assert_allclose(out["control"], control)
    np.testing.assert_allclose(out["scaled_control"], control)
    spread = {
        "params": params["scaled_control"]["params"]
        | {"anchor": jax.tree.map(lambda p: p + 0.5, params["scaled_control"]["params"]["anchor"])}
    }
    zero = control.at[:, :, 0].set(0.0)
    moved = apply(build(anchor="scaled_control"), spread, xt, t, zero, *codes)
    assert not np.allclose(moved, zero) and (moved[:, :, 0] == 0).all()  # a zero stays a zero


def test_norm_order_is_an_option_that_changes_the_result(inputs):
    params = randomised(build())
    a, b = (apply(build(norm_of_block_input=flag), params, *inputs) for flag in (True, False))
    assert not np.allclose(a, b, atol=1e-4)


def test_remat_changes_nothing_but_the_graph(inputs):
    params = randomised(build())

    def grad(model):
        return jax.grad(lambda p: apply(model, p, *inputs).sum())

    plain, again = build(), build(remat="full")
    for a, b in zip(*(jax.tree.leaves(jax.jit(grad(model))(params)) for model in (plain, again))):
        np.testing.assert_allclose(a, b, atol=1e-4)
    assert "remat" in str(jax.make_jaxpr(grad(again))(params))
    assert "remat" not in str(jax.make_jaxpr(grad(plain))(params))


def test_bfloat16_stays_close_and_returns_float32(inputs):
    params = randomised(build())
    out = apply(build(dtype="bfloat16"), params, *inputs)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, apply(build(), params, *inputs), atol=0.15)


def test_full_size_has_the_published_number_of_parameters():
    """104,427,504 released at PBMC's sizes, less what is never used there (gene embedding, control head)."""
    model = Denoiser(ModelOptions(), genes=2000, perturbations=90, cell_types=18, batches=12)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    width, genes = 512, 2000
    unused = 5120 * width + width + 2 * width  # gene-embedding linear and its norm
    control_head = width * 2 * width + 2 * width + width * genes + genes
    assert count_parameters(shapes) == 104_427_504 - unused - control_head


def test_time_features():
    t = jnp.array([0, 1, 999])
    got = np.asarray(time_features(t))
    frequency = 10000.0 ** (-np.arange(128) / 128)
    angle = np.asarray(t)[:, None] * frequency
    np.testing.assert_allclose(got, np.concatenate([np.cos(angle), np.sin(angle)], 1), atol=2e-4)


def test_recorded_time_features(shared):
    recorded = np.load(shared / "golden/common/timestep_embedding.npz")
    np.testing.assert_allclose(time_features(jnp.asarray(recorded["t"])), recorded["emb"][:, 0], atol=4e-5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"heads": 5}, "model.heads=5"),
        ({"anchor": "mean"}, "none, control, scaled_control"),
        ({"dtype": "float16"}, "float32, bfloat16"),
        ({"depth": 0}, "at least 1"),
    ],
)
def test_wrong_options(given, said):
    with pytest.raises(RequestError, match=said):
        ModelOptions(**{"width": 16, "heads": 4} | given)

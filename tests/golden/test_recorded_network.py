"""One pass of the network, from its outputs down to the inside of a block.

The recorded control output (`x_control`) has no counterpart: it comes from a head that the released code computes and
never uses (released/names.py, UNUSED). Ours does not exist.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded import FORWARD, agree, agree_in_scale, watching

from perturbdiff_jax.models.block import Block
from perturbdiff_jax.released.names import UNUSED

BLOCK = 2e-6  # of the largest value, up to 24 in the streams
PASSES = {"forward_cond": False, "forward_uncond": True}
INSIDE = tuple((name,) for name in ("covariates", "time", "condition", "embed_perturbed", "embed_control"))
BORDERS = (*INSIDE, ("last_block",), ("head",))
PARTS = (("modulate_x",), ("attention",), ("attention", "q_norm"), ("mlp_x",))


def arguments(case, drop):
    given = case.inputs
    drop = jnp.full(case.network.sets, drop)
    return given["x_t"], given["t"], given["control"], drop, given["x0_selfcond"]


@pytest.fixture(scope="module", params=PASSES)
def passed(case, request):
    """(name, recording, what went through the borders of the network: path -> (arguments, result))."""

    def run(*given):
        with watching(*BORDERS) as seen:
            case.network.denoise(*given)
        return {path: (args, out) for path, (args, out) in seen.items()}

    return request.param, case.load(request.param), jax.jit(run)(*arguments(case, PASSES[request.param]))


def block_params(case, number):
    params = case.network.params
    if number == case.network.model.options.depth - 1:
        return params["last_block"]
    return jax.tree.map(lambda leaf: leaf[number], params["blocks"])


def test_only_the_unused_head_is_left_out(case):
    assert case.unused == set(UNUSED)
    assert {n for n in case.meta["params_without_gradient"]["cond_sc1"] if n in UNUSED} == set(UNUSED)


@pytest.mark.parametrize("name", PASSES)
def test_output(case, name):
    ours = case.network.one_pass(*arguments(case, PASSES[name]))
    kind = {"forward_cond": "conditional", "forward_uncond": "unconditional"}[name]
    # The released float32 is itself 2.6e-6 (case1) and 0.8e-6 (case3) from its float64 (tolerance.json).
    agree(f"output, {kind}", case.name, ours, case.load(name)["x"], atol=FORWARD)


def test_before_the_blocks(case, passed):
    name, recorded, seen = passed
    shape = recorded["embed_pert"].shape
    vector = jnp.broadcast_to(case.network.params["gene_vector"], shape)
    agree("learned gene vector", case.name, vector, recorded["gene_emb"], atol=0)
    agree("time embedding", case.name, seen["time",][1][:, None], recorded["t_emb"], atol=FORWARD)
    if name == "forward_cond":
        covariates = case.load("cov_encoder")["cov_emb"]
        agree("covariate encoder", case.name, seen["covariates",][1], covariates, atol=FORWARD)
        agree("covariate embedding", case.name, seen["condition",][1], recorded["class_emb"], atol=FORWARD)
    else:
        null = case.network.params["null_condition"]
        null = jnp.broadcast_to(null, recorded["class_emb"].shape)
        agree("null embedding", case.name, null, recorded["class_emb"], atol=0)
    for ours, theirs in (("embed_perturbed", "embed_pert"), ("embed_control", "embed_control")):
        agree("input of the first block", case.name, seen[ours,][1] + vector, recorded[theirs], atol=FORWARD)


def test_through_the_blocks(case, passed):
    _, recorded, seen = passed
    (streams, c), (out, _) = seen["last_block",]
    depth = case.network.model.options.depth
    # Ours is one row per cell or, where codes are per set, one row; dropped covariates make all rows one.
    agree("conditioning", case.name, c, jnp.broadcast_to(recorded["c"], c.shape), atol=FORWARD)
    assert out[1] is None  # read by nobody
    for number, stream, kind in (
        (depth - 2, streams[0], "pert"),
        (depth - 2, streams[1], "control"),
        (depth - 1, out[0], "pert"),
    ):
        theirs = recorded[f"block{number}_{kind}"]
        agree_in_scale(f"output of a block, {kind}", case.name, stream, theirs, rtol=BLOCK)
    head = seen["head",][1]
    agree("head before ReLU", case.name, head, recorded["final_pre_relu"], atol=FORWARD)


def test_inside_each_block(case, passed):
    """Every block by itself, on the recorded input of that block."""
    _, recorded, _ = passed
    options = case.network.model.options
    block = Block(options.width, options.heads, options.mlp_ratio, True, jnp.float32)

    @jax.jit
    def run(params, streams, c):
        with watching(*PARTS) as seen:
            out, _ = block.apply({"params": params}, streams, c)
        return out, dict(seen)

    streams = [recorded[f"embed_{kind}"] for kind in ("pert", "control")]
    for number in range(options.depth):
        streams, seen = run(block_params(case, number), streams, recorded["c"])
        for stream, kind in zip(streams, ("pert", "control")):
            theirs = recorded[f"block{number}_{kind}"]
            agree_in_scale(f"output of a block, {kind}", case.name, stream, theirs, rtol=BLOCK)
        if number:
            continue
        (attention_in,), attention_out = seen["attention",]
        (mlp_in,), mlp_out = seen["mlp_x",]
        (q_before,), q_after = seen["attention", "q_norm"]
        modulation = jnp.concatenate(seen["modulate_x",][1], axis=-1)
        for quantity, ours, theirs in (
            ("modulation of the first block", modulation, "adaLN"),
            ("attention, input", attention_in, "attn_in"),
            ("attention, output", attention_out, "attn_out"),
            ("queries before their norm", q_before, "q_before_norm"),
            ("queries after their norm", q_after, "q_after_norm"),
            ("MLP, input", mlp_in, "mlp_in"),
            ("MLP, output", mlp_out, "mlp_out"),
        ):
            agree(quantity, case.name, ours, recorded[f"block0_{theirs}"], atol=FORWARD)


def test_codes_per_set_are_codes_per_cell(case):
    """One modulation for a set, where its cells share their covariates, changes nothing."""
    network = case.network
    same = np.array([(np.ptp(code, axis=1) == 0) for code in network.codes]).all(axis=0)
    first = tuple(code[:, 0] for code in network.codes)
    narrow = type(network)(**{**vars_of(network), "codes": first})
    given = arguments(case, False)
    ours, wide = narrow.one_pass(*given), case.load("forward_cond")["x"]
    agree("output, one code per set", case.name, np.asarray(ours)[same], wide[same], atol=FORWARD)


def vars_of(network):
    return {name: getattr(network, name) for name in network.__dataclass_fields__}

"""The whole network, its losses and its walks against arrays recorded from the released code (golden/case1).

The recorded weights are put in place by name; what is never used there (gene-embedding linear, control head) has no
place here.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturbdiff_jax.diffusion.objective import Draws, ObjectiveOptions, set_losses
from perturbdiff_jax.diffusion.samplers import SamplerOptions, sample
from perturbdiff_jax.diffusion.schedule import Schedule
from perturbdiff_jax.models.mmdit import Denoiser, ModelOptions
from perturbdiff_jax.step import bind

DEPTH, B = 3, 3
SCHEDULE = Schedule()


def placed(recorded) -> dict:
    """Recorded arrays (PyTorch names, kernels transposed) as this network's parameters."""

    def linear(name):
        return {"kernel": recorded[f"{name}.weight"].T, "bias": recorded[f"{name}.bias"]}

    def inside(name):
        return {"linear": linear(name)}

    def block(i):
        name = f"model.blocks.{i}.block"
        attention = {
            part: inside(f"{name}.attn.{theirs}") for part, theirs in (("qkv", "qkv"), ("out", "proj"))
        }
        attention |= {
            norm: {"weight": recorded[f"{name}.attn.{norm}.weight"]} for norm in ("q_norm", "k_norm")
        }
        found = {"attention": attention}
        for stream, prefix in (("x", ""), ("u", "control_")):
            found[f"modulate_{stream}"] = {"to_parts": inside(f"{name}.{prefix}adaLN_modulation.1")}
            mlp = f"{name}.{prefix}mlp"
            found[f"mlp_{stream}"] = {"hidden": inside(f"{mlp}.fc1"), "out": inside(f"{mlp}.fc2")}
        return found

    blocks = [block(i) for i in range(DEPTH)]
    encoder = {
        ours: recorded[f"cov_encoder.{theirs}_encoder.weight"]
        for ours, theirs in (("perturbation", "pert"), ("cell_type", "celltype"), ("batch", "batch"))
    }
    return {
        "gene_vector": recorded["model.gene_embedding.null_emb.weight"][0],
        "null_condition": recorded["model.class_embedding.null_emb.weight"][0],
        "embed_perturbed": linear("model.x_embedder"),
        "embed_control": linear("model.x_control_embedder"),
        "time": {"hidden": linear("model.t_embedder.mlp.0"), "out": linear("model.t_embedder.mlp.2")},
        "condition": inside("model.class_embedding.emb"),
        "covariates": encoder | {"mix": inside("cov_encoder.transform")},
        "head": {
            "modulate": {"to_parts": inside("model.final_layer.adaLN_modulation.1")},
            "out": inside("model.final_layer.linear"),
        },
        "blocks": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks[:-1]),
        "last_block": blocks[-1],
    }


@pytest.fixture(scope="module")
def case(request):
    shared = request.config.rootpath.parent / "shared"
    if not shared.is_dir():
        pytest.skip("needs ../shared (recorded arrays), which is not beside this checkout")
    folder = shared / "golden" / "case1"
    recorded, inputs = np.load(folder / "params.npz"), np.load(folder / "inputs.npz")
    sizes = {
        name: recorded[f"cov_encoder.{theirs}_encoder.weight"].shape[0] - spare
        for name, theirs, spare in (
            ("perturbations", "pert", 1),
            ("cell_types", "celltype", 0),
            ("batches", "batch", 0),
        )
    }
    options = ModelOptions(width=64, depth=DEPTH, heads=4, covariate_width=16)
    model = Denoiser(options, genes=inputs["x_t"].shape[-1], **sizes)
    params = jax.tree.map(jnp.asarray, placed(recorded))
    codes = [jnp.asarray(inputs[f"cov_{name}"]) for name in ("pert", "celltype", "batch")]
    return types.SimpleNamespace(
        load=lambda name: np.load(folder / f"{name}.npz"),
        inputs={name: jnp.asarray(inputs[name]) for name in inputs if inputs[name].dtype.kind in "fi"},
        denoise=bind(model, params, *codes),
    )


@pytest.mark.parametrize(("name", "drop"), [("forward_cond", False), ("forward_uncond", True)])
def test_one_pass(case, name, drop):
    given = case.inputs
    arguments = (given["x_t"], given["t"], given["control"], jnp.full(B, drop), given["x0_selfcond"])
    np.testing.assert_allclose(jax.jit(case.denoise)(*arguments), case.load(name)["x"], atol=2e-5)


@pytest.mark.parametrize("variant", ["cond_sc0", "cond_sc1", "uncond_sc1", "dropcontrol_cond_sc0"])
def test_both_loss_terms(case, variant):
    recorded = case.load(f"train_{variant}")
    draws = Draws(
        t=jnp.asarray(recorded["t"]),
        eps=jnp.asarray(recorded["noise"], jnp.float32),
        drop=jnp.full(B, bool(recorded["drop_cond"])),
        drop_control=jnp.zeros(B, bool),  # p_drop_control is 0 in this case, whatever the flag
        self_condition=jnp.full(B, bool(recorded["self_cond"])),
    )
    x0, control = case.inputs["x_start"], case.inputs["control"]
    loss = jax.jit(
        lambda draws: set_losses(
            case.denoise,
            x0,
            control,
            jnp.ones(x0.shape[:2]),
            draws,
            schedule=SCHEDULE,
            options=ObjectiveOptions(),
        )
    )
    mse, energy = loss(draws)
    np.testing.assert_allclose(mse, recorded["mse1"], atol=2e-5)
    # The float32 diagonal of the released Gram expansion alone is worth up to 2e-4.
    np.testing.assert_allclose(energy, recorded["mmd1_per_set"], atol=2e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ddim_loop_g0_T10", SamplerOptions(start=10, steps=10)),
        ("ddim_loop_g1_T10", SamplerOptions(start=10, steps=10, guidance=1.0)),
        ("ddpm_loop_g1_T4", SamplerOptions(name="ddpm", start=4, steps=4, guidance=1.0)),
    ],
)
def test_walks(case, name, options):
    recorded = case.load(name)
    noise = jnp.asarray(recorded["step_noise"]) if "step_noise" in recorded else None
    walk = jax.jit(
        lambda start: sample(
            case.denoise,
            case.inputs["control"],
            schedule=SCHEDULE,
            options=options,
            init_noise=start,
            step_noise=noise,
            keys=jax.random.split(jax.random.key(0), B),
        )
    )
    np.testing.assert_allclose(walk(jnp.asarray(recorded["init_noise"])), recorded["final"], atol=5e-5)

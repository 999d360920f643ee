"""Every kind of released network, from recordings that travel with this repository (README.md beside this file).

Weights come from a formula under the released names and go through the converter's own code: what the file says
about itself (hyper_parameters.py), which network that is (network.py), where each tensor goes (names.py).
"""

import functools
import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded import ENERGY, FORWARD, SCHEDULE, WALK, Network, agree, sources_of
from seeded_weights import fingerprint, seeded

from perturbdiff_jax.diffusion import process
from perturbdiff_jax.diffusion.samplers import SamplerOptions, ddim_step, ddpm_step, reverse_moments
from perturbdiff_jax.kernels.energy_distance import energy_distance
from perturbdiff_jax.models.mmdit import Denoiser, ModelOptions
from perturbdiff_jax.released.hyper_parameters import read_facts
from perturbdiff_jax.released.names import UNUSED, from_released, to_released
from perturbdiff_jax.released.network import read_network

HERE = pathlib.Path(__file__).resolve().parent
KINDS = ("case1", "esm2", "genept", "chemberta", "by_name", "finetuned_2k")


def build(facts, found) -> Denoiser:
    """The Denoiser of a described network."""
    layout = found.layout
    options = ModelOptions(
        width=found.width,
        depth=layout.depth,
        heads=found.heads,
        mlp_ratio=found.mlp_ratio,
        covariate_width=found.covariate_width,
        use_perturbation="no" if found.ignore_perturbation else "yes",
    )
    tables = {
        f"{role}_table": tuple(found.tables[role]["shape"]) if role in found.tables else None
        for role in ("perturbation", "cell_type")
    }
    return Denoiser(
        options,
        genes=found.genes,
        perturbations=len(facts.perturbations),
        cell_types=len(facts.cell_types),
        batches=len(facts.batches),
        sources=len(layout.sources),
        covariate_genes=found.covariate_genes,
        dose_codes=tuple(found.doses["codes"]) if found.doses else (),
        **tables,
    )


@functools.cache
def opened(kind):
    """The network of a recording, the recording, and its state_dict."""
    with np.load(HERE / f"released_{kind}.npz") as file:
        recorded = dict(file)
    spec = json.loads(str(recorded["spec"]))
    tensors = seeded(spec["state_dict"])
    assert fingerprint(tensors) == spec["weights_fingerprint"]
    tensors |= {name: recorded[name] for name in spec["stored"]}
    facts = read_facts(spec["hyper_parameters"], kind)
    found = read_network(tensors, facts, kind)
    params, unused = from_released(tensors, found.layout, where=kind)
    assert set(unused) == set(UNUSED)
    network = Network(
        name=f"seeded {kind}",
        model=build(facts, found),
        params=jax.tree.map(jnp.asarray, params),
        layout=found.layout,
        codes=tuple(
            jnp.asarray(recorded[f"cov_{name}"], jnp.int32) for name in ("pert", "celltype", "batch")
        ),
        source=sources_of(found.layout, recorded["ds_name"]),
        drop_control=facts.drop_control,
    )
    return types.SimpleNamespace(network=network, recorded=recorded, tensors=tensors)


@pytest.fixture(params=KINDS)
def kind(request):
    return opened(request.param)


def losses_of(kind):
    return sorted({name.split("_mse1")[0] for name in kind.recorded if name.endswith("_mse1")})


def test_names_go_both_ways(kind):
    back = to_released(kind.network.params, kind.network.layout)
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, kind.tensors[name], err_msg=name)
    assert set(kind.tensors) - set(back) <= {*UNUSED, "cov_encoder.dose_indices"}


def test_output(kind):
    given, network = kind.recorded, kind.network
    for name, drop in (("cond", False), ("uncond", True)):
        drop = jnp.full(network.sets, drop)
        ours = network.one_pass(given["x_t"], given["t"], given["control"], drop, given["x0_selfcond"])
        what = {"cond": "output, conditional", "uncond": "output, unconditional"}[name]
        agree(what, network.name, ours, given[f"forward_{name}_x"], atol=FORWARD)


def test_losses(kind):
    given, network = kind.recorded, kind.network
    assert losses_of(kind)
    for variant in losses_of(kind):
        coins = {name: given[f"{variant}_{name}"] for name in ("self_cond", "drop_control")}
        draws = network.draws(
            given["train_t"], given["train_noise"], drop=given[f"{variant}_drop_cond"], **coins
        )
        mse, energy, _ = network.losses(given["x_start"], given["control"], draws)
        agree("loss: squared error of each set", network.name, mse, given[f"{variant}_mse1"], atol=FORWARD)
        agree("loss: energy of each set", network.name, energy, given[f"{variant}_mmd1_per_set"], atol=ENERGY)


def test_walk(kind):
    given, network = kind.recorded, kind.network
    options = SamplerOptions(start=10, steps=10, guidance=1.0)
    ours = network.walk(options, given["control"], given["init_noise"])
    agree("DDIM walk, guidance 1", network.name, ours, given["ddim_final"], atol=WALK)


def test_every_step_of_the_walk():
    kind = opened("case1")
    given, network = kind.recorded, kind.network
    x, x0 = jnp.asarray(given["init_noise"]), jnp.zeros_like(given["init_noise"])
    for i, now in enumerate(range(9, -1, -1)):
        t = jnp.full(network.sets, now)
        x0 = network.moments(1.0)(x, t, given["control"], x0)[-1]
        x = ddim_step(x, x0, t, t - 1, jnp.zeros_like(x), schedule=SCHEDULE, eta=0.0)
        label = "DDIM walk, guidance 1"
        agree(f"{label}: x0 of every step", network.name, x0, given["ddim_pred_xstart"][i], atol=WALK)
        agree(f"{label}: sample of every step", network.name, x, given["ddim_samples"][i], atol=WALK)


def test_ddpm_walk():
    kind = opened("case1")
    given, network = kind.recorded, kind.network
    options = SamplerOptions(name="ddpm", start=4, steps=4, guidance=1.0)
    ours = network.walk(options, given["control"], given["init_noise"], jnp.asarray(given["ddpm_step_noise"]))
    agree("DDPM walk, guidance 1", network.name, ours, given["ddpm_final"], atol=WALK)


@pytest.fixture(scope="module")
def extract():
    """What was recorded of trained weights and needs none: {name: array}."""
    with np.load(HERE / "case1_extract.npz") as file:
        return {name: jnp.asarray(file[name]) for name in file.files}


def part(extract, prefix):
    return {name.removeprefix(prefix): a for name, a in extract.items() if name.startswith(prefix)}


@pytest.mark.parametrize("variant", ["cond_sc0", "cond_sc1", "uncond_sc1", "dropcontrol_cond_sc0"])
def test_losses_of_recorded_predictions(extract, variant):
    given, x0 = part(extract, f"train_{variant}_"), extract["x_start"]
    squared = jnp.square(given["pred_x"] - x0).mean(axis=(1, 2))
    agree("squared error of recorded predictions", "extract", squared, given["mse1"], atol=1e-6)
    energy = energy_distance(x0, given["pred_x"])
    agree("energy of recorded predictions", "extract", energy, given["mmd1_per_set"], atol=ENERGY)


def test_walk_of_recorded_estimates(extract):
    """Each recorded sample follows from the one before it and the recorded x0."""
    given = part(extract, "ddim_loop_g1_T10_")
    x = given["init_noise"]
    for i, now in enumerate(given["steps_t"]):
        t = jnp.full(len(x), now)
        x = ddim_step(x, given["pred_xstart"][i], t, t - 1, jnp.zeros_like(x), schedule=SCHEDULE, eta=0.0)
        agree("DDIM walk of recorded estimates", "extract", x, given["samples"][i], atol=1e-5)
    agree("DDIM walk of recorded estimates", "extract", x, given["final"], atol=1e-5)


def test_forward_process_and_single_steps(extract):
    given, x0 = part(extract, "q_sample_"), extract["x_start"]
    t, xt, noise = given["t"], given["post_x_t"], given["noise32"]
    agree(
        "noised cells",
        "extract",
        process.q_sample(SCHEDULE, x0, t, noise),
        given["x_t_from_noise32"],
        atol=1e-6,
    )
    mean = process.posterior(SCHEDULE, x0, xt, t)[0]
    agree("posterior mean", "extract", mean, given["post_mean"], atol=1e-6)
    agree("marginal mean", "extract", process.marginal(SCHEDULE, x0, t)[0], given["q_mean"], atol=1e-6)
    back = process.x0_from_eps(SCHEDULE, xt, t, noise)
    agree("x0 of eps", "extract", back, given["xstart_from_eps"], atol=1e-6)
    given = part(extract, "single_steps_")
    x, t, noise = (given[name] for name in ("x", "t", "step_noise"))
    estimate = given["p_sample_g1_pred_xstart"]
    ours = ddpm_step(x, estimate, t, noise, schedule=SCHEDULE, noise_weight=0.5)
    agree("DDPM step", "extract", ours, given["p_sample_g1_nw05"], atol=FORWARD)
    mean, _, log_variance = reverse_moments(SCHEDULE, x, estimate, t)
    np.testing.assert_allclose(ours, mean + jnp.exp(0.5 * log_variance) * noise, atol=1e-6)
    for name, eta in (("ddim_g1_eta07", 0.7), ("ddim_g0_eta0", 0.0)):
        ours = ddim_step(x, given[f"{name}_pred_xstart"], t, t - 1, noise, schedule=SCHEDULE, eta=eta)
        agree(f"DDIM step, eta {eta:g}", "extract", ours, given[name], atol=FORWARD)

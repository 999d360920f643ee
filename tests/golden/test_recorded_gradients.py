"""The gradient of the training loss with respect to every parameter."""

import jax
import numpy as np
import pytest
from recorded import ENERGY, agree, agree_in_norm

from perturbdiff_jax.models.covariates import FROZEN
from perturbdiff_jax.optim import decayed, present_parameters
from perturbdiff_jax.released.names import UNUSED, entries, to_released

FILES = {"cond_sc1": False, "uncond_sc0": True}


def by_released_name(network, tree):
    """Values of a tree of scalars or of bools that broadcast, under the released names."""
    found = {}
    for entry in entries(network.layout):
        value = tree
        for key in entry.path:
            value = value[key]
        value = np.asarray(value)
        found[entry.name] = value.reshape(-1)[entry.at] if value.ndim and entry.at is not None else value
    return found


@pytest.fixture(scope="module", params=FILES)
def found(case, request):
    """(name, recording, draws, gradients by released name, metrics)."""
    name, network = request.param, case.network
    if name == "uncond_sc0" and case.name == "case1":
        pytest.skip("case1 was recorded with covariates only")
    # The gradient files share t and noise with the training losses.
    fixed = case.load("train_cond_sc1")
    drop, self_cond = FILES[name], name.endswith("sc1")
    draws = network.draws(fixed["t"], fixed["noise"], drop=drop, self_cond=self_cond, drop_control=False)
    batch = network.batch(case.inputs["x_start"], case.inputs["control"])
    gradients, metrics = network.gradient(network.params, batch, draws)
    return name, case.load(f"grads_{name}"), draws, to_released(gradients, network.layout), metrics


def test_every_gradient(case, found):
    name, recorded, _, ours, _ = found
    without = set(case.meta["params_without_gradient"][name])
    theirs = {key for key in recorded if not key.startswith("__")}
    assert theirs <= set(ours) and not theirs & without
    # Nothing is forgotten: the file keeps all gradients, or (unconditional, to save room) one block's modulation.
    left_out = set(ours) - theirs - without
    if name == "cond_sc1":
        assert not left_out and len(theirs) == len(ours) - len(without - set(UNUSED))
    else:
        assert all(key.startswith("model.blocks.") for key in left_out) and len(theirs) == 28
    assert len(ours) + len(UNUSED) == len(case.meta["state_dict_keys"])
    for key in sorted(theirs):
        agree_in_norm("gradient of a parameter", case.name, ours[key], recorded[key], rtol=1e-4, name=key)
    for key in without - set(UNUSED):  # None in PyTorch
        assert not ours[key].any(), f"{key}: {np.abs(ours[key]).max()}"


def test_norm_and_losses(case, found):
    _, recorded, _, ours, metrics = found
    norm = np.sqrt(sum(np.square(value, dtype=np.float64).sum() for value in ours.values()))
    agree_in_norm("global norm of the gradient", case.name, norm, recorded["__grad_norm__"], rtol=1e-5)
    # What the released code logs as the loss of perturbed cells is the total: it adds the energy in place.
    for theirs, name in (("__loss__", "total"), ("__logged_loss1__", "total"), ("__mmd1__", "energy")):
        agree(f"loss: {name}", case.name, metrics[f"loss/{name}"], recorded[theirs], atol=ENERGY)
    agree("loss: total", case.name, metrics["loss/total"], recorded["__loss_vec__"].mean(), atol=ENERGY)


def test_absent_parameters_are_those_without_a_gradient(case, found):
    name, _, draws, _, _ = found
    present = present_parameters(case.network.params, draws.drop, case.network.source)
    absent = {key for key, here in by_released_name(case.network, present).items() if not here}
    assert absent == set(case.meta["params_without_gradient"][name]) - set(UNUSED)


def test_decay_acts_on_the_released_group(case):
    groups = case.meta["optimizer_groups"]
    ours = by_released_name(case.network, decayed(case.network.params))
    frozen = {
        key
        for key, path in ((e.name, e.path) for e in entries(case.network.layout))
        if path[-1].startswith(FROZEN)
    }
    assert frozen == set(groups["frozen"])
    assert {key for key, decays in ours.items() if decays} - frozen == set(groups["decay_wd0.01"]) - set(
        UNUSED
    )
    assert {key for key, decays in ours.items() if not decays} == set(groups["no_decay"]) - set(UNUSED)
    assert jax.tree.structure(case.network.params) == jax.tree.structure(decayed(case.network.params))

"""Arrays in, arrays out: shapes, conditions, seeds, and refusals of what is not the model's."""

import dataclasses

import numpy as np
import pytest

import perturbdiff_jax
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.prediction.controls import from_store
from perturbdiff_jax.prediction.design import split_design

B, S, G = 3, 5, 40
CODES = {"perturbation": np.array([1, 2, 3]), "cell_type": np.array([0, 1, 0]), "batch": np.array([0, 1, 1])}


@pytest.fixture(scope="module")
def model(finished):
    return perturbdiff_jax.load(finished.workdir)


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    xt, control = (rng.random((B, S, G)).astype(np.float32) for _ in range(2))
    return xt, np.array([0, 5, 999]), control


def test_denoise_is_one_pass(model, arrays):
    out = model.denoise(*arrays, **CODES)
    assert out.shape == (B, S, G) and out.dtype == np.float32 and (out >= 0).all()
    per_cell = {name: np.repeat(code[:, None], S, axis=1) for name, code in CODES.items()}
    np.testing.assert_allclose(model.denoise(*arrays, **per_cell), out, atol=1e-5)
    fed = model.denoise(*arrays, **CODES, self_condition=np.ones((B, S, G)))
    zeros = model.denoise(*arrays, **CODES, self_condition=np.zeros((B, S, G)))
    np.testing.assert_allclose(zeros, out, atol=1e-6)
    assert not np.array_equal(fed, out)


def test_without_covariates_it_is_unconditional(model, arrays):
    out = model.denoise(*arrays)
    assert not np.array_equal(out, model.denoise(*arrays, **CODES))
    np.testing.assert_array_equal(out, model.denoise(*arrays, perturbation=None, source=None))
    control = arrays[2]
    free = model.sample(control, start=4)
    np.testing.assert_allclose(free, model.sample(control, start=4, guidance=0.0), atol=1e-4)
    assert not np.allclose(free, model.sample(control, **CODES, start=4))


def test_sample_walks(model, arrays):
    noise, _, control = arrays
    out = model.sample(control, **CODES, start=4)
    assert out.shape == (B, S, G) and out.dtype == np.float32 and (out >= 0).all()
    np.testing.assert_array_equal(out, model.sample(control, **CODES, start=4))
    assert not np.array_equal(out, model.sample(control, **CODES, start=4, seed=1))
    given = [model.sample(control, **CODES, start=4, init_noise=noise, seed=seed) for seed in (0, 1)]
    np.testing.assert_array_equal(*given)  # DDIM with eta 0 draws nothing but its start
    noisy = [model.sample(control, **CODES, start=4, init_noise=noise, eta=1.0, seed=seed) for seed in (0, 1)]
    assert not np.array_equal(*noisy)
    for sampler in ("ddpm", "fast"):
        assert model.sample(control, **CODES, start=4, sampler=sampler).shape == (B, S, G)
    assert not np.array_equal(out, model.sample(control, **CODES, start=4, guidance=0.0))


def test_one_step_is_one_pass(model, arrays):
    noise, _, control = arrays
    cutoff = model.options.sampler.cutoff  # the bundle's, unless another is given
    x0 = model.sample(control, **CODES, init_noise=noise, start=1, guidance=0.0)
    want = model.denoise(noise, np.zeros(B, int), control, **CODES)
    np.testing.assert_allclose(x0, np.where(want < cutoff, 0, want), atol=1e-6)
    x0 = model.sample(control, init_noise=noise, start=1, guidance=0.0)
    free = model.denoise(noise, np.zeros(B, int), control)
    np.testing.assert_allclose(x0, np.where(free < cutoff, 0, free), atol=1e-6)
    assert np.abs(free - want).max() > 1e-4
    kept = model.sample(control, init_noise=noise, start=1, guidance=0.0, cutoff=1e-4)
    np.testing.assert_allclose(kept, np.where(free < 1e-4, 0, free), atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"perturbation": np.array([1, 2, 7])}, "perturbation: codes from 1 to 7; allowed are -1 to 6"),
        ({"cell_type": np.array([0, -1, 0])}, "cell_type: codes from -1 to 0; allowed are 0 to 1"),
        ({"batch": np.array([0.0, 1.0, 1.0])}, "batch: float64 codes of shape"),
        ({"batch": np.array([0, 1])}, r"batch: int64 codes of shape \(2,\)"),
        ({"batch": None}, "batch is None: give all of perturbation, cell_type and batch, or none"),
        ({"source": np.ones(B, int)}, "this bundle knows 0 sources"),
        ({"self_condition": np.zeros((B, S, G - 1))}, r"self_condition has shape \(3, 5, 39\)"),
        ({"self_condition": np.zeros((B, S + 1, G))}, "they must be the same"),
    ],
)
def test_what_is_not_the_models_is_refused(model, arrays, changes, message):
    with pytest.raises(RequestError, match=message):
        model.denoise(*arrays, **CODES | changes)


def test_codes_per_cell_and_per_set_mix(model, arrays):
    batch = np.repeat(CODES["batch"][:, None], S, axis=1)
    mixed = model.denoise(*arrays, **CODES | {"batch": batch})
    np.testing.assert_allclose(mixed, model.denoise(*arrays, **CODES), atol=1e-6)
    batch[0, 0] = 1 - batch[0, 0]
    other = model.denoise(*arrays, **CODES | {"batch": batch})
    assert np.abs(other - mixed)[0].max() > 1e-6


def test_wrong_times_walks_and_seeds_are_refused(model, arrays):
    xt, _, control = arrays
    for t in (np.array([0, 1]), np.array([0, 1, 1000]), np.array([-1, 1, 2])):
        with pytest.raises(RequestError, match="t: needed are 3 timesteps from 0 to 999"):
            model.denoise(xt, t, control, **CODES)
    for given, message in (
        ({"sampler": "dpm"}, "allowed are ddim, ddpm, fast"),
        ({"start": 2000}, "the schedule has 1000 timesteps"),
        ({"start": 4, "steps": 5}, "between 1 and start=4"),
        ({"seed": -1}, "seed -1"),
        ({"init_noise": np.zeros((B, S, 3))}, "init_noise has shape"),
    ):
        with pytest.raises(RequestError, match=message):
            model.sample(control, **CODES, **given)


def without_self_conditioning(model):
    objective = dataclasses.replace(model.options.objective, self_condition=0.0)
    return dataclasses.replace(model, options=dataclasses.replace(model.options, objective=objective))


def test_what_was_never_fed_back_in_training_is_not_in_walks(model, arrays, finished):
    """The half of the input layer that reads estimates is as it was drawn: whatever it holds, walks are the same."""
    kernel = np.array(model.params["embed_perturbed"]["kernel"])
    kernel[G:] += 1.0
    other = {**model.params, "embed_perturbed": {**model.params["embed_perturbed"], "kernel": kernel}}
    spoilt = dataclasses.replace(model, params=other)
    store = Store.open(finished.workdir / "store")
    design, controls = split_design(store, "test").iloc[:1], from_store(store)

    def walks(model):
        quiet = {"echo": lambda _: None, "cells_per_condition": 8}
        cells = model.predict_design(design.drop(columns="cells"), controls, **quiet).X
        return model.sample(arrays[2], **CODES, start=4), cells.toarray()

    assert model.feeds_back and not without_self_conditioning(model).feeds_back
    for one, two in zip(walks(without_self_conditioning(model)), walks(without_self_conditioning(spoilt))):
        np.testing.assert_array_equal(one, two)
    for one, two in zip(walks(model), walks(spoilt)):
        assert not np.array_equal(one, two)

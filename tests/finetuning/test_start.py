"""What a finetuned run looks at before its first state: facts alone, so that refusals come at once."""

import dataclasses
import shutil

import numpy as np
import pytest
from first_states import SEEN, Renamed, begun, saved
from tiny_run import tiny_config

from perturbdiff_jax import stored_arrays
from perturbdiff_jax.bundle import write_bundle
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.finetuning.start import Start, covariate_genes
from perturbdiff_jax.settings import from_config


def asked(source, **changes):
    return from_config(tiny_config(**SEEN | {"init_from": str(source)} | changes))


def test_the_width_of_covariates_is_known_without_weights(source, monkeypatch, tmp_path):
    """A bundle that has inherited a width passes it on; the run's own bundle is believed once it is there."""
    inherited = tmp_path / "inherited"
    shutil.copytree(source.path, inherited)
    write_bundle(inherited, dataclasses.replace(source.bundle, covariate_genes=31))
    written = tmp_path / "written"
    write_bundle(written, dataclasses.replace(source.bundle, covariate_genes=17))
    monkeypatch.setattr(stored_arrays, "read", lambda *_: pytest.fail("weights were read"))
    for path, own, width in (
        (source.path, "none", len(source.bundle.genes)),
        (inherited, "none", 31),
        (inherited, "written", 17),
    ):
        assert covariate_genes(asked(path), tmp_path / own) == width
    assert covariate_genes(from_config(tiny_config()), tmp_path / "none") == 0


def several(source, path, **facts):
    shutil.copytree(source.path, path)
    write_bundle(path, dataclasses.replace(source.bundle, **facts))
    return path


LAYERS = {"sources": ["pbmc", "replogle"], "datasets": {"Screen": "replogle"}}


@pytest.mark.parametrize(
    ("facts", "changes", "message"),
    [
        ({}, {"model__width": 32}, r"config\.model\.width=32: the network of config\.init_from=.* has 16"),
        (LAYERS, {}, r"an input layer for each of pbmc, replogle; say which in config\.init_source"),
        (LAYERS, {"init_source": "kang"}, "unknown source 'kang'"),
        ({"datasets": {"Screen": ""}}, {"init_source": "kang"}, "source 'kang': this bundle has one input"),
    ],
)
def test_refusals_need_no_weights_either(source, tmp_path, monkeypatch, facts, changes, message):
    settings = asked(several(source, tmp_path / "several", **facts), **changes)
    monkeypatch.setattr(stored_arrays, "read", lambda *_: pytest.fail("weights were read"))
    for look in (lambda: covariate_genes(settings, tmp_path / "none"), lambda: Start.of(settings)):
        with pytest.raises(RequestError, match=message):
            look()


def test_a_bundle_without_a_checkpoint_is_refused_before_a_store_is_made(source, tmp_path):
    empty = several(source, tmp_path / "empty")
    for step in (empty / "checkpoints").iterdir():
        shutil.rmtree(step)
    with pytest.raises(RequestError, match="empty: the bundle is incomplete, it holds no checkpoint yet"):
        covariate_genes(asked(empty), tmp_path / "none")


SCREENS = {"ScreenA": "pbmc", "ScreenB": "pbmc", "ScreenC": "replogle"}


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        # Without a source a short name counts where one batch has it: B2 is in ScreenB and in ScreenC.
        ("", {"B1": "ScreenA_B1", "B2": None, "B3": "ScreenC_B3"}),
        ("pbmc", {"B1": "ScreenA_B1", "B2": "ScreenB_B2", "B3": None}),
        ("replogle", {"B1": None, "B2": "ScreenC_B2", "B3": "ScreenC_B3"}),
        ("ScreenB", {"B1": None, "B2": "ScreenB_B2", "B3": None}),
    ],
)
def test_batches_are_taken_by_the_name_behind_their_data_set(store, source, tmp_path, asked, wanted):
    theirs = ["ScreenA_B1", "ScreenB_B2", "ScreenC_B2", "ScreenC_B3", "plain"]
    params = dict(source.params)
    for name in ("embed_perturbed", "embed_control"):
        params[name] = {leaf: np.stack([values, values]) for leaf, values in params[name].items()}
    table = np.arange(5 * 8, dtype=np.float32).reshape(5, 8)
    params["covariates"] = {**params["covariates"], "batch": table}
    facts = {"sources": ["pbmc", "replogle"], "datasets": SCREENS, "batches": theirs}
    bundle = dataclasses.replace(source.bundle, **facts)
    write_bundle(tmp_path / "several", bundle)
    pretrained = saved(dataclasses.replace(source, path=tmp_path / "several", bundle=bundle, params=params))
    ours = Renamed(store, batches=["B1", "B2", "B3", "plain", "ScreenA_B1", "new"])
    layers = "keep" if asked else "fresh"
    found, drawn, *_ = begun(ours, pretrained, tmp_path, init_source=asked, init_layers=layers)
    exact = {"plain": "plain", "ScreenA_B1": "ScreenA_B1", "new": None}
    for row, name in enumerate(ours.batches):
        there = (wanted | exact)[name]
        base, at = (drawn["covariates/batch"], row) if there is None else (table, theirs.index(there))
        np.testing.assert_array_equal(found["covariates/batch"][row], base[at], err_msg=name)

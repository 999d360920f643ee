"""Settings: one key, one meaning, and a misspelt one is refused wherever it stands."""

import dataclasses
import importlib.util
import json

import jax
import pytest
from tiny_run import ROOT, tiny_config

from perturbdiff_jax.data_options import DataOptions, HoldoutOptions
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.models.mmdit import Denoiser
from perturbdiff_jax.run_record import check_same_run
from perturbdiff_jax.settings import (
    Settings,
    default_config,
    from_config,
    key_kinds,
)
from perturbdiff_jax.state import count_parameters, init_params

CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def test_default_config_is_the_default_settings():
    assert from_config(default_config()) == Settings() == from_config({})


def test_settings_survive_json_and_a_config():
    settings = from_config(tiny_config(data__hvg=7, holdout__cell_type="T1"))
    assert settings.data.hvg == 7 and settings.holdout.cell_type == "T1" and settings.model.width == 16
    assert from_config(json.loads(json.dumps(settings.to_dict()))) == settings


def test_keys_that_may_be_none_can_be_set_and_unset():
    config = default_config()
    assert config.data.batch_key is None
    config.data.batch_key, config.data.hvg = "donor", None
    settings = from_config(config)
    assert settings.data.batch_key == "donor" and settings.data.hvg is None
    for spelt in ("None", "none", ""):
        assert from_config({"data": {"batch_key": spelt}}).data.batch_key is None


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_a_model(config):
    spec = importlib.util.spec_from_file_location(config.stem, config)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    settings = from_config(module.get_config())
    model = Denoiser(settings.model, genes=50, perturbations=5, cell_types=3, batches=2)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    assert count_parameters(shapes) > 0
    assert len(config.read_text().splitlines()) < 120


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"modle": {}}, "unknown config key 'modle'. Did you mean 'model'"),
        ({"model": {"widht": 3}}, "unknown config key 'model.widht'. Did you mean 'model.width'"),
        ({"model": 3}, "config.model=3: must be a section"),
        ({"model": {"width": "wide"}}, "config.model.width='wide': must be int"),
        ({"model": {"width": 1.5}}, "config.model.width=1.5: must be int"),
        ({"model": {"width": True}}, "config.model.width=True: must be int"),
        ({"objective": {"use_mask": 1}}, "config.objective.use_mask=1: must be bool"),
        ({"model": {"scan": "maybe"}}, "model.scan='maybe': allowed are yes, no, auto"),
        ({"model": {"width": None}}, "config.model.width=None: must be int"),
        ({"data": {"hvg": "many"}}, "config.data.hvg='many': must be int or none"),
        (
            {"optim": {"learning_rate": float("nan")}},
            "config.optim.learning_rate=nan: must be a finite number",
        ),
        ({"optim": {"learning_rate": -1}}, "learning_rate and clip must be above 0"),
        ({"ema": {"rule": "slow"}}, "ema.rule='slow': allowed are warmup, released"),
        ({"ema": {"decay": 1.0}}, r"decay must be in \[0, 1\)"),
        ({"seed": -1}, "seed -1: allowed are whole numbers from 0"),
        ({"loader": {"cells_per_set": 0}}, "config.loader.cells_per_set=0: must be at least 1"),
        ({"loader": {"divisor": 0}}, "config.loader.divisor=0.0: must be above 0"),
        ({"loader": {"memory": 0}}, "config.loader.memory=0.0: must be above 0"),
        ({"loader": {"control_memory": -1}}, "config.loader.control_memory=-1.0: must be above 0"),
        ({"loader": {"tier": "stream"}}, "unknown config.loader.tier 'stream'. Did you mean 'streamed'"),
        ({"loader": {"group_by": "batch"}}, "unknown config.loader.group_by 'batch'"),
        ({"loader": {"densify": "gpu"}}, "unknown config.loader.densify 'gpu'"),
        ({"train": {"steps": 0}}, "config.train.steps=0: must be at least 1"),
        ({"train": {"validation_conditions": 0}}, "config.train.validation_conditions=0"),
        (
            {"train": {"best_metric": "enrgy"}},
            "unknown config.train.best_metric 'enrgy'. Did you mean 'energy'",
        ),
        ({"predict": {"draws": 0}}, "config.predict.draws=0: must be at least 1"),
        ({"sampler": {"start": 2000}}, "sampler start=2000: the schedule has 1000 timesteps"),
        ({"schedule": {"steps": 100}}, "sampler start=1000: the schedule has 100 timesteps"),
    ],
)
def test_wrong_settings_are_named(given, said):
    with pytest.raises(RequestError, match=said) as error:
        from_config(given)
    assert len(str(error.value).splitlines()) <= 2


def test_whole_numbers_serve_where_a_fraction_may_stand():
    assert from_config({"optim": {"learning_rate": 1}}).optim.learning_rate == 1.0


def test_key_kinds_tell_what_a_key_takes():
    assert key_kinds("model.width") == (int,) and set(key_kinds("data.hvg")) == {int, type(None)}
    for name, said in {
        "model": "config.model is a section; set one of its keys: model.width",
        "model.widht": "Did you mean 'model.width'",
        "model.width.x": "unknown config key 'model.width.x'",
        "nothing": "Allowed: seed, data",
    }.items():
        with pytest.raises(RequestError, match=said):
            key_kinds(name)


def test_prepare_gets_the_sections_words():
    data = DataOptions(
        perturbation_key="gene", control="NT", value_kind="counts", hvg=None, total_key="total"
    )
    holdout = HoldoutOptions(fraction=0.3, batch="B1,B2", seed=4)
    options = data.prepare_options(holdout, seed=2, cells_per_set=16)
    assert (options.values, options.total_key, options.hvg, options.seed) == ("counts", "total", None, 2)
    assert options.holdout == {
        "fraction": 0.3,
        "validation_fraction": 0.0,
        "context": {"batch": ["B1", "B2"]},
        "seed": 4,
    }
    assert HoldoutOptions().rule() is None
    split = dataclasses.replace(data, split="s.json").prepare_options(holdout, seed=2, cells_per_set=16)
    assert split.holdout is None and split.split == "s.json"


def test_other_settings_are_refused_once_they_would_change_what_is_there(tmp_path):
    first, other = Settings(), from_config({"model": {"width": 8, "heads": 2}})
    check_same_run(tmp_path, first)
    check_same_run(tmp_path, other)  # nothing was made yet: a mended mistake binds nobody
    (tmp_path / "store").mkdir()
    check_same_run(tmp_path, first)  # the store does not depend on the model
    with pytest.raises(RequestError, match=r"config.holdout.fraction was 0.0, is 0.5"):
        check_same_run(tmp_path, from_config({"holdout": {"fraction": 0.5}}))
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/bundle.json").write_text("{}")
    with pytest.raises(
        RequestError, match=r"config.model.width was 512, is 8; config.model.heads was 8, is 2"
    ):
        check_same_run(tmp_path, other)
    check_same_run(tmp_path, from_config({"sampler": {"steps": 3}}))  # changes no weight
    assert json.loads((tmp_path / "config.json").read_text())["sampler"]["steps"] == 3
    # Nor where cells lie.
    check_same_run(tmp_path, from_config({"loader": {"tier": "streamed", "memory": 1.0}}))
    with pytest.raises(RequestError, match=r"config.loader.cells_per_set was 256, is 8"):
        check_same_run(tmp_path, from_config({"loader": {"tier": "streamed", "cells_per_set": 8}}))


def test_a_saved_config_that_is_damaged_or_of_another_release_is_refused(tmp_path):
    check_same_run(tmp_path, Settings())
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/bundle.json").write_text("{}")
    saved = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(saved | {"model": saved["model"] | {"widht": 3}}))
    with pytest.raises(RequestError, match=r"config.model.widht was 3, is None"):
        check_same_run(tmp_path, Settings())
    for text in ('{"seed": 1', "[1]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(RequestError, match="damaged"):
            check_same_run(tmp_path, Settings())
    with pytest.raises(RequestError, match="is a file; give a directory"):
        check_same_run(tmp_path / "config.json", Settings())
    with pytest.raises(RequestError, match="cannot be written"):
        check_same_run(tmp_path / "config.json" / "below", Settings())


def test_where_cells_are_densified_follows_the_backend_unless_it_is_said():
    said = {"auto": ("host", "device"), "host": ("host", "host"), "device": ("device", "device")}
    for densify, (on_cpu, on_gpu) in said.items():
        loader = from_config({"loader": {"densify": densify, "tier": "resident"}}).loader
        assert loader.source_options("cpu")["densify"] == on_cpu
        assert loader.source_options("gpu")["densify"] == on_gpu
        assert loader.source_options("gpu")["tier"] == "resident"

"""A file in the released format, through the command line, is a bundle that computes what the released code does."""

import json
import shutil

import numpy as np
import pytest
from checkpoint_files import write_checkpoint
from recorded_files import KINDS, codes, convert, hyper_parameters, live, recording, tensors, write

import perturbdiff_jax
from perturbdiff_jax.bundle import read_bundle
from perturbdiff_jax.released.hyper_parameters import short_name
from perturbdiff_jax.released.names import UNUSED

FORWARD, WALK = 2e-5, 5e-4  # largest absolute differences allowed


@pytest.fixture(scope="module")
def models(converted):
    """`models(kind)`: the opened bundle."""
    opened = {}

    def model(kind):
        if kind not in opened:
            opened[kind] = perturbdiff_jax.load(converted(kind))
        return opened[kind]

    return model


def cells(kind, model):
    """Positional and keyword arguments of `denoise` for the recorded sets, covariates left out."""
    found = recording(kind)
    source = list(found["ds_name"].astype(str)) if model.sources else None
    given = (found["x_t"], found["t"], found["control"])
    return given, {"self_condition": found["x0_selfcond"], "source": source}


def close(ours, recorded, atol):
    assert ours.shape == recorded.shape and ours.dtype == np.float32
    assert np.abs(recorded).max() > 1e-2
    assert np.abs(ours - recorded).max() <= atol


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_computes_what_the_released_code_computed(models, kind):
    model, found = models(kind), recording(kind)
    given, more = cells(kind, model)
    close(model.denoise(*given, **codes(kind), **more), found["forward_cond_x"], FORWARD)
    close(model.denoise(*given, **more), found["forward_uncond_x"], FORWARD)
    walked = model.sample(
        found["control"], **codes(kind), source=more["source"], init_noise=found["init_noise"], start=10
    )
    close(walked, found["ddim_final"], WALK)


def test_sources_can_be_named_by_data_set_layer_or_code(models):
    model = models("by_name")
    given, more = cells("by_name", model)
    layers = [short_name(name) for name in more["source"]]
    assert model.sources == ["pbmc", "tahoe100m", "replogle", "cellxgene"]
    wanted = model.denoise(*given, **codes("by_name"), **more)
    for source in (layers, np.array([model.sources.index(layer) for layer in layers])):
        again = model.denoise(*given, **codes("by_name"), **more | {"source": source})
        np.testing.assert_array_equal(again, wanted)
    other = model.denoise(*given, **codes("by_name"), **more | {"source": "pbmc"})
    assert np.abs(other - wanted).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_comes_back_bit_for_bit(converted, tmp_path, kind):
    """Frozen tables, rows of doses and what the released code never reads included."""
    code, out, err = convert("--input", converted(kind), "--export", tmp_path / "new" / "p.npz")
    assert (code, err) == (0, "") and "zeros" not in out
    same_arrays(tmp_path / "new" / "p.npz", tensors(kind))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["p.npz"]


def same_arrays(path, wanted):
    with np.load(path, allow_pickle=False) as found:
        assert set(found.files) == set(wanted)
        for name, array in wanted.items():
            assert found[name].dtype == array.dtype, name
            np.testing.assert_array_equal(found[name], array, err_msg=name)


def exported(bundle, path):
    code, _, err = convert("--input", bundle, "--export", path)
    assert (code, err) == (0, "")
    return path


def test_live_weights_are_asked_for(released, converted, tmp_path):
    code, out, err = convert("--input", released("esm2"), "--output", tmp_path / "b", "--weights", "live")
    assert (code, err) == (0, "") and "(live weights)" in out
    same_arrays(exported(tmp_path / "b", tmp_path / "live.npz"), live("esm2"))
    assert read_bundle(tmp_path / "b").origin["weights"] == "live"
    assert read_bundle(converted("esm2")).origin["weights"] == "ema"
    model = perturbdiff_jax.load(tmp_path / "b")
    given, more = cells("esm2", model)
    assert np.abs(model.denoise(*given, **more) - recording("esm2")["forward_uncond_x"]).max() > 1e-3


@pytest.mark.parametrize("words", [(), ("--weights", "live")])
def test_a_file_with_one_set_of_weights_gives_that(tmp_path, words):
    code, out, err = convert(
        "--input", write(tmp_path / "a.ckpt", "genept"), "--output", tmp_path / "b", *words
    )
    assert (code, err) == (0, "") and "(the file's only weights)" in out
    assert ("holds one set of weights only" in out) == bool(words)
    assert read_bundle(tmp_path / "b").origin["weights"] == "only"
    same_arrays(exported(tmp_path / "b", tmp_path / "p.npz"), tensors("genept"))


def test_vocabularies_of_numpy_strings_and_half_precision(tmp_path):
    """The data module leaves numpy's strings as keys; other precisions become float32."""
    facts, arrays = hyper_parameters("case1"), tensors("case1")
    for name in ("pert_dict", "cell_type_dict"):
        names = facts["cov_encoding_cfg"][name]
        facts["cov_encoding_cfg"][name] = {np.str_(label): code for label, code in reversed(names.items())}
    arrays["model.x_embedder.bias"] = arrays["model.x_embedder.bias"].astype(np.float16)
    code, _, err = convert(
        "--input", write_checkpoint(tmp_path / "a.ckpt", arrays, facts), "--output", tmp_path / "b"
    )
    assert (code, err) == (0, "")
    bundle = read_bundle(tmp_path / "b")
    assert bundle.perturbations == [f"CYT{i:02d}" for i in range(7)] and bundle.cell_types == [
        "CT0",
        "CT1",
        "CT2",
        "CT3",
    ]
    arrays["model.x_embedder.bias"] = arrays["model.x_embedder.bias"].astype(np.float32)
    same_arrays(exported(tmp_path / "b", tmp_path / "p.npz"), arrays)


def test_what_the_bundle_knows(converted):
    """Sizes of a finetuned network come from its tensors; the settings in its file still have those of before."""
    bundle = read_bundle(converted("finetuned_2k"))
    assert len(bundle.genes) == 24 and bundle.covariate_genes == 40 and bundle.genes[:2] == ["G000", "G001"]
    assert bundle.control == "[('DMSO_TF', 0.0, 'uM')]"
    assert bundle.keys == {
        "perturbation": "drugname_drugconc",
        "cell_type": "cell_line",
        "batch": "plate",
        "dose": None,
    }
    assert bundle.origin["file"] == "finetuned_2k.ckpt" and bundle.values["divisor"] == 10
    walk = bundle.settings["sampler"]
    assert (walk["name"], walk["start"], walk["steps"], walk["guidance"]) == ("ddim", 100, 100, 1.0)
    assert bundle.settings["loader"]["cells_per_set"] == 256
    replogle = read_bundle(converted("genept"))
    assert replogle.control == "non-targeting" and replogle.settings["loader"]["cells_per_set"] == 32
    doses = read_bundle(converted("chemberta")).doses
    assert doses["values"] == [0.0, 0.05, 0.5, 5.0]
    assert doses["codes"] == recording("chemberta")["cov_encoder.dose_indices"].tolist()
    pretrained = read_bundle(converted("by_name"))
    assert pretrained.settings["model"]["use_perturbation"] == "no"
    assert pretrained.settings["objective"]["drop_control"] == 1


def test_what_is_told_beside_the_file(released, tmp_path):
    words = (
        "--control CYT03 --perturbation-key p --cell-type-key c --batch-key b --cells-per-set 8 --divisor 5"
    )
    code, out, err = convert(
        "--input", released("case1"), "--output", tmp_path / "b", *words.split(), "--target-sum", "5000"
    )
    assert (code, err) == (0, "") and "no --genes, so the 50 genes have no names" in out
    bundle = read_bundle(tmp_path / "b")
    assert bundle.control == "CYT03" and bundle.values["target_sum"] == 5000 and bundle.values["divisor"] == 5
    assert bundle.keys == {"perturbation": "p", "cell_type": "c", "batch": "b", "dose": None}
    assert bundle.settings["loader"]["cells_per_set"] == 8
    code, out, err = convert("--input", released("case1"), "--output", tmp_path / "c", "--control", "PBS")
    assert (code, err) == (0, "") and "'PBS' is no perturbation of the file" in out
    assert read_bundle(tmp_path / "c").keys["perturbation"] == "cytokine"


def test_a_small_variance_and_other_schedules_are_kept(tmp_path):
    def change(_, facts):
        facts["model_cfg"] |= {
            "sigma_small": True,
            "noise_schedule": "power_cosine",
            "noise_schedule_gamma": 0.5,
        }
        facts["model_cfg"] |= {"steps": 40, "cutoff": 0.01}

    code, _, err = convert("--input", write(tmp_path / "a.ckpt", "case1", change), "--output", tmp_path / "b")
    assert (code, err) == (0, "")
    settings = read_bundle(tmp_path / "b").settings
    assert settings["schedule"] == {"name": "power_cosine", "steps": 40, "power": 0.5}
    walk = settings["sampler"]
    assert (walk["variance"], walk["cutoff"], walk["start"], walk["steps"]) == ("small", 0.01, 40, 40)


@pytest.mark.parametrize("case", ["case1", "case3"])
def test_the_given_checkpoints(shared, tmp_path, case):
    folder = shared / "golden" / case
    code, _, err = convert("--input", folder / "lightning.ckpt", "--output", tmp_path / "b")
    assert (code, err) == (0, "")
    model = perturbdiff_jax.load(tmp_path / "b")
    found = dict(np.load(folder / "inputs.npz"))
    known = {
        "perturbation": found["cov_pert"],
        "cell_type": found["cov_celltype"],
        "batch": found["cov_batch"],
    }
    source = list(found["ds_name"].astype(str)) if model.sources else None
    given = {"self_condition": found["x0_selfcond"], "source": source}
    for name, asked in (("cond", known), ("uncond", {})):
        ours = model.denoise(found["x_t"], found["t"], found["control"], **asked, **given)
        close(ours, np.load(folder / f"forward_{name}.npz")["x"], FORWARD)
    for guidance in (0, 1):
        walk = np.load(folder / f"ddim_loop_g{guidance}_T10.npz")
        ours = model.sample(
            found["control"],
            **known,
            source=source,
            init_noise=walk["init_noise"],
            start=10,
            guidance=float(guidance),
        )
        close(ours, walk["final"], WALK)
    same_arrays(exported(tmp_path / "b", tmp_path / "p.npz"), dict(np.load(folder / "params.npz")))


def test_bundles_trained_here_can_be_exported(finished, tmp_path):
    """When the released code has a form for their network; what it never reads is written as zeros, and said."""
    code, out, err = convert("--input", finished.workdir, "--export", tmp_path / "p.npz")
    assert code == 2 and "the released network has no form of model.anchor=control" in err
    assert not list(tmp_path.iterdir()) and out == ""
    plain = trained_without_anchor(finished.workdir / "bundle", tmp_path / "plain")
    code, out, err = convert("--input", plain, "--export", tmp_path / "p.npz")
    assert (code, err) == (0, "") and f"{len(UNUSED)} tensors" in out and "written as zeros" in out
    model = perturbdiff_jax.load(plain)
    with np.load(tmp_path / "p.npz") as found:
        assert set(UNUSED) <= set(found.files) and not any(found[name].any() for name in UNUSED)
        np.testing.assert_array_equal(
            found["model.x_embedder.weight"], np.asarray(model.params["embed_perturbed"]["kernel"]).T
        )
        arrays = dict(found)
    # The names are right: a file of these arrays is a released checkpoint again, with the same weights.
    facts = hyper_parameters("case1")
    facts["cov_encoding_cfg"] |= {
        name: {label: code for code, label in enumerate(labels)}
        for name, labels in (
            ("pert_dict", model.bundle.perturbations),
            ("cell_type_dict", model.cell_types),
            ("batch_dict", model.batches),
        )
    }
    facts["cov_encoding_cfg"] |= {"num_pert": None, "num_celltype": None, "num_batch": None}
    facts["model_cfg"] |= {"dit_num_heads": None, "dataset_dict": []}
    code, _, err = convert(
        "--input", write_checkpoint(tmp_path / "again.ckpt", arrays, facts), "--output", tmp_path / "again"
    )
    assert (code, err) == (0, "")
    same_arrays(exported(tmp_path / "again", tmp_path / "q.npz"), arrays)


def trained_without_anchor(bundle, output):
    """The tiny run's bundle, its anchor called off: the parameters of an anchored network are those of a plain one."""
    shutil.copytree(bundle, output)
    content = json.loads((output / "bundle.json").read_text())
    content["settings"]["model"]["anchor"] = "none"
    (output / "bundle.json").write_text(json.dumps(content))
    return output

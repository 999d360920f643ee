"""Settings, options and gene lists that no released weights go with, and files of other projects."""

import pickle

import numpy as np
import pytest
from checkpoint_files import Global, Made, Writer, omegaconf, write_archive, write_checkpoint
from recorded_files import hyper_parameters, recording, tensors, write
from spoilt_files import COVARIATES, MODEL, named, refused, setting

from perturbdiff_jax.convert import convert
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.pickles import read_pickle
from perturbdiff_jax.released.checkpoint import open_released
from perturbdiff_jax.released.describe import ConvertOptions
from perturbdiff_jax.released.hyper_parameters import dose_of, plain, short_name

GENES = recording("genept")["control"].shape[2]
SETTINGS = [
    (setting(MODEL, "use_gene_embedding", True), "model_cfg.use_gene_embedding=True; known is False only"),
    (setting(MODEL, "use_class_silu", True), "model_cfg.use_class_silu=True; known is False only"),
    (setting(MODEL, "learn_sigma", True), "model_cfg.learn_sigma=True; known is False only"),
    (setting(MODEL, "predict_xstart", False), "model_cfg.predict_xstart=False; known is True only"),
    (setting(MODEL, "model_type", "unet"), "model_cfg.model_type='unet'; known is 'Cross_DiT' only"),
    (setting(MODEL, "Block_type", None), "model_cfg.Block_type=None; known is 'MM_DiT' only"),
    (
        setting(MODEL, "dit_num_heads", 8),
        "model_cfg.dit_num_heads=8, but of 128 features its query norms see 32 each",
    ),
    (
        setting(MODEL, "noise_schedule", "sqrt"),
        "noise_schedule='sqrt'; known are linear, cosine, power_cosine",
    ),
    (setting(MODEL, "noise_schedule", ["linear"]), "noise_schedule=['linear']; known are linear"),
    (setting(MODEL, "steps", 0), "model_cfg.steps=0; allowed are 1 to 100,000"),
    (setting(MODEL, "steps", "${steps}"), "hyper_parameters steps='${steps}' is not a number"),
    (
        lambda _, f: f[MODEL].update(steps=50, rescale_timesteps=True),
        "rescale_timesteps with 50 steps is not known",
    ),
    (setting(MODEL, "cutoff", "${cutoff}"), "hyper_parameters cutoff='${cutoff}' is not a number"),
    (setting(MODEL, "p_drop_control", True), "hyper_parameters p_drop_control=True is not a number"),
    (setting(MODEL, "p_drop_control", 2), "objective.drop_control=2: must be between 0 and 1"),
    (
        setting(MODEL, "dataset_dict", "replogle"),
        "model_cfg.dataset_dict='replogle' is not a list of data sets",
    ),
    (setting(MODEL, "dataset_dict", [["a"]]), "model_cfg.dataset_dict=[['a']] is not a list of data sets"),
]


@pytest.mark.parametrize(("change", "message"), SETTINGS, ids=named)
def test_settings_that_no_released_weights_have(tmp_path, change, message):
    path = write(tmp_path / "a.ckpt", "case1", change)
    text = refused(path, tmp_path / "b")
    assert text.startswith(f"{path}: ") and message in text


def test_a_frozen_table_under_settings_of_a_learned_one(tmp_path):
    path = write(tmp_path / "a.ckpt", "esm2", setting(COVARIATES, "pert_encoding", "onehot"))
    assert "pert_encoding=onehot, but the perturbation table is a frozen one" in refused(path, tmp_path / "b")


def test_settings_without_effect_may_be_unresolved_or_absent(tmp_path):
    """A hand-made run leaves OmegaConf's references in the file."""

    def change(_, facts):
        reference = "${model.hidden_num.0}"
        facts[COVARIATES] |= dict.fromkeys(
            ("output_dim", "num_pert", "num_batch", "gather_strategy"), reference
        )
        facts[MODEL] |= dict.fromkeys(
            ("input_dim", "hidden_num", "p_drop_cond", "noise_schedule_gamma"), reference
        )
        facts[MODEL] |= {"dit_num_heads": "${heads}", "model_type": "cross_dit", "dropout": None}
        facts["optimizer_cfg"] = {"optimizer": "${optimizer}", "micro_batch_size": "${batch}"}
        for name in ("use_kl", "use_class_silu", "sigma_small", "rescale_timesteps"):
            del facts[MODEL][name]

    released = open_released(write(tmp_path / "a.ckpt", "genept", change))
    assert released.network.heads == 4 and released.facts.cells_per_batch == 2048
    convert(tmp_path / "a.ckpt", tmp_path / "b", echo=lambda _: None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"state_dict": {"fc.weight": np.zeros((2, 2)), "fc.bias": np.zeros(2)}},
            "tensors are fc.weight, fc.bias.",
        ),
        ({"state_dict": {}}, "not a checkpoint of the released code; its tensors are none."),
        ({"fc.weight": np.zeros(2)}, "has no state_dict; not a Lightning checkpoint. It has 'fc.weight'."),
        ({}, "has no state_dict; not a Lightning checkpoint. It has nothing."),
        ({"state_dict": [np.zeros(2)]}, "its state_dict is no dictionary of tensors"),
        ({"state_dict": {"cov_encoder.x": 3}}, "its state_dict is no dictionary of tensors"),
        ({"state_dict": {"cov_encoder.x": np.zeros(2)}}, "hyper_parameters are missing"),
        (
            {"state_dict": {"cov_encoder.x": np.zeros(2)}, "hyper_parameters": 3},
            "hyper_parameters are missing",
        ),
        ({"state_dict": {3: np.zeros(2)}}, "its state_dict has names of tensors that are none"),
        (
            {"state_dict": {"cov_encoder.\nx": np.zeros(2)}},
            "its state_dict has names of tensors that are none",
        ),
        (
            {"state_dict": {"cov_encoder.x": np.zeros(2)}, "current_model_state": {"a": "b"}},
            "its current_model_state is no dictionary of tensors",
        ),
    ],
)
def test_other_projects_checkpoints(tmp_path, content, message):
    path = write_archive(tmp_path / "a.ckpt", content)
    assert message in refused(path, tmp_path / "b")


def test_settings_that_hold_themselves(tmp_path):
    endless = Made(Global("omegaconf.dictconfig", "DictConfig"), new=True)
    endless.state = {"_content": {"model_cfg": endless}}
    path = write_checkpoint(tmp_path / "a.ckpt", tensors("genept"), {"cov_encoding_cfg": endless})
    assert "a part of hyper_parameters holds itself" in refused(path, tmp_path / "b")


def test_settings_that_mention_one_thing_again_and_again_are_read_once(tmp_path):
    """Without a memory of what was read, these forty levels would be 2^40 lists."""
    many = [1.0]
    for _ in range(40):
        many = [many, many]
    facts = hyper_parameters("genept")
    facts[MODEL]["use_class_silu"] = many
    path = write_archive(tmp_path / "a.ckpt", {"state_dict": tensors("genept"), "hyper_parameters": facts})
    assert "model_cfg.use_class_silu=[[[[[[" in refused(path, tmp_path / "b")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "raw"}, "--weights raw: allowed are ema, live"),
        ({"cells_per_set": 0}, "--cells-per-set 0: must be at least 1"),
        ({"target_sum": float("nan")}, "--target-sum nan: must be above 0"),
        ({"divisor": 0.0}, "--divisor 0: must be above 0"),
        ({"divisor": float("inf")}, "--divisor inf: must be above 0"),
    ],
)
def test_options_that_no_prediction_could_follow(options, message):
    with pytest.raises(RequestError, match=message):
        ConvertOptions(**options)


def test_gene_lists(tmp_path):
    """Another length, names twice; text and the authors' pickles alike."""
    path, names = write(tmp_path / "a.ckpt", "genept"), [f"G{i}" for i in range(GENES)]
    given = {
        "short.txt": ("\n".join(names[:-1]).encode(), "lists 23 genes, a.ckpt has 24"),
        "long.pkl": (pickle.dumps([*names, "more"]), "lists 25 genes, a.ckpt has 24"),
        "twice.csv": (("gene\n" + "\n".join([*names[:-1], "G3"])).encode(), "listed more than once: G3"),
        "numbers.pkl": (pickle.dumps(list(range(GENES))), "gene names are strings"),
        "call.pkl": (pickle.dumps(print), "holds a"),
    }
    for name, (data, message) in given.items():
        (tmp_path / name).write_bytes(data)
        text = refused(path, tmp_path / "b", ConvertOptions(genes=str(tmp_path / name)))
        assert text.startswith(str(tmp_path / name)) and message in text


def test_short_names_and_doses():
    assert [
        short_name(name) for name in ("Tahoe_x", "Parse_PBMC", "replogle", "proc_cellxgene_1", "mine")
    ] == [
        "tahoe100m",
        "pbmc",
        "replogle",
        "cellxgene",
        "mine",
    ]
    assert dose_of("[('Erdafitinib ', 0.05, 'uM')]") == 0.05 and dose_of("[('DMSO_TF', 0.0, 'uM')]") == 0.0
    for label in ("PBS", "[", "[(1, 'x', 2)]", "[]", "(1, 2)", "[(1, 10**400, 2)]", "9" * 9999, "[" * 9999):
        assert dose_of(label) is None


def test_configurations_are_unwrapped():
    value = {"a": [1, {"b": None, "c": (True, "x")}], "d": {}}
    record = omegaconf_record(value)
    assert plain(record) == {"a": [1, {"b": None, "c": [True, "x"]}], "d": {}}


def omegaconf_record(value):
    return read_pickle(Writer().done(omegaconf(value)), where="x")

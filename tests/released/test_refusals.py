"""Released files that contradict themselves or that this package has no network for: one line that says where."""

import numpy as np
import pytest
from checkpoint_files import Global, Made, omegaconf, write_archive, write_checkpoint
from recorded_files import hyper_parameters, recording, tensors, write

from perturbdiff_jax.convert import convert
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.released.checkpoint import open_released
from perturbdiff_jax.released.describe import ConvertOptions
from perturbdiff_jax.released.hyper_parameters import dose_of, plain, short_name

COVARIATES, MODEL = "cov_encoding_cfg", "model_cfg"
DOSES = "cov_encoder.dose_indices"
GENES = recording("genept")["control"].shape[2]


def refused(path, output, options=None):
    """The message, after a look that nothing was left behind."""
    with pytest.raises(RequestError) as error:
        convert(path, output, options, echo=lambda _: None)
    assert not output.exists() and not list(output.parent.glob(f".{output.name}*"))
    text = str(error.value)
    assert len(text.splitlines()) <= 2 and len(text) < 600
    return text


def codes(name, **changes):
    """Changes codes of a vocabulary; None takes the name out."""

    def change(_, facts):
        vocabulary = facts[COVARIATES][name]
        vocabulary |= changes
        for label in [label for label, code in vocabulary.items() if code is None]:
            del vocabulary[label]

    return change


def setting(section, name, value):
    return lambda _, facts: facts[section].update({name: value})


def without(section, *names):
    return lambda _, facts: [facts[section].pop(name) for name in names]


def rows(name, more):
    """Gives a tensor more rows, or fewer."""

    def change(arrays, _):
        array = arrays[name]
        arrays[name] = np.concatenate([array, array[:1]] if more > 0 else [array[:more]])

    return change


def tensor(name, value):
    """Replaces, adds or (None) removes a tensor."""

    def change(arrays, _):
        arrays[name] = value(arrays[name]) if callable(value) else value
        if arrays[name] is None:
            del arrays[name]

    return change


def spoilt(value):
    def change(array):
        array = array.copy()
        array.flat[7] = value
        return array

    return change


def renamed(part, other):
    def change(arrays, _):
        for name in list(arrays):
            if part in name:
                arrays[name.replace(part, other)] = arrays.pop(name)

    return change


VOCABULARIES = [
    (
        "case1",
        codes("pert_dict", CYT00=7),
        "names from 0 to 6: 'CYT01' has 1 in place of 0",
    ),
    (
        "case1",
        codes("pert_dict", CYT06=5),
        "names from 0 to 6: 'CYT06' has 5 in place of 6",
    ),
    ("case1", codes("cell_type_dict", CT0=-1), "cell_type_dict does not number its 4 names from 0"),
    ("case1", codes("batch_dict", x="2"), "the vocabulary batch_dict gives 'x' the code '2'."),
    ("case1", codes("pert_dict", CYT01=1.0), "the vocabulary pert_dict gives 'CYT01' the code 1.0."),
    (
        "case1",
        codes("cell_type_dict", more=4),
        "num_celltype=4, but the vocabulary cell_type_dict has 5 names",
    ),
    ("case1", setting(COVARIATES, "num_pert", 8), "num_pert=8, but the vocabulary pert_dict has 7 names"),
    ("case1", setting(COVARIATES, "pert_dict", {}), "hyper_parameters.cov_encoding_cfg.pert_dict is missing"),
    (
        "case1",
        setting(COVARIATES, "pert_dict", ["a"]),
        "hyper_parameters.cov_encoding_cfg.pert_dict is missing",
    ),
    ("case1", without(COVARIATES, "batch_dict"), "hyper_parameters.cov_encoding_cfg.batch_dict is missing"),
    (
        "case1",
        lambda _, f: f.pop(COVARIATES),
        "hyper_parameters.cov_encoding_cfg is missing; it has model_cfg",
    ),
    ("case1", lambda _, f: f.update(model_cfg=3), "hyper_parameters.model_cfg is missing"),
]
TABLES = [
    (
        "case1",
        "cov_encoder.pert_encoder.weight",
        -1,
        "the perturbation table has 7 rows; its vocabulary of 7",
    ),
    ("case1", "cov_encoder.pert_encoder.weight", 1, "the perturbation table has 9 rows"),
    (
        "case1",
        "cov_encoder.celltype_encoder.weight",
        -1,
        "the cell type table has 3 rows; its vocabulary of 4 names",
    ),
    (
        "case1",
        "cov_encoder.batch_encoder.weight",
        1,
        "the batch table has 4 rows; its vocabulary of 3 names needs 3",
    ),
    (
        "esm2",
        "cov_encoder.pert_encoder.0.weight",
        -1,
        "the perturbation table has 82 rows; its vocabulary of 82 names",
    ),
    (
        "genept",
        "cov_encoder.pert_encoder.0.weight",
        -1,
        "the perturbation table has 6 rows; its vocabulary of 7 names",
    ),
    ("genept", "cov_encoder.pert_encoder.0.weight", 1, "the perturbation table has 8 rows"),
    ("genept", "cov_encoder.celltype_encoder.0.weight", 1, "the cell type table has 5 rows"),
    (
        "chemberta",
        "cov_encoder.drug_encoder.0.weight",
        -1,
        "the drug table has 12 rows; its vocabulary of 13 names",
    ),
    ("chemberta", DOSES, -1, "the dose index table has 12 rows"),
    (
        "chemberta",
        "cov_encoder.dose_encoder.weight",
        -1,
        f"{DOSES} (int32, 0 to 3) must be rows 0 to 2 of the dose",
    ),
]
TENSORS = [
    ("chemberta", tensor(DOSES, lambda a: a - 1), f"{DOSES} (int32, -1 to 2) must be rows 0 to 3"),
    ("chemberta", tensor(DOSES, lambda a: a.astype(np.float32)), f"{DOSES} (float32, 0.0 to 3.0)"),
    ("chemberta", tensor(DOSES, lambda a: a[::-1].copy()), "has dose row"),
    ("chemberta", tensor(DOSES, lambda a: a[:, None]), f"{DOSES} has shape (13, 1); it needs 1 axes"),
    ("case1", tensor(DOSES, np.zeros(7, np.int32)), f"1 tensor(s) without a place: {DOSES}."),
    ("case1", tensor("model.extra", np.zeros(3)), "1 tensor(s) without a place: model.extra."),
    (
        "case1",
        renamed("model.x_embedder", "x"),
        "2 tensor(s) missing: model.x_embedder.weight, model",
    ),
    ("case1", renamed("fc1.bias", "fc1.b"), "6 tensor(s) missing: model.blocks.0.block.mlp.fc1.bias, "),
    ("case1", renamed("model.blocks.1.", "x."), "has 2 blocks, but one is numbered 2."),
    (
        "case1",
        renamed("model.blocks.2.", "model.blocks.99999999999."),
        "has 3 blocks, but one is numbered 99999999999",
    ),
    ("case1", renamed("model.blocks", "model.block"), "the state_dict has no model.blocks"),
    (
        "case1",
        tensor("model.t_embedder.mlp.2.weight", None),
        "the tensor model.t_embedder.mlp.2.weight is missing",
    ),
    (
        "case1",
        tensor("model.x_embedder.weight", lambda a: a[:, :98]),
        "has shape (64, 98); the other tensors",
    ),
    (
        "case1",
        tensor("model.x_embedder.bias", lambda a: a[0]),
        "model.x_embedder.bias has shape (); the",
    ),
    (
        "case1",
        tensor("model.t_embedder.mlp.2.weight", lambda a: a[0]),
        "mlp.2.weight has shape (64,); it needs 2 axes",
    ),
    (
        "case1",
        tensor("model.final_layer.linear.weight", lambda a: a[:0]),
        "linear.weight has shape (0, 64); it needs 2",
    ),
    (
        "case1",
        tensor("model.final_layer.linear.weight", lambda a: a[:40]),
        "has shape (50,); the other tensors and the",
    ),
    (
        "case1",
        rows("model.class_embedding.null_emb.weight", 1),
        "null_emb.weight has shape (2, 64); the",
    ),
    (
        "case1",
        tensor("model.blocks.1.block.mlp.fc1.bias", lambda a: a[1:]),
        "fc1.bias has shape (255,)",
    ),
    (
        "case1",
        tensor("model.x_embedder.weight", spoilt(np.nan)),
        "x_embedder.weight holds 1 numbers that are NaN",
    ),
    (
        "case1",
        tensor("model.blocks.1.block.mlp.fc1.bias", spoilt(np.inf)),
        "1.block.mlp.fc1.bias holds 1 numbers",
    ),
    (
        "case1",
        tensor("cov_encoder.transform.bias", lambda a: a * 1e300),
        "cov_encoder.transform.bias holds 50 numbers",
    ),
    (
        "genept",
        tensor("cov_encoder.pert_encoder.0.weight", spoilt(np.nan)),
        "pert_encoder.0.weight holds 1 numbers",
    ),
    (
        "by_name",
        renamed("embedder.replogle.", "embedder.other."),
        "no input layer for the data sets replogle; it has",
    ),
    (
        "by_name",
        renamed("control_embedder.pbmc", "control_embedder.x"),
        "2 tensor(s) missing: model.x_control",
    ),
]
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


def named(case):
    return None if callable(case) else str(case)[:40]


@pytest.mark.parametrize(("kind", "change", "message"), VOCABULARIES + TENSORS, ids=named)
def test_files_that_contradict_themselves(tmp_path, kind, change, message):
    path = write(tmp_path / "a.ckpt", kind, change)
    text = refused(path, tmp_path / "b")
    assert text.startswith(f"{path}: ") and message in text


@pytest.mark.parametrize(("kind", "name", "more", "message"), TABLES)
def test_tables_and_vocabularies_that_disagree(tmp_path, kind, name, more, message):
    path = write(tmp_path / "a.ckpt", kind, rows(name, more))
    text = refused(path, tmp_path / "b")
    assert text.startswith(f"{path}: ") and message in text


@pytest.mark.parametrize(("change", "message"), SETTINGS, ids=named)
def test_settings_that_no_released_weights_have(tmp_path, change, message):
    path = write(tmp_path / "a.ckpt", "case1", change)
    text = refused(path, tmp_path / "b")
    assert text.startswith(f"{path}: ") and message in text


def test_a_frozen_table_under_settings_of_a_learned_one(tmp_path):
    path = write(tmp_path / "a.ckpt", "esm2", setting(COVARIATES, "pert_encoding", "onehot"))
    assert "pert_encoding=onehot, but the perturbation table is a frozen one" in refused(path, tmp_path / "b")


def test_a_larger_frozen_table_is_remarked(tmp_path):
    remarks = open_released(write(tmp_path / "a.ckpt", "esm2", rows("cov_encoder.pert_encoder.0.weight", 1)))
    assert remarks.network.remarks == ["the esm2 table has 83 rows; the first 82 are perturbations."]


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
    path = write_checkpoint(
        tmp_path / "a.ckpt", tensors("genept"), {name: plain(v) for name, v in facts.items()}
    )
    assert "model_cfg.use_class_silu=[[[[[[" in refused(path, tmp_path / "b")


def test_live_weights_are_checked_as_well(tmp_path):
    live = tensors("genept")
    live["model.x_embedder.bias"] = live["model.x_embedder.bias"][1:]
    path = write_checkpoint(tmp_path / "a.ckpt", tensors("genept"), hyper_parameters("genept"), live=live)
    text = refused(path, tmp_path / "b", ConvertOptions(weights="live"))
    assert "the tensor model.x_embedder.bias has shape (31,)" in text


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
    import pickle

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
    from checkpoint_files import Writer

    from perturbdiff_jax.pickles import read_pickle

    return read_pickle(Writer().done(omegaconf(value)), where="x")

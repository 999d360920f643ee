"""Released files whose vocabularies, tables and tensors contradict each other: one line that says where."""

import numpy as np
import pytest
from checkpoint_files import write_checkpoint
from recorded_files import hyper_parameters, tensors, write
from spoilt_files import COVARIATES, codes, named, refused, renamed, rows, setting, spoilt, tensor, without

from perturbdiff_jax.released.checkpoint import open_released
from perturbdiff_jax.released.describe import ConvertOptions

DOSES = "cov_encoder.dose_indices"

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
    ("case1", codes("batch_dict", x="2"), "the vocabulary batch_dict gives 'x' the code '2', no whole"),
    ("case1", codes("pert_dict", CYT01=1.0), "the vocabulary pert_dict gives 'CYT01' the code 1.0, no whole"),
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
        tensor("model.x_embedder.bias", lambda a: a[:1].reshape(())),
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
        "model.x_embedder.weight has shape (64, 100); the other tensors and the vocabularies ask for (64, 80)",
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
        tensor("cov_encoder.transform.bias", lambda a: a.astype(np.float64) * 1e300),
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


def test_a_larger_frozen_table_is_remarked(tmp_path):
    remarks = open_released(write(tmp_path / "a.ckpt", "esm2", rows("cov_encoder.pert_encoder.0.weight", 1)))
    assert remarks.network.remarks == ["the esm2 table has 83 rows; the first 82 are perturbations."]


def test_live_weights_are_checked_as_well(tmp_path):
    live = tensors("genept")
    live["model.x_embedder.bias"] = live["model.x_embedder.bias"][1:]
    path = write_checkpoint(tmp_path / "a.ckpt", tensors("genept"), hyper_parameters("genept"), live=live)
    text = refused(path, tmp_path / "b", ConvertOptions(weights="live"))
    assert "the tensor model.x_embedder.bias has shape (31,)" in text

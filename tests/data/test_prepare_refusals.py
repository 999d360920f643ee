"""Every wrong request or file that prepare refuses: one or two lines, and nothing left behind."""

import numpy as np
import pytest
from prepare_runs import refusal


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"perturbation_key": "perts"}, ["'perts'", "--perturbation-key", "'pert'"]),
        ({"batch_key": "plate"}, ["'plate'", "--batch-key", "donor"]),
        ({"control": "contrl"}, ["control label 'contrl'", "'pert'", "'control'", "P1"]),
        ({"control": "PBS"}, ["control label 'PBS'", "P3, control"]),
        ({"batch_key": "kind"}, ["'kind'", "two keys"]),
        ({"batch_key": "source_row"}, ["'source_row'", "Rename"]),
        ({"total_key": "totals"}, ["'totals'", "--total-key", "'total'"]),
        ({"total_key": "kind"}, ["'kind'", "not numeric"]),
        ({"dose_key": "text"}, ["'text'", "not numeric"]),
        ({"layer": "counts"}, ["'counts'", "no layers"]),
        ({"values": "raw"}, ["--values", "lognorm"]),
        ({"hvg": 0}, ["--hvg 0"]),
        ({"target_sum": 0.0}, ["--target-sum"]),
        ({"genes": "none.txt"}, ["none.txt", "no such file"]),
        ({"split": "none.json"}, ["none.json", "no such file"]),
        ({"unperturbed": True}, ["--perturbation-key", "--unperturbed", "one of them"]),
        ({"perturbation_key": None}, ["--perturbation-key", "--unperturbed", "one of them"]),
        ({"perturbation_key": None, "unperturbed": True, "holdout": {"fraction": 0.3}}, ["none is held out"]),
        ({"holdout": {"fraction": 0.3, "context": {"batch": "b4"}}}, ["'b4'", "'donor'"]),
    ],
)
def test_wrong_requests(adata, save, tmp_path, options, words):
    adata.obs["text"] = "much"
    message = refusal(save(adata), tmp_path / "s", **options)
    assert all(word in message for word in words), message


def test_wrong_files(adata, save, tmp_path):
    output = tmp_path / "s"
    assert "none.h5ad" in refusal(tmp_path / "none.h5ad", output)
    assert "no file given" in refusal([], output)
    assert "twice" in refusal([tmp_path / "a.h5ad", tmp_path / "." / "a.h5ad"], output)
    lonely = adata[[*range(20), int(np.flatnonzero(adata.obs["pert"] == "P1")[-1])]].copy()
    lonely.obs["pert"] = ["control"] * 10 + ["P2"] * 10 + ["P1"]
    message = refusal(save(lonely, "lonely.h5ad"), output)
    assert "lonely.h5ad" in message and "'pert'" in message and "one cell: P1" in message
    lonely.obs["pert"] = "control"
    message = refusal(save(lonely, "controls.h5ad"), output)
    assert "every cell is a control" in message and "--unperturbed" in message
    broken = adata.copy()
    broken.X = broken.X.toarray()
    broken.X[5, 3] = np.nan
    message = refusal(save(broken, "nan.h5ad"), output)
    assert "nan.h5ad" in message and "'cell5'" in message and "'g3'" in message
    (tmp_path / "genes.txt").write_text("ENSG01\n")
    assert "none of its 1 genes" in refusal(save(adata), output, genes=str(tmp_path / "genes.txt"))

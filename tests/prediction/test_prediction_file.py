"""The h5ad that is written piece by piece is the one that AnnData would have written."""

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from small_jobs import CONTEXTS, bundle, controls, job, request, some

from perturbdiff_jax.prediction import h5ad_file


def in_one_go(job):
    """What a job gives, put together by AnnData alone from whole requests."""
    blocks, rows, names, used = [], [], [], {}
    for one, cells, served in job.walker(job.params, job.requests):
        blocks.append(np.minimum(cells, job.bundle.values["largest"]))
        rows += [(one.perturbation, one.cell_type, one.batch, one.draw)] * len(cells)
        used.setdefault(job.contexts[(one.cell_type, one.batch)], set()).update(served.tolist())
    names = [f"predicted{i:07d}" for i in range(len(rows))]
    for context in sorted(used):
        places = sorted(used[context])
        blocks.append(job.controls.cells[context][places].toarray())
        rows += [(job.bundle.control, *context, 0)] * len(places)
        names += [job.controls.names[context][place] for place in places]
    obs = pd.DataFrame(rows, columns=["perturbation", "cell_type", "batch", "draw"])
    # Newer pandas would choose a layout that older anndata cannot read.
    obs.index = pd.Index(names, dtype=object)
    trained = {name for name, _, _ in job.bundle.trained} | {"control"}
    obs["seen_perturbation"] = [name in trained for name in obs["perturbation"]]
    obs["batch"] = [job.controls.spelling.get(name, name) for name in obs["batch"]]
    for role in ("perturbation", "cell_type", "batch"):
        obs[role] = obs[role].astype("category")
        if job.bundle.keys.get(role) is None:
            del obs[role]
    obs = obs.rename(columns={role: key for role, key in job.bundle.keys.items() if key})
    matrix = sp.csr_matrix(np.concatenate(blocks).astype(np.float32))
    whole = anndata.AnnData(matrix, obs=obs, var=pd.DataFrame(index=pd.Index(job.bundle.genes, dtype=object)))
    whole.obs_names_make_unique()
    whole.obs_names = whole.obs_names.astype(object)
    whole.uns["perturbdiff"] = job.uns
    return whole


def same(ours, expected):
    pd.testing.assert_frame_equal(ours.obs, expected.obs)
    pd.testing.assert_frame_equal(ours.var, expected.var)
    assert ours.uns == expected.uns
    assert sp.isspmatrix_csr(ours.X) and ours.X.dtype == np.float32
    np.testing.assert_array_equal(ours.X.toarray(), expected.X.toarray())
    assert ours.X.nnz == expected.X.nnz


def jobs():
    """Jobs that differ in what makes a file: keys, names, spelling, numbers of everything."""
    few, known = controls(), bundle()
    yield "plain", some().job
    yield "single cell", job([request(few, cells=1)], few, known)
    keys = {"perturbation": "pert", "cell_type": "kind", "batch": None, "dose": None}
    yield "no batch column", job([request(few, "P2")], few, bundle(keys=keys))
    spelt = controls(spelling={"B1": "donor 1 \u00e9"})
    yield "other spelling", job([request(spelt, "P1"), request(spelt, "P2", CONTEXTS[1])], spelt, known)
    clash = controls(names="predicted000000{1}")  # the same in all contexts, and those of predicted cells
    asked = [request(clash, "P1", context, 9) for context in CONTEXTS]
    yield "names that are taken", job(asked, clash, known)
    asked = [request(few, f"P{i}", CONTEXTS[i % 3], 1 + i % 11, i % 3) for i in range(300)]
    yield "more than 127 perturbations", job(asked, few, known, sets_per_batch=16)


@pytest.mark.filterwarnings("ignore::UserWarning")  # AnnData's own about names, when ours are put together
@pytest.mark.parametrize("chunk", [1 << 16, 7])
@pytest.mark.parametrize(("name", "ours"), list(jobs()), ids=[name for name, _ in jobs()])
def test_file_and_memory_hold_what_anndata_puts_together(tmp_path, monkeypatch, name, ours, chunk):
    monkeypatch.setattr(h5ad_file, "CHUNK", chunk)
    expected = in_one_go(ours)
    same(ours.in_memory(), expected)
    path = ours.to_file(tmp_path / "sub" / "p.h5ad")
    expected.write_h5ad(tmp_path / "expected.h5ad", compression="gzip")
    expected = anndata.read_h5ad(tmp_path / "expected.h5ad")
    same(anndata.read_h5ad(path), expected)
    backed = anndata.read_h5ad(path, backed="r")
    part = backed[2:5].to_memory()
    np.testing.assert_array_equal(part.X.toarray(), expected.X[2:5].toarray())
    pd.testing.assert_frame_equal(part.obs.astype(str), expected.obs[2:5].astype(str))
    backed.file.close()
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["expected.h5ad", "p.h5ad", "sub"]


def test_the_file_is_laid_out_as_anndata_lays_it_out(tmp_path):
    ours = some().job
    ours.in_memory().write_h5ad(tmp_path / "a.h5ad", compression="gzip")
    ours.to_file(tmp_path / "b.h5ad")

    def layout(name):
        found = {}

        def look(path, node):
            attributes = {key: np.asarray(value).tolist() for key, value in node.attrs.items()}
            found[path] = attributes, getattr(node, "shape", None), getattr(node, "compression", None)
            if path != "X/indptr":  # ours counts beyond 2**31
                found[path] += (getattr(node, "dtype", None),)

        with h5py.File(tmp_path / name) as file:
            file.visititems(look)
            look("/", file)
        return found

    assert layout("a.h5ad") == layout("b.h5ad")
    assert all(
        layout("b.h5ad")[f"{name}/_index"][0]["encoding-type"] == "string-array" for name in ("obs", "var")
    )


def test_a_file_that_cannot_be_finished_leaves_the_one_that_is_there(tmp_path, monkeypatch):
    path = tmp_path / "p.h5ad"
    some().job.to_file(path)
    before = path.read_bytes()
    monkeypatch.setattr(h5ad_file, "_write_obs", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        some().job.to_file(path)
    assert path.read_bytes() == before and not list(tmp_path.glob("*.partial"))
    monkeypatch.undo()
    some().job.to_file(path)
    assert [file.name for file in tmp_path.iterdir()] == ["p.h5ad"]

"""Counts from log1p values: the very counts come back, whatever the scale; what is no such thing is left alone."""

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from prepare_runs import filled, run

from perturbdiff_jax.data.preparation.recover import ULPS, recovered
from perturbdiff_jax.data.values import normalise


def sample(cells=300, genes=400, seed=0):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.4, 2.0, genes), (cells, genes)) * (
        1 + 400 * (rng.random((cells, genes)) < 0.01)
    )
    counts[:, 0] += 1
    return sp.csr_matrix(counts.astype(np.float64))


def lognorm(counts, target):
    """As scanpy does it: a division in float32, then log1p."""
    totals = np.asarray(counts.sum(axis=1)).ravel()
    target = np.median(totals) if target is None else target
    values = counts.astype(np.float32)
    values.data /= np.repeat((totals / target).astype(np.float32), np.diff(values.indptr))
    np.log1p(values.data, out=values.data)
    return values


@pytest.mark.parametrize("target", [1e4, 1e6, 2345.6, None])
def test_the_very_counts_come_back(target):
    counts = sample()
    values = lognorm(counts, target)
    found, scale = recovered(values)
    np.testing.assert_array_equal(found, counts.data)
    assert scale.dtype == np.float32 and scale.shape == (counts.shape[0],)
    again = normalise(sp.csr_matrix((found, counts.indices, counts.indptr), shape=counts.shape), scale)
    apart = np.abs(again.data.view(np.int32) - values.data.view(np.int32))
    assert apart.max() <= ULPS and (apart == 0).mean() > 0.8


def test_cells_whose_smallest_count_is_not_one():
    counts = sample()
    rows = counts[:6].toarray()
    rows[0] = np.where(rows[0] > 0, rows[0] + 2, 0)  # 3 and up
    rows[1] *= 8
    rows[1, 1] = 9
    rows[2] = 0
    rows[2, 5] = 7  # one value alone may be any multiple: it counts as 1
    counts = sp.csr_matrix(rows)
    found, _ = recovered(lognorm(counts, 1e4))
    got = sp.csr_matrix((found, counts.indices, counts.indptr), shape=counts.shape).toarray()
    expected = rows.copy()
    expected[2, 5] = 1
    np.testing.assert_array_equal(got, expected)


def test_a_block_does_not_change_a_cell():
    values = lognorm(sample(), 1e4)
    counts, scale = recovered(values)
    some = [recovered(values[start : start + 7]) for start in range(0, values.shape[0], 7)]
    np.testing.assert_array_equal(np.concatenate([part[0] for part in some]), counts)
    np.testing.assert_array_equal(np.concatenate([part[1] for part in some]), scale)


def test_what_was_not_counts_is_left_alone():
    values = lognorm(sample(), 1e4)
    one = values.copy()
    one.data[777] *= 1 + 1e-4  # a single value of a single cell
    assert recovered(one) is None
    averaged = sp.csr_matrix(0.5 * (values[:100].toarray() + values[100:200].toarray()))
    assert recovered(averaged) is None
    huge = sp.csr_matrix(np.array([[1e-9, 20.0]], np.float32))
    assert recovered(huge) is None


@pytest.mark.parametrize("spoilt", [False, True])
def test_prepare_stores_counts_when_every_cell_allows_it(build, save, tmp_path, spoilt):
    raw = [build(seed=1, genes=100), build(seed=2, genes=100)]
    logs = [part.copy() for part in raw]
    for part in logs:
        part.X = lognorm(part.X.astype(np.float64), 1e4)
    if spoilt:
        logs[1].X.data[50] *= 1.001
    paths = [save(part, f"{number}.h5ad") for number, part in enumerate(logs)]
    store, text = run(paths, tmp_path / "s", all_genes=True, total_key="total")
    assert store.manifest["values"]["recovered"] == (not spoilt)
    assert store.manifest["values"]["encoding"] == ("lognorm" if spoilt else "counts")
    assert ("stored as the counts" in text) == (not spoilt)
    assert "--total-key total is not used" in text
    back = anndata.read_zarr(store.path)
    for path, log, counts in zip(paths, logs, raw):
        mine = np.flatnonzero(back.obs["source"] == str(path))
        rows = back.obs["source_row"].to_numpy()[mine]
        held = log.X if spoilt else counts.X
        np.testing.assert_array_equal(filled(back)[mine], held.toarray()[rows])
        np.testing.assert_allclose(store.load().toarray()[mine], log.X.toarray()[rows], rtol=ULPS * 2**-23)

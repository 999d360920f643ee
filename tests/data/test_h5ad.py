"""Reading h5ad files and refusing bad values; every message must name file, column or cell and value."""

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from perturbdiff_jax.data.h5ad import H5ad
from perturbdiff_jax.data.values import normalise, read_checked, scales
from perturbdiff_jax.errors import RequestError


def read(path, *, values="auto", elements=100, layer=None):
    with H5ad(path, layer=layer) as file:
        return read_checked(file, values=values, elements=elements)


def refusal(function, *args, **kwargs):
    with pytest.raises(RequestError) as caught:
        function(*args, **kwargs)
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


def labels(path, column):
    with H5ad(path) as file:
        return file.labels(column, flag="--batch-key")


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix, sp.csr_matrix.toarray])
@pytest.mark.parametrize("elements", [1, 100, 10**6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_every_layout_and_block_size_gives_the_same_counts(adata, save, form, elements, dtype):
    truth = adata.X.toarray()
    adata.X = form(adata.X.astype(dtype))
    got = read(save(adata), elements=elements)
    assert got.encoding == "counts"
    assert got.matrix.dtype == np.uint16
    np.testing.assert_array_equal(got.matrix.toarray(), truth)
    np.testing.assert_array_equal(got.totals, truth.sum(axis=1))


def test_rows_come_out_sorted_without_duplicates_or_stored_zeros(adata, save):
    adata = adata[:2].copy()
    adata.X = sp.csr_matrix(
        (np.array([1, 2, 4, 0, 5], np.float32), np.array([3, 1, 3, 2, 0]), np.array([0, 4, 5])),
        shape=adata.shape,
    )
    matrix = read(save(adata)).matrix
    assert matrix.indices.tolist() == [1, 3, 0]
    assert matrix.data.tolist() == [2, 5, 5]


def test_large_counts_stay_exact(adata, save):
    adata.X = adata.X.astype(np.float64)
    adata.X[3, 0] = 2**24 + 1
    got = read(save(adata))
    assert got.matrix.dtype == np.uint32
    assert got.matrix[3, 0] == 2**24 + 1


def test_log_values_and_layers(adata, save):
    log = normalise(adata.X, np.full(adata.n_obs, 0.37, np.float32))
    adata.layers["log"] = log
    path = save(adata)
    got = read(path, layer="log")
    assert got.encoding == "lognorm" and got.matrix.dtype == np.float32
    np.testing.assert_array_equal(got.matrix.toarray(), log.toarray())
    message = refusal(read, path, layer="lag")
    assert "'lag'" in message and "'log'" in message and str(path) in message


def test_columns_keep_numbers_and_categories_as_text(adata, save):
    adata.obs["plate"] = np.arange(adata.n_obs) % 3
    path = save(adata)
    assert labels(path, "plate")[:4].tolist() == ["0", "1", "2", "0"]
    assert labels(path, "pert").tolist() == adata.obs["pert"].tolist()


def test_normalise_is_log1p_of_count_times_scale():
    counts = sp.csr_matrix(np.array([[1, 0, 3], [0, 2, 0]], np.uint16))
    got = normalise(counts, np.array([2.0, 0.5], np.float32))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got.toarray(), np.log1p([[2, 0, 6], [0, 1, 0]]), rtol=1e-6)


def test_missing_file_folder_and_other_formats(tmp_path):
    assert "no such file" in refusal(H5ad, tmp_path / "none.h5ad")
    assert "folder" in refusal(H5ad, tmp_path)
    (tmp_path / "text.h5ad").write_text("not HDF5")
    message = refusal(H5ad, tmp_path / "text.h5ad")
    assert "text.h5ad" in message and "not an h5ad file" in message
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["numbers"] = np.arange(3)
    assert "numbers" in refusal(H5ad, tmp_path / "other.h5ad")


def test_missing_column_lists_the_closest_first(adata, save):
    path = save(adata)
    message = refusal(labels, path, "doner")
    assert str(path) in message and "--batch-key" in message and "Did you mean 'donor'" in message
    assert "pert, kind, donor, total" in message


def test_missing_labels_name_the_first_cell(adata, save):
    adata.obs.loc[["cell5", "cell9"], "donor"] = None
    message = refusal(labels, save(adata), "donor")
    assert "'donor'" in message and "2 missing" in message and "'cell5'" in message


@pytest.mark.parametrize(
    ("value", "word"), [(np.nan, "NaN or infinite"), (np.inf, "NaN or infinite"), (-2.0, "negative")]
)
@pytest.mark.parametrize("dense", [False, True])
def test_bad_values_are_counted_and_placed(adata, save, value, word, dense):
    adata.X[4, 7] = value
    adata.X[50, 2] = value
    if dense:
        adata.X = adata.X.toarray()
    message = refusal(read, save(adata))
    assert f"2 {word}" in message and "'cell4'" in message and "'g7'" in message and "a.h5ad" in message


def test_an_all_zero_cell_is_named(adata, save):
    counts = adata.X.toarray()
    counts[[11, 60]] = 0
    adata.X = sp.csr_matrix(counts)
    message = refusal(read, save(adata))
    assert "2 all-zero" in message and "'cell11'" in message


@pytest.mark.parametrize(("axis", "word"), [("obs", "cell"), ("var", "gene")])
@pytest.mark.filterwarnings("ignore:.*names are not unique")
def test_duplicated_names(adata, save, axis, word):
    names = getattr(adata, f"{axis}_names").tolist()
    names[1] = names[0]
    setattr(adata, f"{axis}_names", names)
    message = refusal(H5ad, save(adata))
    assert f"duplicated {word} name" in message and names[0] in message


def test_what_is_neither_counts_nor_log_values(adata, save):
    scaled = adata.X.toarray() * 10.3
    adata.X = sp.csr_matrix(scaled)
    message = refusal(read, save(adata))
    assert "not counts" in message and f"{scaled.max():.6g}" in message
    message = refusal(read, save(adata), values="counts")
    assert "--values counts" in message and "'g0'" in message
    assert "--values 'raw'" in refusal(read, save(adata), values="raw")


def test_totals_are_positive_and_not_below_the_cell_sum(adata, save):
    def scale(data):
        with H5ad(save(data)) as file:
            totals = read_checked(file).totals
            return scales(file, totals, total_key="total", target_sum=1e4)

    sums = np.asarray(adata.X.sum(axis=1)).ravel()
    np.testing.assert_allclose(scale(adata), 1e4 / (2 * sums), rtol=1e-6)
    adata.obs.loc["cell3", "total"] = 1.0
    message = refusal(scale, adata)
    assert "'total' is 1 at cell 'cell3'" in message and f"sum to {sums[3]:g}" in message
    adata.obs.loc["cell3", "total"] = 0
    assert "above 0" in refusal(scale, adata)
    adata.obs.loc["cell3", "total"] = np.nan
    assert "missing or infinite" in refusal(scale, adata)
    adata.obs["total"] = "many"
    assert "not numeric" in refusal(scale, adata)


def test_damaged_pointers_are_refused(adata, save):
    path = save(adata)
    with h5py.File(path, "r+") as file:
        file["X/indptr"][5] = 10**6
    assert "damaged" in refusal(read, path)


def test_a_cut_off_file_is_refused(adata, save):
    path = save(adata)
    with h5py.File(path, "r+") as file:
        data = file["X/data"][()]
        del file["X/data"]
        file["X"].create_dataset("data", data=data, chunks=(64,), compression="gzip")
    with h5py.File(path) as file:
        place = file["X/data"].id.get_chunk_info(2)
    with open(path, "r+b") as stream:
        stream.seek(place.byte_offset)
        stream.write(b"\xff" * place.size)
    message = refusal(read, path)
    assert str(path) in message and "damaged" in message


def test_a_file_without_matrix(adata, save):
    empty = anndata.AnnData(obs=adata.obs, var=adata.var, layers={"raw": adata.X})
    message = refusal(H5ad, save(empty))
    assert "X holds no matrix" in message and "raw" in message

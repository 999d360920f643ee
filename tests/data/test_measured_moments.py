"""Moments over the cells that measure a gene: numpy's, with NaN for what is not measured."""

import numpy as np
import scipy.sparse as sp

from perturbdiff_jax.data.gene_selection.moments import MeasuredMoments
from perturbdiff_jax.data.preparation.moments import Moments


def test_mean_and_variance_are_those_of_the_measured_cells():
    rng = np.random.default_rng(0)
    whole = np.full((60, 12), np.nan)
    moments = MeasuredMoments(12)
    # The last gene is measured in one cell.
    for rows, places in ((slice(0, 20), [3, 1, 2]), (slice(20, 59), [0, 5, 3, 4]), (slice(59, 60), [1, 11])):
        places = np.array([*places, 6, 7, 8, 9, 10])
        values = rng.poisson(2.0, size=(len(range(*rows.indices(60))), len(places))).astype(np.float32)
        sums = Moments(len(places))
        sums.add(sp.csr_matrix(np.log1p(values)))
        moments.join_file(places, sums)
        whole[rows, places] = values
    assert moments.cells.tolist() == (~np.isnan(whole)).sum(axis=0).tolist()
    mean, variance = moments.mean_and_variance()
    np.testing.assert_allclose(mean, np.nanmean(whole, axis=0), rtol=1e-5)
    np.testing.assert_allclose(variance[:11], np.nanvar(whole[:, :11], axis=0, ddof=1), rtol=1e-4)
    assert moments.cells[11] == 1 and abs(variance[11]) < 1e-4
    kept = moments.keep(np.array([4, 0])).mean_and_variance()
    np.testing.assert_array_equal(kept, [mean[[4, 0]], variance[[4, 0]]])

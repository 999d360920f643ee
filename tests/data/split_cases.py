"""Made-up conditions (3 cell types x 2 donors x 4 cytokines and PBS) for the tests of splits."""

import numpy as np
import pytest

from perturbdiff_jax.data.conditions import SPLITS, Conditions
from perturbdiff_jax.data.splits import assign
from perturbdiff_jax.errors import RequestError

TRIPLES = [
    (cell_type, batch, perturbation)
    for cell_type in ("T", "B.naive", "NK")
    for batch in ("d1", "d2")
    for perturbation in ("PBS", "P1", "P2", "P3", "P4")
    if (cell_type, perturbation) != ("NK", "P4")
]
COLUMNS = {"perturbation": "cytokine", "cell_type": "kind", "batch": "donor"}


def conditions(triples=TRIPLES):
    kinds, batches, names = zip(*triples, strict=True)
    return Conditions(names, kinds, batches, control="PBS", columns=COLUMNS)


def splits_of(assignment, triples=TRIPLES):
    assert assignment.codes.dtype == np.int8
    return {triple: SPLITS[code] for triple, code in zip(triples, assignment.codes, strict=True)}


def refusal(path=None, **kwargs):
    with pytest.raises(RequestError) as caught:
        assign(conditions(), split=path, **kwargs)
    assert len(str(caught.value).splitlines()) <= 2
    assert path is None or kwargs or str(path) in str(caught.value)
    return str(caught.value)

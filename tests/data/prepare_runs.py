"""Running prepare in tests: what it returns, prints and refuses."""

import os

import pytest
import scipy.sparse as sp

from perturbdiff_jax.data.prepare import PrepareOptions, prepare
from perturbdiff_jax.errors import RequestError

KEYS = {"perturbation_key": "pert", "control": "control", "cell_type_key": "kind", "batch_key": "donor"}


def run(inputs, output, **options):
    """(store, the printed lines in one text)."""
    lines = []
    inputs = inputs if isinstance(inputs, list) else [inputs]
    given = {"workers": 1, **KEYS, **options}
    store = prepare(inputs, output, PrepareOptions(**given), echo=lines.append)
    return store, "\n".join(lines)


def refusal(inputs, output, **options):
    before = sorted(os.listdir(output.parent))
    with pytest.raises(RequestError) as caught:
        run(inputs, output, **options)
    assert sorted(os.listdir(output.parent)) == before, "something half-written was left"
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


def filled(adata):
    """X as a plain array, whichever way the store holds it."""
    return adata.X.toarray() if sp.issparse(adata.X) else adata.X

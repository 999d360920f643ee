"""Making gene vocabularies in tests: small files of counts, what is printed and what is refused."""

import os

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from perturbdiff_jax.data.gene_vocabulary import VocabularyOptions, gene_vocabulary
from perturbdiff_jax.errors import RequestError


def cells_of(cells, genes, seed, *, names=None):
    """Raw counts of genes that differ in mean and spread, in another way for every seed; no empty cell."""
    rng = np.random.default_rng(seed)
    rate = np.random.default_rng(99).gamma(0.4, 3.0, size=genes)
    group = rng.integers(0, 3, size=(cells, 1))
    bend = np.exp(rng.normal(0, 0.8, size=(3, genes)))[group[:, 0]]
    counts = rng.poisson(rate * bend).astype(np.float32)
    counts[:, 0] += 1
    names = [f"g{i:03d}" for i in range(genes)] if names is None else names
    obs = pd.DataFrame({"total": counts.sum(axis=1) * 2}, index=[f"c{i}" for i in range(cells)])
    return anndata.AnnData(X=sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=list(names)))


def run(inputs, output, **options):
    """(vocabulary, the printed lines in one text)."""
    lines = []
    given = {"composites": 1, "hvg": 20, "workers": 1, **options}
    found = gene_vocabulary(inputs, output, VocabularyOptions(**given), echo=lines.append)
    return found, "\n".join(lines)


def refusal(inputs, output, **options):
    """The message, of two lines at most; nothing may have been written."""
    before = sorted(os.listdir(output.parent)) if output.parent.is_dir() else None
    with pytest.raises(RequestError) as caught:
        run(inputs, output, **options)
    assert before is None or sorted(os.listdir(output.parent)) == before, "something half-written was left"
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)

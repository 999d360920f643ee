"""The store and the bundle that finetuned runs of these tests begin with."""

import pytest
from covariate_runs import untrained
from first_states import SEEN, saved
from tiny_run import tiny_config

from perturbdiff_jax.run_store import open_store
from perturbdiff_jax.settings import from_config


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    return open_store(from_config(tiny_config()), tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def source(store, tmp_path_factory):
    """A bundle with drawn weights; its averages are what is taken."""
    return saved(untrained(store, tmp_path_factory.mktemp("source") / "bundle", **SEEN))

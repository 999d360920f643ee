"""A run whose blocks are a loop, as on accelerators: resumed it is the unbroken one, in whichever way it goes on."""

import shutil

import jax
import numpy as np
import pytest
from tiny_run import EVERY, STEPS, state_of, tiny_config

from perturbdiff_jax import train, validation
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.run_setup import settle
from perturbdiff_jax.settings import from_config


def train_with(scan, workdir):
    """Trains what is left in `workdir` and returns the last state on disk."""
    store = Store.open(workdir / "store")
    changes = {"model__depth": 3, "model__scan": scan}
    settings = settle(from_config(tiny_config(**changes)), store)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation.SampledValidation, "__call__", lambda *_: {"validation/energy": 1.0})
        train.train(settings, store, workdir)
    return state_of(workdir, STEPS, **changes)[0]


@pytest.fixture(scope="module")
def unbroken(finished, tmp_path_factory):
    """(work directory, last state) of a run with three layers, two of them in a loop."""
    workdir = tmp_path_factory.mktemp("loop") / "run"
    shutil.copytree(finished.workdir / "store", workdir / "store")
    return workdir, train_with("yes", workdir)


@pytest.mark.parametrize(("scan", "apart"), [("yes", 0.0), ("no", 1e-5)])
def test_a_resumed_loop_is_the_unbroken_one(unbroken, tmp_path, capsys, scan, apart):
    workdir, want = unbroken
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/bundle/checkpoints" / str(STEPS))
    found = train_with(scan, tmp_path / "run")
    assert f"Resuming at step {EVERY} of {STEPS}." in capsys.readouterr().out
    assert {leaf.shape[0] for leaf in jax.tree.leaves(want.params["blocks"])} == {2}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=apart), found, want)

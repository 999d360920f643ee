"""Settings of the whole suite: eight virtual CPU devices, and silent rank promotion is an error."""

import os
import pathlib

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def shared() -> pathlib.Path:
    """The folder of recorded arrays and real data beside the checkout; the test is skipped without it."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (recorded arrays and real data), which is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The tiny job, run once through its command line. It is shared: do not change its directory."""
    from perturbdiff_jax import main
    from tiny_run import ROOT, Finished, flags, said

    workdir = tmp_path_factory.mktemp("tiny") / "run"
    code, out, err = said(main.run, f"--config={ROOT}/configs/quickstart.py", f"--workdir={workdir}", *flags())
    return Finished(workdir, code, out, err)

"""Settings of the whole suite: eight virtual CPU devices, silent rank promotion is an error, quick compilation."""

import atexit
import os
import pathlib
import shutil
import tempfile
from importlib.metadata import version

# Nearly all the time of these tests is compilation, so it is asked for no optimisation and remembers what it did.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    + " --xla_llvm_disable_expensive_passes=true"
)
# With as many threads as devices, collectives over several axes of a mesh may wait for each other until XLA aborts.
os.environ["NPROC"] = "64"
# Later versions know no other emitters; here the old ones take half the time.
if version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

COMPILED = tempfile.mkdtemp(prefix="compiled")
atexit.register(shutil.rmtree, COMPILED, ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", COMPILED)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
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
    from tiny_run import QUICKSTART, Finished, flags, said

    from perturbdiff_jax import main

    workdir = tmp_path_factory.mktemp("tiny") / "run"
    code, out, err = said(main.run, f"--config={QUICKSTART}", f"--workdir={workdir}", *flags())
    return Finished(workdir, code, out, err)


@pytest.fixture(scope="session")
def model(finished):
    """The tiny job's trained model."""
    import perturbdiff_jax

    return perturbdiff_jax.load(finished.workdir)


@pytest.fixture(scope="session")
def screen(finished):
    """The tiny job's simulated cells."""
    import anndata

    return anndata.read_h5ad(finished.workdir / "simulated.h5ad")

"""The two recorded networks beside the checkout: case1 from scratch (one-hot), case3 pretraining (several sources)."""

import functools
import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded import Network, sources_of

from perturbdiff_jax.models.mmdit import Denoiser, ModelOptions
from perturbdiff_jax.released.names import Layout, from_released

SOURCES = ("pbmc", "tahoe100m", "replogle", "cellxgene")
FOLDER = pathlib.Path(__file__).resolve().parents[3] / "shared/golden"


def from_scratch() -> tuple[Denoiser, Layout, float]:
    options = ModelOptions(width=64, depth=3, heads=4, covariate_width=16)
    return Denoiser(options, genes=50, perturbations=7, cell_types=4, batches=3), Layout(depth=3), 0.0


def pretraining() -> tuple[Denoiser, Layout, float]:
    options = ModelOptions(width=32, depth=2, heads=4, covariate_width=8, use_perturbation="no")
    sizes = {"genes": 60, "perturbations": 5, "cell_types": 6, "batches": 12}
    model = Denoiser(options, **sizes, sources=len(SOURCES), cell_type_table=(6, 24))
    return model, Layout(depth=2, sources=SOURCES, cell_type="frozen"), 1.0


CASES = {"case1": from_scratch, "case3": pretraining}


@pytest.fixture(scope="session", params=CASES)
def case(request):
    """`network`, its recorded `inputs` and `meta`, and `load(name)` for the other files."""
    if not FOLDER.is_dir():
        pytest.skip("needs ../shared (recorded arrays), which is not beside this checkout")

    @functools.cache
    def load(name):
        with np.load(FOLDER / request.param / f"{name}.npz") as file:
            return dict(file)

    model, layout, drop_control = CASES[request.param]()
    params, unused = from_released(load("params"), layout, where=request.param)
    inputs = load("inputs")
    network = Network(
        name=request.param,
        model=model,
        params=jax.tree.map(jnp.asarray, params),
        layout=layout,
        codes=tuple(jnp.asarray(inputs[f"cov_{kind}"], jnp.int32) for kind in ("pert", "celltype", "batch")),
        source=sources_of(layout, inputs["ds_name"]),
        drop_control=drop_control,
    )
    return types.SimpleNamespace(
        name=request.param,
        network=network,
        load=load,
        folder=FOLDER / request.param,
        inputs={name: jnp.asarray(a) for name, a in inputs.items() if a.dtype.kind in "fi"},
        meta=json.loads((FOLDER / request.param / "meta.json").read_text()),
        unused=set(unused),
        sources_of=functools.partial(sources_of, layout),
    )

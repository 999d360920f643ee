"""Packaging of perturbdiff_jax; tool settings live in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$',
    (HERE / "perturbdiff_jax" / "__init__.py").read_text(),
    flags=re.MULTILINE,
).group(1)

EVAL = ["cell-eval>=0.8.2,<0.9", "matplotlib>=3.9,<4", "umap-learn>=0.5.7,<0.6"]
TEST = [
    *EVAL,
    "ipykernel>=6.29,<8",
    "moto[server]>=5,<6",
    "nbclient>=0.10,<0.12",
    "playwright>=1.49,<2",
    "pytest>=9,<10",
    "pytest-xdist>=3.5,<4",
    "ruff>=0.8,<1",
    "scanpy>=1.11,<1.13",
]

setup(
    name="perturbdiff_jax",
    version=VERSION,
    description="JAX/Flax implementation of PerturbDiff: diffusion over distributions of single cells",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    package_data={"perturbdiff_jax.evaluation.page": ["*.css", "*.js"]},
    python_requires=">=3.11",
    packages=find_packages(include=["perturbdiff_jax", "perturbdiff_jax.*"]),
    install_requires=[
        "absl-py>=2.1,<3",
        "anndata>=0.12,<0.14",
        "chex>=0.1.90,<0.2",
        "flax>=0.12,<0.14",
        "grain>=0.2.12,<0.4",
        "jax>=0.10,<0.13",
        "ml_collections>=1.0,<2",
        "numpy>=2.0,<3",
        "optax>=0.2.5,<0.3",
        "orbax-checkpoint>=0.11.25,<0.13",
        "pandas>=2.2,<4",
        "scipy>=1.14,<2",
        "tensorboardX>=2.6,<3",
        "tensorstore>=0.1.75,<0.2",
        "zarr>=3.0,<4",
    ],
    # jax names the libtpu that fits it: with a later one some programs cannot be read back.
    extras_require={"eval": EVAL, "test": TEST, "tpu": ["jax[tpu]>=0.10,<0.13"]},
    entry_points={"console_scripts": ["perturbdiff = perturbdiff_jax.cli:run"]},
)

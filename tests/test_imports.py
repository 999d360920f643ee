"""Imports go one way: cli/main -> train/predict -> step -> {models, diffusion, kernels}; data knows no model."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "perturbdiff_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
# Rooms from the cellar to the roof. A file may import from its own floor and below it.
FLOORS = (
    {"errors", "array_types", "pickles", "history"},
    {
        "data",
        "kernels",
        "rng",
        "sharding",
        "processes",
        "process_environment",
        "checkpoint_folder",
        "host_memory",
        "interruption",
        "run_lock",
        "stored_arrays",
    },
    {"diffusion", "evaluation"},
    {"models"},
    {"optim", "state", "telemetry"},
    {"data_options", "run_options"},
    {"bundle", "settings", "covariate_tables", "recipes"},
    {"step", "checkpoint", "placement"},
    {"vocabulary", "run_record", "covariate_setup"},
    {"prediction"},
    {"validation", "run_setup", "run_store", "training_sets"},
    {"predict", "released", "loop"},
    {"holdout", "finetuning"},
    {"train", "convert"},
    {"main"},
    {"commands"},
    {"cli"},
)
FORBIDDEN = {
    "data": {
        "models",
        "diffusion",
        "kernels",
        "evaluation",
        "step",
        "train",
        "predict",
        "prediction",
        "settings",
    },
    "evaluation": {"train", "predict", "prediction", "step", "models", "diffusion", "settings", "checkpoint"},
    "models": {"diffusion", "data", "evaluation", "step", "kernels"},
    "diffusion": {"models", "data", "evaluation", "step"},
    "kernels": {"models", "diffusion", "data", "evaluation", "step"},
}


def imported(file):
    """(names of other packages' roots, names of our rooms) that a file imports, anywhere in it."""
    others, rooms = set(), set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names = [node.module]
            if node.module == "perturbdiff_jax":
                names = [f"perturbdiff_jax.{alias.name}" for alias in node.names]
        for name in names:
            root, *rest = name.split(".")
            if root != "perturbdiff_jax":
                others.add(root)
            elif rest:
                rooms.add(rest[0])
    return others, rooms


def room(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(file):
    others, rooms = imported(file)
    mine = room(file)
    assert not rooms & FORBIDDEN.get(mine, set())
    if mine != "models":
        assert not {"flax", "haiku", "equinox"} & others, "only models/ imports flax"
    assert not {"torch", "sklearn", "scanpy"} & others
    floors = {name: number for number, names in enumerate(FLOORS) for name in names}
    if mine == "__init__":  # the door: opens what is behind it when it is asked for
        assert rooms <= {"predict", "prediction", "evaluation", "kernels"}
        return
    assert mine in floors, f"say in FLOORS where {mine} belongs"
    known = {name for name in rooms if name in floors}
    assert all(floors[name] <= floors[mine] for name in known), sorted(known)
    assert {"load"} | known >= rooms


def test_importing_the_package_is_quick():
    import subprocess
    import sys

    code = "import sys, perturbdiff_jax; print([m for m in ('jax', 'flax', 'anndata', 'orbax') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "[]", done.stderr

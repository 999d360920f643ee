"""A prediction that is killed at its worst moments, in real processes, ends with the file of the unbroken one."""

import json
import os
import subprocess
import sys

import anndata
import jax
import pytest
from tiny_run import ROOT

MOMENTS = (
    "before_anything_is_walked",
    "in_the_middle_of_a_part",
    "before_a_part_gets_its_name",
    "between_two_parts",
    "while_the_parts_are_joined",
    "before_the_file_gets_its_name",
    "while_the_parts_are_removed",
    "not_at_all",
)
# 8 populations of 15 sets on 2 devices, which walk 16 sets each at a time: 4 batches.
PARTS = 8


def processes(workdir, output, *moments):
    """(exit code and files that are left, what was said) by moment."""
    flags = [word for word in os.environ["XLA_FLAGS"].split() if "device_count" not in word]
    environ = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": " ".join([*flags, "--xla_force_host_platform_device_count=2"]),
        "PYTHONPATH": os.pathsep.join(map(str, [ROOT, ROOT / "tests"])),
    }
    output.parent.mkdir()
    command = [sys.executable, ROOT / "tests/prediction/killed_predictions.py", workdir, output, *moments]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = {moment: output.with_name(f"{output.name}.{moment}.txt").read_text() for moment in moments}
    return json.loads(done.stdout), said


@pytest.fixture(scope="module")
def tormented(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    left, said = processes(finished.workdir, folder / "broken" / "p.h5ad", *MOMENTS)
    unbroken, _ = processes(finished.workdir, folder / "unbroken" / "p.h5ad", "not_at_all")
    assert unbroken == {"not_at_all": [0, ["p.h5ad"]]}
    return folder, left, said


def parts_there(said, moment):
    lines = [line for line in said[moment].splitlines() if line.startswith("Resuming ")]
    return int(lines[0].split(": ")[1].split(" of ")[0]) if lines else 0


def test_every_process_was_killed_and_the_last_was_not(tormented):
    _, left, said = tormented
    assert {moment: code for moment, (code, _) in left.items()} == {
        moment: 0 if moment == "not_at_all" else -9 for moment in MOMENTS
    }, said


def test_each_kill_loses_at_most_the_part_under_way(tormented):
    _, left, said = tormented
    assert {moment: parts_there(said, moment) for moment in MOMENTS} == {
        "before_anything_is_walked": 0,
        "in_the_middle_of_a_part": 0,
        "before_a_part_gets_its_name": 2,
        "between_two_parts": 4,
        "while_the_parts_are_joined": 7,
        "before_the_file_gets_its_name": 8,
        "while_the_parts_are_removed": 8,
        "not_at_all": 7,
    }
    assert f"p.h5ad: 4 of {PARTS} parts are there." in said["between_two_parts"]
    names = {moment: [name for name in files if "part-" in name] for moment, (_, files) in left.items()}
    assert names["in_the_middle_of_a_part"] == [
        "p.h5ad.parts/part-0000000.npz",
        "p.h5ad.parts/part-0000001.npz",
        "p.h5ad.parts/part-0000002.npz.partial",
    ]


def test_no_kill_leaves_a_half_written_file_under_the_outputs_name(tormented):
    _, left, said = tormented
    for moment in MOMENTS[:-2]:
        assert "p.h5ad" not in left[moment][1]
    assert "p.h5ad" in left["while_the_parts_are_removed"][1]
    assert not any("warning" in text or "Traceback" in text for text in said.values())


def test_the_end_is_the_file_of_the_unbroken_prediction(tormented):
    folder, left, _ = tormented
    assert left["not_at_all"][1] == ["p.h5ad"]  # parts and leftovers are gone
    ours, unbroken = (folder / name / "p.h5ad" for name in ("broken", "unbroken"))
    assert anndata.read_h5ad(ours).obs["perturbation"].value_counts()["P05"] == 480
    assert ours.read_bytes() == unbroken.read_bytes()

"""A prepare that is killed at any moment and run again writes the store that an unbroken run writes."""

import json
import pathlib
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("workers", "times", "steps"), [(1, 10, 8), (2, 2, 0)])
def test_killed_at_random_moments(build, save, tmp_path, workers, times, steps):
    source = save(build(cells=1250, genes=60))  # 20,000 cells
    script = pathlib.Path(__file__).with_name("killed_prepare.py")
    words = [sys.executable, str(script), str(source), str(tmp_path), *map(str, (workers, times, steps))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    killed = found["timed"] + found["stepped"]
    assert {run["hash"] for run in killed} == {found["hash"]}
    unfinished = [run for run in killed if not run["finished"]]
    assert unfinished
    assert not any(run["rest"] for run in unfinished), "the second run leaves nothing beside the store"
    for what in ("scan", "part", "store"):
        reached = [run for run in found["stepped"] if what in run["left"]]
        assert reached or not steps, f"no kill came after {what}"

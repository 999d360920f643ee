"""Parts of a prediction: taken up where it was broken off, never mixed with those of another."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest
import scipy.sparse as sp
from small_jobs import CONTEXTS, broken, bundle, controls, heard, job, request, some
from tiny_run import ROOT

from perturbdiff_jax.errors import RequestError, RunError
from perturbdiff_jax.prediction import h5ad_file
from perturbdiff_jax.prediction.parts import PartFolder

HOLDER = """
import pathlib, sys
from perturbdiff_jax.prediction.parts import PartFolder
with PartFolder(pathlib.Path(sys.argv[1]), {}, sets_per_part=1):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def unbroken(tmp_path):
    path = some().job.to_file(tmp_path / "unbroken" / "p.h5ad")
    return path.read_bytes()


@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_job_that_was_broken_off_goes_on_and_ends_the_same(tmp_path, unbroken, after):
    path = tmp_path / "p.h5ad"
    broken(path, some().job, after)
    assert len(list((tmp_path / "p.h5ad.parts").glob("part-*.npz"))) == after and not path.exists()
    ours, lines = heard(some().job)
    total = ours.walker.plan(ours.requests).parts
    assert broken(path, ours, 0) == list(range(after, total))
    ours, lines = heard(some().job)
    assert ours.to_file(path).read_bytes() == unbroken
    assert lines == [f"Resuming {path}: {after} of {total} parts are there."]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["p.h5ad", "unbroken"]


def test_a_job_that_did_nothing_leaves_nothing(tmp_path):
    broken(tmp_path / "p.h5ad", some().job, 0)
    assert not list(tmp_path.iterdir())


def test_parts_stay_when_the_last_step_fails(tmp_path, unbroken, monkeypatch):
    path = tmp_path / "p.h5ad"
    monkeypatch.setattr(h5ad_file, "_write_obs", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        some().job.to_file(path)
    monkeypatch.undo()
    ours = some().job
    ours.walker._walk = None  # everything has been walked
    assert ours.to_file(path).read_bytes() == unbroken


def test_more_devices_take_over_the_parts_of_one(tmp_path, unbroken):
    path, few = tmp_path / "p.h5ad", some()
    broken(path, few.job, 2)
    many = job(few.requests, few.controls, few.bundle, devices=jax.devices()[:3])
    assert many.walker.plan(few.requests, 2).parts == many.walker.plan(few.requests).parts == 5
    assert many.to_file(path).read_bytes() == unbroken
    # With so many that parts would be cut smaller, the cut is that of the beginning.
    given = few.requests, few.controls, few.bundle
    broken(path, job(*given, sets_per_batch=3), 2)
    many = job(*given, sets_per_batch=3, devices=jax.devices())
    assert many.walker.plan(few.requests).parts == 5
    assert broken(path, many, 0) == [2, 3]
    assert job(*given, sets_per_batch=3, devices=jax.devices()).to_file(path).read_bytes() == unbroken


def others():
    """Jobs that differ from `some` in one thing, with what is to be said of it."""
    one = some()
    yield job(one.requests, one.controls, one.bundle, seed=1), "seed was 0, is 1"
    yield job(one.requests[1:], one.controls, one.bundle), "design was '5 populations, 34 cells"
    other = [request(one.controls, "P5"), *one.requests[1:]]
    yield job(other, one.controls, one.bundle), "design was '5 populations, 34 cells"
    other = controls(names="other-{}-{}")
    yield job(one.requests, other, one.bundle), "controls was '15 cells"
    other = controls()
    other.cells[CONTEXTS[0]].data[0] += 1
    yield job(one.requests, other, one.bundle), "controls was '15 cells"
    yield job(one.requests, one.controls, bundle(trained=[])), "bundle was"
    yield job(one.requests, one.controls, one.bundle, cells_per_set=5), "cells per set was 4, is 5"
    step = one.job.uns | {"checkpoint_step": 9}
    yield dataclasses.replace(one.job, uns=step), "checkpoint step was 6, is 9"
    yield dataclasses.replace(one.job, params={"w": np.zeros(3)}), "checkpoint weights was"
    walk = one.job.uns | {"sampler": one.job.uns["sampler"] | {"guidance": 1.0}}
    yield dataclasses.replace(one.job, uns=walk), "sampler guidance was 0.0, is 1.0"


@pytest.mark.parametrize(("other", "message"), list(others()), ids=[text for _, text in others()])
def test_parts_of_another_request_are_refused_by_name_and_never_mixed(tmp_path, other, message, capsys):
    path = tmp_path / "p.h5ad"
    broken(path, some().job, 2)
    before = {file.name: file.read_bytes() for file in (tmp_path / "p.h5ad.parts").glob("part-*")}
    with pytest.raises(RequestError) as error:
        other.to_file(path)
    assert message in str(error.value) and len(str(error.value).splitlines()) == 2
    assert str(error.value).startswith(f"{path}.parts: holds 2 parts of another prediction: ")
    assert {file.name: file.read_bytes() for file in (tmp_path / "p.h5ad.parts").glob("part-*")} == before
    # Without the record every part still tells whose it is.
    (tmp_path / "p.h5ad.parts/request.json").unlink()
    expected = other.to_file(tmp_path / "expected" / "q.h5ad").read_bytes()
    assert other.to_file(path).read_bytes() == expected
    assert "part-0000000.npz and 1 more: damaged" in capsys.readouterr().err


def test_parts_of_another_request_give_way_when_asked(tmp_path, capsys):
    path, other = tmp_path / "p.h5ad", next(others())[0]
    broken(path, some().job, 2)
    expected = other.to_file(tmp_path / "q.h5ad").read_bytes()
    assert other.to_file(path, anew=True).read_bytes() == expected
    said = capsys.readouterr().out
    assert "holds 2 parts of another prediction: seed was 0, is 1. They are removed." in said


def test_many_genes_need_wide_indices(tmp_path):
    cells = sp.csr_matrix(([1.5, 2.5], ([0, 1], [3, 70_000])), shape=(2, 70_001), dtype=np.float32)
    with PartFolder(tmp_path / "p.h5ad", {}, sets_per_part=1) as parts:
        parts.write(0, cells)
        assert (parts.read(0, cells.shape) != cells).nnz == 0


def test_what_is_not_ours_is_left_alone(tmp_path):
    folder = tmp_path / "p.h5ad.parts"
    folder.mkdir()
    (folder / "thesis.tex").write_text("chapter")
    with pytest.raises(RequestError, match=r"holds 'thesis\.tex', which is no part of a prediction"):
        some().job.to_file(tmp_path / "p.h5ad")
    assert [file.name for file in folder.iterdir()] == ["thesis.tex"]
    (tmp_path / "q.h5ad.parts").write_text("")
    with pytest.raises(RequestError, match=r"q\.h5ad\.parts: is in the way"):
        some().job.to_file(tmp_path / "q.h5ad")


def test_a_full_disk_is_told_with_what_is_safe(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(h5ad_file.h5py, "File", full)
    with pytest.raises(
        RunError, match=r"no space is left on the disk\.\nFinished parts stay in .*p\.h5ad\.parts; make"
    ):
        some().job.to_file(tmp_path / "p.h5ad")


def test_a_second_process_on_the_same_output_is_refused(tmp_path, unbroken):
    path = tmp_path / "p.h5ad"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(RequestError) as error:
            some().job.to_file(path)
        assert f"--output {path}: another run is writing it (process {process.pid} on " in str(error.value)
        assert str(error.value).endswith("Wait until it is done or stop it, or give another --output.")
        process.kill()
    assert some().job.to_file(path).read_bytes() == unbroken

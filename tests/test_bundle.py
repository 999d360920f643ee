"""The checkpoint bundle: what is missing, damaged or of another version is named in one line, never guessed."""

import json
import logging
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny_run import EVERY, ROOT, STEPS

from perturbdiff_jax import cli, load
from perturbdiff_jax.bundle import read_bundle
from perturbdiff_jax.errors import RequestError


@pytest.fixture
def bundle(finished, tmp_path):
    return shutil.copytree(finished.workdir / "bundle", tmp_path / "bundle")


def edit(bundle, change):
    content = json.loads((bundle / "bundle.json").read_text())
    change(content)
    (bundle / "bundle.json").write_text(json.dumps(content))


def test_opens_from_the_run_or_the_bundle_itself(finished):
    a, b = load(finished.workdir), load(finished.workdir / "bundle")
    assert a.path == b.path and a.step == b.step
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


def test_best_and_latest(finished):
    best, latest = load(finished.workdir), load(finished.workdir, which="latest")
    assert latest.step == STEPS and best.step in (EVERY, STEPS)
    scores = {r["step"]: r["validation/energy"] for r in finished.log() if r["kind"] == "validation"}
    assert best.step == min(scores, key=scores.get)
    with pytest.raises(RequestError, match="which='first': allowed are best, latest"):
        load(finished.workdir, which="first")


def test_nothing_of_the_libraries_is_said(finished, caplog, capfd):
    with caplog.at_level(logging.WARNING):
        load(finished.workdir)
    assert caplog.records == [] and capfd.readouterr() == ("", "")


def test_other_warnings_of_the_libraries_are_not_hidden(caplog):
    from absl import logging as absl_logging

    with caplog.at_level(logging.WARNING):
        absl_logging.warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]


@pytest.mark.parametrize(
    ("version", "model", "remat"),
    [
        (3, {"scan": True}, "dots"),
        (3, {"scan": False}, "dots"),
        (2, {"scan": True, "remat": True}, "full"),
        (2, {"scan": True, "remat": False}, "none"),
    ],
)
def test_bundles_of_earlier_versions_are_read(bundle, finished, version, model, remat):
    """Switches of then are choices now."""

    def age(content):
        content["settings"]["model"] |= {"remat": "dots"} | model
        content["version"] = version

    edit(bundle, age)
    found = load(bundle)
    assert (found.options.model.scan, found.options.model.remat) == ("auto", remat)
    jax.tree.map(np.testing.assert_array_equal, found.params, load(finished.workdir).params)


def unlink(name):
    return lambda bundle: (bundle / name).unlink()


def remove(name):
    return lambda bundle: shutil.rmtree(bundle / name)


def hollow(bundle):
    for step in (bundle / "checkpoints").iterdir():
        shutil.rmtree(step)


def lost_arrays(bundle):
    for step in (bundle / "checkpoints").iterdir():
        for part in (step / "ema").rglob("*"):
            if part.is_file():
                part.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (unlink("bundle.json"), "not a checkpoint bundle (bundle.json is missing)"),
        (remove("checkpoints"), "the bundle is incomplete, it holds no checkpoint yet"),
        (hollow, "the bundle is incomplete, it holds no checkpoint yet"),
        (
            lambda b: (b / "bundle.json").write_text('{"format": "perturbdiff-bundle", "ver'),
            "bundle.json: damaged",
        ),
        (lambda b: (b / "bundle.json").write_bytes(b"\xff\xfe\x00"), "bundle.json: damaged"),
        (lambda b: (b / "bundle.json").write_text("[]"), "not a perturbdiff-bundle file"),
        (lambda b: edit(b, lambda c: c.update(format="other")), "not a perturbdiff-bundle file"),
        (
            lambda b: edit(b, lambda c: c.update(version=9)),
            "bundle version 9; this release reads versions 1 to 4",
        ),
        (lambda b: edit(b, lambda c: c.pop("genes")), "damaged, keys missing or unknown: genes"),
        (lambda b: edit(b, lambda c: c.update(gens=[])), "damaged, keys missing or unknown: gens"),
        (lambda b: edit(b, lambda c: c.update(genes=None)), "damaged, genes must be a list"),
        (
            lambda b: edit(b, lambda c: c["settings"]["model"].update(widht=3)),
            "bundle.json: config: unknown config",
        ),
        (
            lambda b: edit(b, lambda c: c["settings"]["model"].update(width=32)),
            "the bundle is damaged, checkpoint",
        ),
        (lambda b: edit(b, lambda c: c["genes"].pop()), "the bundle is damaged, checkpoint"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(bundle, spoil, message, capsys):
    spoil(bundle)
    command = [
        "predict",
        "--checkpoint",
        str(bundle),
        "--input",
        "i.h5ad",
        "--output",
        "o",
        "--perturbations",
        "P02",
    ]
    assert cli.run(command) == 2
    err = capsys.readouterr().err
    assert message in err and str(bundle) in err and len(err.splitlines()) <= 2


@pytest.mark.parametrize(
    "spoil", [lambda b: edit(b, lambda c: c["genes"].pop()), lost_arrays], ids=["other shapes", "lost"]
)
def test_arrays_that_are_not_the_bundles_are_refused_without_a_library_speaking_up(bundle, spoil):
    """In a process of its own: Orbax leaves broken reads behind that would speak up in another test."""
    spoil(bundle)
    code = "import sys; from perturbdiff_jax.cli import run; sys.exit(run())"
    words = f"predict --checkpoint {bundle} --input i.h5ad --output o --perturbations P02".split()
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"error: {bundle}: the bundle is damaged, checkpoint")
    assert len(done.stderr.splitlines()) == 1


def test_a_directory_above_the_bundle_is_told_where_it_is(bundle):
    with pytest.raises(RequestError, match=r"Did you mean .*bundle"):
        read_bundle(bundle.parent)

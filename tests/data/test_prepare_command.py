"""The words of `perturbdiff prepare`: sizes, defaults, and that exactly one job is asked for."""

import argparse

import pytest

from perturbdiff_jax import cli
from perturbdiff_jax.commands import prepare as command
from perturbdiff_jax.commands.reading import size


def parsed(*words):
    parser = argparse.ArgumentParser()
    command.fill(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        ("1000", 1000),
        ("512MiB", 512 << 20),
        ("2GiB", 2 << 30),
        ("1.5gb", 1_500_000_000),
        ("3 TiB", 3 << 40),
        ("9B", 9),
    ],
)
def test_sizes(text, bytes_):
    assert size(text) == bytes_


@pytest.mark.parametrize("text", ["", "2G", "GiB", "-1GiB", "1..5GiB", "two"])
def test_what_is_no_size(text):
    with pytest.raises(argparse.ArgumentTypeError, match="512MiB"):
        size(text)


def test_defaults():
    args = parsed()
    assert (args.memory, args.codec, args.scratch) == (2 << 30, "lz4", None) and args.workers is None
    assert parsed("--merge", "a", "b").merge == ["a", "b"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "one of --input, --merge and --verify; given: none"),
        (["--input", "a.h5ad", "--verify", "s"], "given: --input, --verify"),
        (["--input", "a.h5ad", "--output", "s"], "required: --perturbation-key, --control"),
        (["--input", "a.h5ad", "--unperturbed"], "required: --output"),
        (["--merge", "a", "--output", "s", "--unperturbed"], "--unperturbed has no meaning with --merge"),
        (["--merge", "a"], "required: --output"),
        (["--verify", "s", "--output", "t"], "--output has no meaning with --verify"),
        (["--verify", "s", "--workers", "0"], "--workers 0"),
        (["--verify", "s", "--memory", "0"], "--memory"),
        (["--verify", "s", "--memory", "lots"], "512MiB"),
        (["--verify", "s", "--codec", "gzip"], "zstd"),
        (["--verify", "nowhere"], "nowhere: no such store"),
    ],
)
def test_requests_that_make_no_sense(words, said, capsys):
    assert cli.run(["prepare", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_what_is_asked_reaches_the_job(monkeypatch):
    got = []
    monkeypatch.setattr("perturbdiff_jax.data.prepare.prepare", lambda *given: got.append(given))
    monkeypatch.setattr("perturbdiff_jax.data.storage.merge.merge", lambda *given: got.append(given))
    keys = ["--perturbation-key", "pert", "--control", "ctrl"]
    more = ["--memory", "1GiB", "--workers", "3", "--codec", "zstd", "--scratch", "/x", "--seed", "5"]
    assert cli.run(["prepare", "--input", "a", "b", "--output", "s", *keys, *more]) == 0
    inputs, output, options = got.pop()
    assert (inputs, output, options.memory, options.workers) == (["a", "b"], "s", 1 << 30, 3)
    assert (options.codec, options.scratch, options.seed, options.control) == ("zstd", "/x", 5, "ctrl")
    assert cli.run(["prepare", "--input", "a", "--output", "s", *keys]) == 0
    assert 1 <= got.pop()[2].workers <= 8  # the CPUs at hand
    assert cli.run(["prepare", "--merge", "a", "--output", "s", "--holdout", "0.3", "--seed", "5"]) == 0
    inputs, output, options = got.pop()
    assert (inputs, output, options.seed, options.holdout["fraction"]) == (["a"], "s", 5, 0.3)

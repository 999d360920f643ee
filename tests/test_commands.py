"""Command lines: exit codes, one or two lines for a wrong request, help, and one door for training."""

import subprocess
import sys

import pytest
from tiny_run import QUICKSTART, ROOT, said

from perturbdiff_jax import cli, main
from perturbdiff_jax.errors import RequestError

CONFIG = f"--config={QUICKSTART}"
DEFAULT = "from perturbdiff_jax.settings import default_config\n\n\ndef get_config():\n    config = default_config()\n"
PREPARE = ["prepare", "--input", "a", "--output", "s", "--perturbation-key", "p", "--control", "c"]


def refused(run, *arguments):
    """The message of a refusal: exit code 2, nothing on stdout, a few lines and no traceback on stderr."""
    code, out, err = said(run, *arguments)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and len(err.splitlines()) <= 3 and "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([CONFIG, "--workdir={}/run", "--config.model.widht=3"], "Did you mean 'model.width'"),
        ([CONFIG, "--workdir={}/run", "--config.modle.width=3"], "Allowed: seed, data, holdout"),
        ([CONFIG, "--workdir={}/run", "--config.model=3"], "config.model is a section"),
        ([CONFIG, "--workdir={}/run", "--config.model.width=abc"], "--config.model.width=abc"),
        ([CONFIG, "--workdir={}/run", "--config.model.width", "abc"], "--config.model.width=abc"),
        ([CONFIG, "--workdir={}/run", "--config.data.hvg=many"], "--config.data.hvg=many"),
        ([CONFIG, "--workdir={}/run", "--config.model.heads=5"], "model.heads=5: must divide"),
        ([CONFIG, "--workdir={}/run", "--config.loader.sets_per_batch=9"], "config.loader.sets_per_batch=9"),
        ([CONFIG, "--workdir={}/run", "--config.data.input=no.h5ad"], "no.h5ad: no such file"),
        ([CONFIG, "--workdir={}/run", "--config.data.store=no"], "no: no such store"),
        ([CONFIG, "--workdir={}/run", "--help-me"], "help-me"),
        ([CONFIG, "--workdir={}/run", "word"], "unexpected argument 'word'"),
        ([CONFIG], "--config and --workdir are both needed"),
        ([CONFIG, "--workdir="], "--config and --workdir are both needed"),
        (["--workdir={}/run"], "--config and --workdir are both needed"),
        (["--config={}/no.py", "--workdir={}/run"], "no.py: no such file"),
        (["--config={}", "--workdir={}/run"], "no such file"),
        ([], "--config and --workdir are both needed"),
    ],
)
def test_wrong_flags(tmp_path, flags, words):
    small = (
        ["--config.simulate.cells_per_group=8", "--config.simulate.genes=20"]
        if "9" in "".join(flags[-1:])
        else []
    )
    message_code, out, err = said(main.run, *[flag.format(tmp_path) for flag in flags], *small)
    assert message_code == 2 and words in err and "Traceback" not in err and len(err.splitlines()) <= 3
    if not small:
        assert out == "" and not (tmp_path / "run" / "bundle").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (DEFAULT + "    config.model.widht = 3\n    return config\n", "Did you mean 'model.width'"),
        (
            DEFAULT + "    config.model.width = 'a'\n    return config\n",
            "line 6: TypeError: Could not override",
        ),
        (DEFAULT + "    return confg\n", "line 6: NameError: name 'confg' is not defined"),
        ("def get_config(:\n", "line 1: SyntaxError"),
        ("import nothing_of_this_name\n", "line 1: ModuleNotFoundError"),
        ("open('nothing of this name')\n", "cannot be loaded"),
        ("x = 1\n", "no attribute 'get_config'"),
        ("def get_config():\n    return {'modle': 3}\n", "Did you mean 'model'"),
        ("def get_config():\n    return [1]\n", "keys"),
        ("def get_config():\n    return {}\n", "its config has no key 'seed'"),
    ],
)
def test_wrong_config_files_are_named_with_the_line(tmp_path, monkeypatch, text, words):
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # the file of the case before
    file = tmp_path / "my.py"
    file.write_text(text)
    override = ["--config.seed=3"] if "{}" in text else []
    assert words in refused(main.run, f"--config={file}", f"--workdir={tmp_path}/run", *override)
    assert not (tmp_path / "run").exists()


def test_a_config_without_forms_takes_none(tmp_path):
    """Most configs have a ":smoke"; the embedded default has not."""
    said = refused(main.run, f"{CONFIG}:smoke", f"--workdir={tmp_path}/run")
    file = CONFIG.removeprefix("--config=")
    assert said == f"error: --config={file}:smoke: {file} takes nothing behind a colon.\n"
    assert not (tmp_path / "run").exists()


def test_none_can_be_said_on_the_command_line():
    config, _ = main.parse([CONFIG, "--workdir=x", "--config.data.hvg=None", "--config.data.batch_key=none"])
    assert config.data.hvg is None and config.data.batch_key is None
    config, workdir = main.parse(
        [CONFIG, "--workdir", "x", "--config.seed", "3", "--config.objective.use_mask"]
    )
    assert config.seed == 3 and config.objective.use_mask is True and workdir == "x"


@pytest.mark.parametrize("run", [main.run, lambda words: cli.run(["train", *words])], ids=["main", "train"])
def test_help_and_both_doors_to_training(run, monkeypatch):
    seen = []
    monkeypatch.setattr("perturbdiff_jax.train.train_and_evaluate", lambda *given: seen.append(given))
    code, out, err = said(run, "--help")
    assert code == 0 and "--workdir" in out and err == "" and not seen
    assert said(run, CONFIG, "--workdir=w", "--config.seed=5")[0] == 0
    (config, workdir) = seen[0]
    assert workdir == "w" and config.seed == 5


def test_exit_codes(capsys):
    def fault():
        raise ZeroDivisionError("ours")

    def request():
        raise RequestError("file.h5ad: column 'x' ...")

    def stop():
        raise KeyboardInterrupt

    assert [main.guarded(job) for job in (lambda: None, request, fault, stop)] == [0, 2, 1, 130]
    err = capsys.readouterr().err
    assert "error: file.h5ad: column 'x' ..." in err and "ZeroDivisionError: ours" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: VERB"),
        (["predit"], "invalid choice: 'predit'"),
        (["prepare", "--input", "a"], "required: --output, --perturbation-key, --control"),
        (["predict", "--checkpoint", "b", "--output", "o", "--perturbations", "A"], "--input is needed"),
        (["predict", "--checkpoint", "b", "--output", "o", "--split", "test"], "--split needs --store"),
        (
            [
                "predict",
                "--checkpoint",
                "b",
                "--output",
                "o",
                "--split",
                "test",
                "--store",
                "s",
                "--input",
                "i",
            ],
            "leave out --input",
        ),
        (["predict", "--checkpoint", "b", "--output", "o", "--input", "i"], "required"),
        (
            ["predict", "--checkpoint", "b", "--output", "i", "--input", "i", "--perturbations", "A"],
            "it would be overwritten",
        ),
        (
            ["predict", "--checkpoint", "b", "--output", str(ROOT), "--input", "i", "--perturbations", "A"],
            "is a directory",
        ),
        (
            [
                "predict",
                "--checkpoint",
                "b",
                "--output",
                f"{__file__}/o",
                "--input",
                "i",
                "--perturbations",
                "A",
            ],
            "nothing can be written in",
        ),
        (
            ["predict", "--checkpoint", "no", "--output", "o", "--input", "i", "--perturbations", "A"],
            "no: not a ch",
        ),
        (["evaluate", "--pred", "a"], "required: --real, --output, --perturbation-key, --control"),
        (["report", "--workdir", "no-such"], "no-such is not a directory"),
        (
            [*PREPARE, "--holdout-batch", "B"],
            "give --holdout, the share, too",
        ),
        (
            [*PREPARE, "--holdout", "0.5", "--split", "s.json"],
            "give one of them",
        ),
    ],
)
def test_wrong_command_lines(words, message):
    assert message in refused(cli.run, *words)


@pytest.mark.parametrize("verb", [None, "prepare", "genes", "predict", "evaluate", "report"])
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.run([verb, "--help"] if verb else ["--help"])
    assert stopped.value.code == 0 and "usage: perturbdiff" in capsys.readouterr().out


def test_the_modules_are_programs_and_quick_to_refuse():
    """Also: neither help nor a wrong request waits for jax."""
    for module in ("perturbdiff_jax.cli", "perturbdiff_jax.main"):
        code = (
            "import atexit, runpy, sys; atexit.register(lambda: print('jax' in sys.modules));"
            f"sys.argv = ['x', '--help']; runpy.run_module('{module}', run_name='__main__')"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0 and done.stderr == ""
        assert "usage" in done.stdout and done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    "wrong", ["--config.data.input=nope.h5ad", "--config.data.store=nope", "--config.holdout.batch=B9"]
)
def test_a_refused_run_takes_its_new_directory_back(tmp_path, wrong, capsys):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "notes.txt").write_text("mine")
    small = [
        "--config.simulate.genes=20",
        "--config.simulate.cells_per_group=8",
        "--config.simulate.perturbations=3",
    ]
    for workdir in (tmp_path / "new", kept):
        assert main.run([f"--config={QUICKSTART}", f"--workdir={workdir}", *small, wrong]) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "new").exists()
    assert (kept / "notes.txt").read_text() == "mine"

"""launch/regimes.sh: pretraining, zero-shot, finetuning, few cells, one after the other in their smallest form."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parents[1] / "launch" / "regimes.sh"
TINY = {
    "train.steps": 4,
    "train.validate_every": 2,
    "train.validation_conditions": 2,
    "ema.every": 1,
    "optim.warmup_steps": 1,
    "simulate.perturbations": 6,
    "simulate.genes": 40,
    "simulate.batches": 2,
    "simulate.cells_per_group": 16,
    "simulate.controls_per_context": 20,
    "loader.cells_per_set": 8,
    "sampler.steps": 2,
    "sampler.guidance": 0.0,
    "model.width": 16,
    "model.heads": 2,
    "model.depth": 1,
    "predict.calibration_draws": 0,
}
MODELS = ["zero-shot", "finetuned", "scratch", "finetuned-few", "scratch-few"]


def regimes(*words, timeout=60):
    # One device, where this process has eight; as quick to compile as here.
    flags = os.environ.get("XLA_FLAGS", "").replace("--xla_force_host_platform_device_count=8", "")
    environ = os.environ | {"PYTHON": sys.executable, "XLA_FLAGS": flags}
    environ |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3"}
    return subprocess.run(
        ["bash", str(SCRIPT), *map(str, words)], env=environ, capture_output=True, text=True, timeout=timeout
    )


def test_every_regime_runs_end_to_end(tmp_path):
    settings = [f"--config.{name}={value}" for name, value in TINY.items()]
    done = regimes("--workdir", tmp_path / "r", "--share", "0.2", "--", *settings, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary = json.loads((tmp_path / "r/compared/summary.json").read_text())
    assert [name for name in summary["models"] if name in MODELS] == MODELS
    energies = {name: summary["models"][name]["energy"]["mean"] for name in MODELS}
    assert len(set(energies.values())) == 5, energies
    facts = {
        name: json.loads((tmp_path / "r" / name / "run.json").read_text())
        for name in ("pretrain", "finetuned", "scratch", "finetuned_few", "scratch_few")
    }
    begun = {name for name, fact in facts.items() if "finetuning" in fact}
    assert begun == {"finetuned", "finetuned_few"}
    few = {name: fact["training_cells"]["cells"] for name, fact in facts.items() if "training_cells" in fact}
    assert len(few) == 2 and len(set(few.values())) == 1 and min(few.values()) > 0
    assert "zero-shot pbmc" in facts["pretrain"]["seconds"]
    assert (tmp_path / "r/compared/report.html").is_file()
    assert sum(line.startswith("+ ") for line in done.stdout.splitlines()) == 7


def test_what_it_would_run_is_said(tmp_path):
    done = regimes("--dry-run", "--full", "--share", "0.01", "--workdir", tmp_path, "--", "--config.seed=3")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 7 and not any(":smoke" in line for line in lines)
    assert all("--config.seed=3" in line for line in lines[:5])
    assert [("--config.data.fraction=0.01" in line) for line in lines] == [False] * 3 + [True, True] + [
        False
    ] * 2
    assert lines[1].count("stores/pretraining/pbmc") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--whole"], ["--share"]])
def test_unknown_words_are_refused(words):
    done = regimes(*words)
    assert done.returncode == 2 and words[0] in done.stderr and done.stdout == ""

"""The smallest whole job: 2 cell types x 2 batches x 6 perturbations x 40 genes, a network of width 16."""

import contextlib
import dataclasses
import importlib.util
import io
import json
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "configs/quickstart.py"
STEPS, EVERY = 6, 3
# How its simulated cells name their columns, in Python and on the command line.
KEYS = {"cell_type_key": "cell_type", "batch_key": "batch"}
FLAGS = ("--cell-type-key", "cell_type", "--batch-key", "batch")

CHANGES = {
    "simulate.cell_types": 2,
    "simulate.batches": 2,
    "simulate.perturbations": 6,
    "simulate.genes": 40,
    "simulate.cells_per_group": 12,
    "simulate.controls_per_context": 16,
    "data.cell_type_key": "cell_type",
    "data.batch_key": "batch",
    "holdout.batch": "B2",
    "holdout.fraction": 0.5,
    "holdout.validation_fraction": 0.2,
    "loader.cells_per_set": 8,
    "loader.sets_per_batch": 8,
    "model.width": 16,
    "model.depth": 2,
    "model.heads": 2,
    "model.covariate_width": 8,
    "model.anchor": "control",
    "optim.warmup_steps": 2,
    "sampler.steps": 2,
    "predict.draws": 1,
    "predict.sets_per_batch": 4,
    "train.steps": STEPS,
    "train.validate_every": EVERY,
    "train.log_every": 2,
    "train.best_metric": "energy",
}


def tiny_config(**changes):
    """The quickstart's config, made tiny; keyword `model__width=8` changes the key `model.width`."""
    spec = importlib.util.spec_from_file_location("quickstart", QUICKSTART)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    for name, value in (CHANGES | {k.replace("__", "."): v for k, v in changes.items()}).items():
        section, _, key = name.rpartition(".")
        (config[section] if section else config)[key] = value
    return config


def flags(**changes):
    """The same as flags of the command line, without --config and --workdir."""
    values = CHANGES | {k.replace("__", "."): v for k, v in changes.items()}
    return [f"--config.{name}={value}" for name, value in values.items()]


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run that is done, and what it said."""

    workdir: pathlib.Path
    code: int
    out: str
    err: str

    def log(self):
        return read_log(self.workdir)


def read_log(workdir):
    """The rows of a run's log, without what the clock decides."""
    rows = [json.loads(line) for line in (workdir / "logs/metrics.jsonl").read_text().splitlines()]
    clocked = ("time", "cells_per_second", "speed/", "memory/")
    return [{k: v for k, v in row.items() if not k.startswith(clocked)} for row in rows]


def said(run, *arguments):
    """(exit code, stdout, stderr) of a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(word) for word in arguments])
    return code, out.getvalue(), err.getvalue()


def state_of(workdir, step, **changes):
    """(everything that Orbax keeps at `step`, the best step) of a run with `tiny_config(**changes)`."""
    import jax

    from perturbdiff_jax.bundle import build_model
    from perturbdiff_jax.checkpoint import Checkpoints
    from perturbdiff_jax.data.store import Store
    from perturbdiff_jax.optim import optimizer
    from perturbdiff_jax.run_setup import describe, settle
    from perturbdiff_jax.settings import from_config
    from perturbdiff_jax.state import create_state, init_params

    store = Store.open(workdir / "store")
    settings = settle(from_config(tiny_config(**changes)), store)
    model = build_model(describe(settings, store), settings.model)
    like = jax.eval_shape(
        lambda: create_state(init_params(model, jax.random.key(0)), optimizer(settings.optim, STEPS))
    )
    checkpoints = Checkpoints(workdir / "bundle", metric="energy", mode="min", keep=2, read_only=True)
    state, best = checkpoints.restore(step, like), checkpoints.best_step()
    checkpoints.close()
    return state, best

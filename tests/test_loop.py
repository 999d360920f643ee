"""The training loop on a step that a child could compute: its order, its rhythm, and each way in which it ends."""

import contextlib
import dataclasses
import json
import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from perturbdiff_jax.checkpoint import Checkpoints
from perturbdiff_jax.errors import RunError, Stopped
from perturbdiff_jax.history import Recall
from perturbdiff_jax.interruption import Interruption
from perturbdiff_jax.loop import TrainingLoop
from perturbdiff_jax.run_options import TrainOptions
from perturbdiff_jax.state import TrainState
from perturbdiff_jax.telemetry.meter import Meter
from perturbdiff_jax.telemetry.run_log import RunLog
from perturbdiff_jax.telemetry.trace import Trace

STEPS = 12
OPTIONS = TrainOptions(steps=STEPS, log_every=4, validate_every=6, best_metric="energy", keep=9)


def start():
    return TrainState(step=jnp.int32(0), params={"w": jnp.zeros(3)}, ema={"w": jnp.zeros(3)}, opt_state={})


class Run:
    """A loop in `folder` with everything around it; `events` is what happened in which order."""

    def __init__(self, folder, options=OPTIONS, scores=(), spoil=None, hook=None):
        self.folder, self.options, self.spoil, self.hook = folder, options, spoil or {}, hook
        self.scores, self.events = iter(scores), []

    def step_of(self, state, batch):
        step = int(state.step) + 1
        self.events.append(f"step {step}")
        if self.hook:
            self.hook(step)
        w = {"w": state.params["w"] + batch}
        metrics = {"loss/total": 1 / step, "loss/mse": 0.5, "loss/energy": 0.1, "grad_norm": 2.0}
        metrics |= self.spoil.get(step, {})
        return TrainState(step=jnp.int32(step), params=w, ema=w, opt_state={}), metrics

    def validate(self, ema):
        self.events.append(f"validation {float(ema['w'][0]):g}")
        return {"validation/energy": next(self.scores, 1.0), "validation/r2": 0.5}

    def __call__(self, stop=None):
        """Trains on from whatever is there; returns (steps done, recall that it began with)."""
        with contextlib.ExitStack() as held:
            stop = stop or held.enter_context(Interruption())
            held.enter_context(stop.deferred())
            checkpoints = held.enter_context(
                Checkpoints(self.folder / "bundle", metric="energy", mode="min", keep=self.options.keep)
            )
            save = checkpoints.save
            checkpoints.save = lambda state, *rest: (
                self.events.append(f"save {int(state.step)}"),
                save(state, *rest),
            )
            state, recall = checkpoints.newest(start()) or (start(), Recall())
            first = int(state.step)
            log = held.enter_context(contextlib.closing(RunLog(self.folder / "logs", first_step=first)))
            write = log.write
            log.write = lambda step, kind, row: (
                self.events.append(f"{kind} line {step}"),
                write(step, kind, row),
            )
            loop = TrainingLoop(
                options=self.options,
                step_of=self.step_of,
                learning_rate=lambda step: 0.1 * step,
                validate=self.validate,
                validation_name="validation (1 condition)",
                groups_of=lambda step: f"the groups of batch {step}",
                checkpoints=checkpoints,
                log=log,
                meter=Meter(cells_per_step=64, flops_per_step=None, peak_flops=None),
                trace=Trace(None, self.folder),
                stop=stop,
            )
            batches = ((step, jnp.float32(step)) for step in range(first, self.options.steps))
            self.done, self.state = loop.fit(state, batches, first=first, recall=recall)
            return self.done, recall

    def log(self):
        rows = [json.loads(line) for line in (self.folder / "logs/metrics.jsonl").read_text().splitlines()]
        return [
            {k: v for k, v in row.items() if not k.startswith(("time", "speed", "memory"))} for row in rows
        ]

    def saved(self):
        return sorted(int(path.name) for path in (self.folder / "bundle/checkpoints").iterdir())


@pytest.fixture
def restored():
    """SIGTERM means what it meant, whatever a test has done."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_the_device_has_its_next_step_before_metrics_are_fetched(tmp_path):
    run = Run(tmp_path)
    assert run()[0] == STEPS
    # Line 4 waits for step 5; where the state is needed, nothing runs ahead.
    assert run.events == [
        *[f"step {step}" for step in range(1, 6)],
        "train line 4",
        "step 6",
        "train line 6",
        "validation 15",
        "validation line 6",
        "save 6",
        "step 7",
        "step 8",
        "step 9",
        "train line 8",
        *[f"step {step}" for step in range(10, 13)],
        "train line 12",
        "validation 66",
        "validation line 12",
        "save 12",
    ]
    lines = [row for row in run.log() if row["kind"] == "train"]
    np.testing.assert_allclose([row["loss/total"] for row in lines[:2]], [25 / 48, 11 / 60], rtol=1e-12)
    np.testing.assert_allclose([row["learning_rate"] for row in lines], [0.3, 0.5, 0.7, 1.1])


def test_saves_between_validations_have_no_score(tmp_path):
    run = Run(tmp_path, dataclasses.replace(OPTIONS, save_every=5), scores=[0.5, 0.4])
    run()
    assert [event for event in run.events if event.startswith("save")] == [
        f"save {step}" for step in (5, 6, 10, 12)
    ]
    assert run.saved() == [6, 12]  # those without a score have made way


@pytest.mark.parametrize("at", [1, 4, 5, 6, 8, 11])
def test_stopped_anywhere_and_taken_up_again_it_is_the_unbroken_run(tmp_path, at, restored, capsys):
    unbroken = Run(tmp_path / "unbroken", scores=[0.5, 0.4])
    unbroken()

    def term(step):
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    run = Run(tmp_path / "run", scores=[0.5, 0.4], hook=term)
    with pytest.raises(Stopped, match=f"Stopped by SIGTERM at step {at}; saved. Give the same command"):
        run()
    assert run.saved()[-1] == at and run.events[-1].startswith("save")
    again = Run(tmp_path / "run", scores=[0.5, 0.4][at >= 6 :])
    done, recall = again()
    assert done == STEPS and len(recall.window) == at - max(line for line in (0, 4, 6, 8) if line <= at)
    assert again.log() == unbroken.log()
    np.testing.assert_array_equal(again.state.params["w"], unbroken.state.params["w"])


def test_broken_off_right_behind_a_save_no_line_is_lost_or_told_twice(tmp_path):
    """The line of a step that is saved is written before the save, although others wait for the next step."""
    unbroken = Run(tmp_path / "unbroken")
    unbroken()

    def killed(step):
        if step == 9:
            raise KeyboardInterrupt

    run = Run(tmp_path / "run", dataclasses.replace(OPTIONS, save_every=4), hook=killed)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert run.saved()[-1] == 8
    run.hook = None
    run()
    assert run.log() == unbroken.log()


def test_a_stop_before_the_first_step_saves_nothing(tmp_path):
    stop = Interruption()
    stop.requested = True
    run = Run(tmp_path)
    with pytest.raises(Stopped, match="at step 0; nothing to save"):
        run(stop)
    assert run.saved() == run.events == []


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ({8: {"loss/total": np.nan, "loss/energy": np.inf}}, "loss/energy, loss/total"),
        ({8: {"grad_norm": np.inf}}, "grad_norm"),
    ],
)
@pytest.mark.parametrize("save_every", [0, 1, 4])
def test_what_is_not_finite_ends_the_run_and_is_never_saved(tmp_path, spoil, said, save_every):
    run = Run(tmp_path, dataclasses.replace(OPTIONS, save_every=save_every), spoil=spoil)
    with pytest.raises(RunError) as told:
        run()
    good = {0: 6, 1: 7, 4: 6}[save_every]
    first, second = str(told.value).splitlines()
    assert first == f"step 8: {said} not finite, in a batch of the groups of batch 7."
    assert second.startswith(f"The last good checkpoint is that of step {good} ({tmp_path}/bundle).")
    assert run.saved()[-1] == good and not any("line 8" in event for event in run.events)


def test_a_stop_does_not_save_what_is_not_finite_either(tmp_path, restored):
    run = Run(
        tmp_path,
        spoil={2: {"loss/total": np.nan}},
        hook=lambda step: step == 2 and os.kill(os.getpid(), signal.SIGTERM),
    )
    with pytest.raises(RunError, match=r"step 2: loss/total not finite(.|\n)*There is no checkpoint yet"):
        run()
    assert run.saved() == []


def test_patience_ends_a_run_and_keeps_it_ended(tmp_path, capsys):
    options = dataclasses.replace(OPTIONS, validate_every=2, patience=2, keep=1)
    run = Run(tmp_path, options, scores=[0.5, 0.3, 0.4, 0.35, 0.1])
    assert run()[0] == 8
    assert "No better validation in 2: training ends at step 8." in capsys.readouterr().out
    assert run.saved() == [4, 8]
    with Checkpoints(tmp_path / "bundle", metric="energy", mode="min", keep=1) as checkpoints:
        _, recall = checkpoints.newest(start())
        assert recall.history == [[2, 0.5], [4, 0.3], [6, 0.4], [8, 0.35]]
        assert recall.is_over(checkpoints.best_metric, 2)


def test_the_count_of_fruitless_validations_goes_over_a_break(tmp_path, restored):
    options = dataclasses.replace(OPTIONS, validate_every=2, patience=2)
    run = Run(
        tmp_path,
        options,
        scores=[0.3, 0.4],
        hook=lambda step: step == 5 and os.kill(os.getpid(), signal.SIGTERM),
    )
    with pytest.raises(Stopped):
        run()
    assert Run(tmp_path, options, scores=[0.35, 0.1])()[0] == 6

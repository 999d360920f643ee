"""The training loop: dispatch a step, report, validate, save, stop; nothing in it knows what a step computes.

The host runs ahead of the device: it fetches the metrics of a step only after the next one is on its way, except where
the state itself is needed (validation, checkpoint). A checkpoint is only written once the losses of all steps that led
to it are known to be finite.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from perturbdiff_jax.checkpoint import Checkpoints
from perturbdiff_jax.checkpoint_folder import last_good
from perturbdiff_jax.errors import RunError, Stopped
from perturbdiff_jax.history import Recall
from perturbdiff_jax.interruption import AGAIN, Interruption
from perturbdiff_jax.run_options import TrainOptions
from perturbdiff_jax.state import TrainState
from perturbdiff_jax.telemetry.meter import Meter
from perturbdiff_jax.telemetry.progress import Progress
from perturbdiff_jax.telemetry.run_log import RunLog
from perturbdiff_jax.telemetry.trace import Trace

FINITE = ("loss/total", "grad_norm")  # a gradient that is not finite spoils the weights under a finite loss


@dataclasses.dataclass(kw_only=True)
class TrainingLoop:
    """What a training is made of; `fit` runs it."""

    options: TrainOptions
    step_of: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
    learning_rate: Callable[[int], Any]  # of a step counted from 0
    validate: Callable[[dict], dict[str, float]]  # averaged weights -> scores, the same on all processes
    validation_name: str
    groups_of: Callable[[int], str]  # what the batch of a step (from 0) is made of, for people
    checkpoints: Checkpoints
    log: RunLog
    meter: Meter
    trace: Trace
    stop: Interruption

    def fit(
        self, state: TrainState, batches: Iterator, *, first: int, recall: Recall
    ) -> tuple[int, TrainState]:
        """Trains from step `first` to the last; steps are counted by how many are done.

        Args:
          state: after `first` steps; donated.
          batches: (step counted from 0, batch on the devices), from `first` on.
          first: steps that are done.
          recall: what is known of them.

        Returns:
          (steps done, state): fewer than `options.steps` when validation stopped improving.

        Raises:
          Stopped: SIGTERM; the state is saved.
          RunError: a loss that is not finite.
        """
        options = self.options
        self._history, self._window = list(recall.history), list(recall.window)
        self._pending: list[tuple[int, dict]] = []  # metrics that are still on the devices
        self._timed = 0  # steps that the meter has not been told of
        self._progress = Progress(options.steps, "step", start=first)
        done = saved = first
        report_due = False
        while done < options.steps:
            if self.stop.at():
                if report_due:
                    self._report(done)
                self._stop(done, state, saved)
            with self.meter.waiting():
                _, batch = next(batches)
            self.trace.at(done, state.step)
            state, metrics = self.step_of(state, batch)
            if report_due:
                self._report(done)
            done += 1
            self._pending.append((done, metrics))
            validation_due = done % options.validate_every == 0 or done == options.steps
            save_due = validation_due or (options.save_every > 0 and done % options.save_every == 0)
            report_due = validation_due or done % options.log_every == 0
            if not save_due:
                continue
            if report_due:  # before the save: a run resumed from it does not write this line again
                self._report(done)
                report_due = False
            self._save(state, self._validate(done, state) if validation_due else None)
            saved = done
            if validation_due and self._is_over(done):
                break
        return done, state

    def _fetch(self) -> None:
        """Waits for the steps that were dispatched and takes in their metrics."""
        fetched = jax.device_get([metrics for _, metrics in self._pending])
        for (step, _), metrics in zip(self._pending, fetched):
            values = {name: float(value) for name, value in metrics.items()}
            bad = [name for name, value in values.items() if not math.isfinite(value)]
            if set(bad) & set(FINITE):
                self._refuse(step, bad)
            self._window.append(values)
        self._timed += len(fetched)
        self._pending.clear()
        self.checkpoints.check()

    def _report(self, done: int) -> None:
        self._fetch()
        means = {name: float(np.mean([row[name] for row in self._window])) for name in self._window[0]}
        self._window.clear()
        means |= self.meter.take(self._timed) | {"learning_rate": float(self.learning_rate(done - 1))}
        self._timed = 0
        self.log.write(done, "train", means)
        parts = f"mse {means['loss/mse']:.4f} energy {means['loss/energy']:.4f}"
        speed = f"{means['speed/cells_per_second']:,.0f} cells/s"
        self._progress.show(done, f"loss {means['loss/total']:.4f} ({parts})  {speed}")

    def _validate(self, done: int, state: TrainState) -> dict[str, float]:
        with self.meter.paused():
            scores = self.validate(state.ema)
        self.log.write(done, "validation", scores)
        self._history.append([done, scores.get(self.checkpoints.best_metric.name, math.nan)])
        shown = "  ".join(f"{name.split('/')[1]} {value:.4f}" for name, value in scores.items())
        print(f"  {self.validation_name} at step {done:,}: {shown}", flush=True)
        return scores

    def _save(self, state: TrainState, scores: dict[str, float] | None = None) -> None:
        self._fetch()
        with self.meter.paused():
            self.checkpoints.save(state, scores, Recall(self._history, self._window))

    def _is_over(self, done: int) -> bool:
        over = Recall(self._history).is_over(self.checkpoints.best_metric, self.options.patience)
        if over and done < self.options.steps:
            print(
                f"No better validation in {self.options.patience}: training ends at step {done:,}.",
                flush=True,
            )
        return over

    def _stop(self, done: int, state: TrainState, saved: int) -> None:
        if done > saved:
            self._save(state)
        self.checkpoints.wait()
        raise Stopped(
            f"Stopped by SIGTERM at step {done:,}; {'saved' if done else 'nothing to save'}. {AGAIN}"
        )

    def _refuse(self, step: int, bad: list[str]) -> None:
        self.checkpoints.wait()
        raise RunError(
            f"step {step:,}: {', '.join(bad)} not finite, in a batch of {self.groups_of(step - 1)}.\n"
            f"{last_good(self.checkpoints.bundle)} ({self.checkpoints.bundle}). The same settings lead here again: "
            "change config.optim, in another --workdir."
        )

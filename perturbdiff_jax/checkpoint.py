"""Training states below BUNDLE/checkpoints, written by Orbax while training goes on.

    <step>/ema, <step>/train   arrays: what predicts; parameters, moments, step
    <step>/metrics             scores of the sampled validation at this step, empty if there was none
    <step>/run                 history of validations, metrics not yet logged, fingerprints of the arrays
    <step>.damaged             could not be read back and was put aside for a look

Orbax writes aside and renames, so a folder with a step's name is whole unless somebody damaged it. The latest
checkpoint and the best k by the validation metric stay. All processes of a run save and restore together.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from perturbdiff_jax import checkpoint_folder, processes, stored_arrays
from perturbdiff_jax.checkpoint_folder import steps_in
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.history import BestMetric, Recall
from perturbdiff_jax.state import TrainState, as_placed, as_stored, stored_shapes
from perturbdiff_jax.stored_arrays import Damaged

WHICH = ("best", "latest")


class Checkpoints:
    """Saving, restoring and choosing states below BUNDLE/checkpoints; closed at the end of a `with`."""

    def __init__(self, bundle: str | Path, *, metric: str, mode: str, keep: int, read_only: bool = False):
        self.bundle = Path(bundle)
        self.path = self.bundle.absolute() / "checkpoints"
        self.best_metric = BestMetric(f"validation/{metric}", mode)
        self._keep = keep
        self._writer: ocp.AsyncCheckpointer | None = None
        if read_only and not steps_in(self.path):
            raise RequestError(f"{bundle}: the bundle is incomplete, it holds no checkpoint yet.")
        if not read_only:
            self.path.mkdir(parents=True, exist_ok=True)
            if processes.leads():
                checkpoint_folder.sweep(self.path)

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, None when there is none."""
        return max(steps_in(self.path), default=None)

    def best_step(self) -> int | None:
        """Step of the best checkpoint by the validation metric, the newest of equals."""
        return next(iter(self.ranked("best")), None)

    def ranked(self, which: str) -> list[int]:
        """All steps, the "best" or the "latest" first. One without a score comes after those that have one."""
        steps = steps_in(self.path)[::-1]
        if which == "latest":
            return steps
        scores = {step: (self.metrics(step) or {}).get(self.best_metric.name) for step in steps}
        return sorted(
            steps, key=lambda step: (scores[step] is None, -self.best_metric.goodness(scores[step]))
        )

    def metrics(self, step: int) -> dict[str, float] | None:
        """Scores of the validation at `step`, empty when there was none; None when they cannot be read."""
        try:
            found = json.loads((self.path / str(step) / "metrics" / "metrics").read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def save(
        self, state: TrainState, scores: dict[str, float] | None = None, recall: Recall | None = None
    ) -> None:
        """Starts a save of the state under its step, after waiting for the one before.

        Args:
          state: must stay as it is until this returns, no longer.
          scores: of the validation at this step, if there was one.
          recall: what a resumed run is to know.
        """
        state = as_stored(state)
        train = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
        self._save(int(state.step), {"ema": state.ema, "train": train}, scores or {}, recall or Recall())

    def save_weights(self, step: int, weights: dict) -> None:
        """Saves weights that predict, without a training state, and waits for it."""
        self._save(step, {"ema": weights}, {}, Recall())
        self.wait()

    def _save(self, step: int, trees: dict[str, Any], scores: dict[str, float], recall: Recall) -> None:
        self.wait()
        self._thin_out()  # makes room first
        self._writer = self._writer or stored_arrays.writer()
        fingerprints = {name: stored_arrays.fingerprint(tree) for name, tree in trees.items()}
        items = {name: ocp.args.PyTreeSave(tree) for name, tree in trees.items()}
        items["metrics"] = ocp.args.JsonSave({name: float(value) for name, value in scores.items()})
        items["run"] = ocp.args.JsonSave({**dataclasses.asdict(recall), "fingerprints": fingerprints})
        self._writer.save(self.path / str(step), args=ocp.args.Composite(**items))

    def newest(self, like: TrainState) -> tuple[TrainState, Recall] | None:
        """The newest checkpoint that can be read, placed as `like`; None when there is no checkpoint at all.

        Newer ones that are damaged are put aside, with a warning.

        Raises:
          RequestError: there are checkpoints, and none can be read.
        """
        steps, damaged = self.ranked("latest"), {}
        for step in steps:
            try:
                found = self.restore(step, like), self.recall(step)
            except Damaged as error:
                damaged[step] = error
                continue
            self._warn(damaged, step)
            for bad in damaged if processes.leads() else ():
                aside = self.path / f"{bad}.damaged"
                shutil.rmtree(aside, ignore_errors=True)
                os.rename(self.path / str(bad), aside)
            return found
        if damaged:
            first = steps[0]
            raise RequestError(
                f"{self.path}: no checkpoint can be read; that of step {first:,}: {damaged[first]}.\n"
                "Put one back, or begin anew in another --workdir."
            )
        return None

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state at `step`, placed as `like` (arrays, or shapes with shardings). Raises Damaged."""
        stored = stored_shapes(like)
        train = {"step": stored.step, "params": stored.params, "opt_state": stored.opt_state}
        found, reason = {}, None
        try:
            expected = self._run(step)["fingerprints"]
            for item, shapes in {"ema": stored.ema, "train": train}.items():
                found[item] = stored_arrays.read(self.path / str(step) / item, shapes)
        except Damaged as error:
            reason = error
        except KeyError:
            reason = Damaged("run: not there, or not whole")
        # Fingerprints are computed by all processes together, so all have to have read it.
        if processes.agreed(reason is not None):
            raise reason or Damaged("another process cannot read it")
        for item, tree in found.items():
            stored_arrays.verify(item, tree, expected.get(item))
        return as_placed(TrainState(ema=found["ema"], **found["train"]), like)

    def recall(self, step: int) -> Recall:
        """What was remembered at `step`. Raises Damaged."""
        run = self._run(step)
        return Recall(run.get("history", []), run.get("window", []))

    def weights(self, which: str, like: dict) -> tuple[int, dict]:
        """(step, averaged weights) of the best or the latest checkpoint that can be read; warns about better ones.

        Raises:
          RequestError: there is none, or none can be read.
        """
        steps, damaged = self.ranked(which), {}
        if which == "best":  # one of these might have been
            damaged = {step: Damaged("metrics: no scores") for step in steps if self.metrics(step) is None}
        for step in steps:
            try:
                found = self.restore_ema(step, like)
            except Damaged as error:
                damaged[step] = error
                continue
            damaged.pop(step, None)
            self._warn(damaged, step)
            return step, found
        if damaged.keys() - set(steps_in(self.path)):
            return self.weights(which, like)  # a run that goes on has put others in their place
        for step, error in damaged.items():
            raise RequestError(
                f"{self.bundle}: the bundle is damaged, checkpoint {step} cannot be read ({error})."
            )
        raise RequestError(f"{self.bundle}: the bundle is incomplete, it holds no checkpoint yet.")

    def restore_ema(self, step: int, like: dict) -> dict:
        """The averaged weights alone at `step`. Raises Damaged, also when they are not shaped as `like`."""
        expected = self._run(step).get("fingerprints", {}).get("ema")
        found = stored_arrays.read(self.path / str(step) / "ema", like)
        stored_arrays.verify("ema", found, expected)
        return found

    def wait(self) -> None:
        """Waits for a save under way, and raises what went wrong with it."""
        if self._writer is not None:
            self._writer.wait_until_finished()

    def check(self) -> None:
        """Raises what has gone wrong with a save, without waiting for one under way."""
        if self._writer is not None:
            self._writer.check_for_errors()

    def close(self) -> None:
        """Waits for saves under way and removes what need not stay."""
        self.wait()
        if self._writer is not None:
            self._writer.close()
            self._thin_out()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        # An error that ends the run is not to be hidden by one that follows from it.
        with contextlib.suppress(*[Exception] if kind else []):
            self.close()

    def _run(self, step: int) -> dict[str, Any]:
        """The item `run` of a checkpoint; empty for those from before there was one. Raises Damaged."""
        folder = self.path / str(step) / "run"
        try:
            found = json.loads((folder / "metadata").read_text()) if folder.is_dir() else {}
        except PermissionError as error:
            raise RequestError(f"{folder}: cannot be read ({error.strerror}).") from None
        except (OSError, ValueError) as error:
            raise Damaged(f"run: {str(error).splitlines()[0]}") from None
        if not isinstance(found, dict):
            raise Damaged("run: no facts of a checkpoint")
        return found

    def _warn(self, damaged: dict[int, Damaged], step: int) -> None:
        there = [bad for bad in damaged if bad in steps_in(self.path)]
        if there and processes.leads():
            names = ", ".join(str(self.path / str(bad)) for bad in there)
            print(
                f"warning: {names}: damaged ({damaged[there[0]]}); going back to step {step:,}.",
                file=sys.stderr,
            )

    def _thin_out(self) -> None:
        """Removes all but the latest checkpoint and the best k of those with a score."""
        if not processes.leads():
            return
        scored = [step for step in self.ranked("best") if self.best_metric.name in (self.metrics(step) or {})]
        checkpoint_folder.remove(
            self.path, set(steps_in(self.path)) - {self.latest_step(), *scored[: self._keep]}
        )

"""What a work directory remembers of its run: config.json (what was asked) and run.json (what happened)."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perturbdiff_jax import processes
from perturbdiff_jax.errors import RequestError, Stopped
from perturbdiff_jax.settings import Settings
from perturbdiff_jax.telemetry.environment import environment
from perturbdiff_jax.telemetry.meter import memory

# What may differ when a run is taken up again: it changes no weight (beyond rounding) and no cell that is there.
FREE = (
    "predict",
    "sampler",
    "loader.tier",
    "loader.memory",
    "loader.densify",
    "mesh",
    "profile",
    "model.remat",
    "model.scan",
    "train.accumulate",
    "train.save_every",
    "train.log_every",
)
# As long as there is only a store, everything that did not make it may differ.
STORE_SECTIONS = ("seed", "data", "holdout", "simulate")


def write_json(path: Path, content: Any) -> None:
    """Writes JSON aside and renames it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)


def check_same_run(workdir: Path, settings: Settings) -> None:
    """Writes config.json, unless the directory holds what other settings have made.

    A run that was refused before it made anything binds nobody: its settings can be mended and given again.

    Raises:
      RequestError: `workdir` is a file, or holds a run with other settings; names the first that differ.
    """
    if workdir.exists() and not workdir.is_dir():
        raise RequestError(f"--workdir {workdir}: is a file; give a directory.")
    asked = json.loads(json.dumps(settings.to_dict()))
    file = workdir / "config.json"
    if (workdir / "bundle" / "bundle.json").exists():
        binding = list(asked)
    else:
        has_store = (workdir / "store").exists() or (workdir / "stores").exists()
        binding = [name for name in asked if has_store and name in STORE_SECTIONS]
    before = _filled(_read(file), Settings().to_dict()) if binding and file.exists() else asked
    if len(binding) == len(STORE_SECTIONS):
        before = _same_store(before, asked)
    different = [text for name in binding for text in _differences(before.get(name), asked[name], name)]
    if different:
        raise RequestError(
            f"{workdir} holds a run with other settings: {'; '.join(different[:4])}.\n"
            "Give the same settings to resume it, or another --workdir."
        )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(file, asked)
    except OSError as error:
        raise RequestError(f"--workdir {workdir}: cannot be written ({error.strerror}).") from None


def _same_store(before: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """`before` with the fraction that is asked for, where both are below 1: their stores are the same."""
    data, fraction = before.get("data"), asked["data"]["fraction"]
    if not isinstance(data, dict) or max(data.get("fraction", 1.0), fraction) == 1:
        return before
    return before | {"data": data | {"fraction": fraction}}


@contextlib.contextmanager
def taken_back_if_refused(workdir: Path, *files: str) -> Iterator[None]:
    """Removes the work directory, with nothing but `files` (or folders) in it, when the request turns out to be wrong.

    One that was there before stays as it is.
    """
    new = not workdir.exists()
    try:
        yield
    except RequestError:
        if new and workdir.is_dir():
            for name in files:
                if (workdir / name).is_dir():
                    shutil.rmtree(workdir / name, ignore_errors=True)
                else:
                    (workdir / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # something else is in it by now: not ours to remove
                workdir.rmdir()
        raise


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except ValueError as error:  # not JSON, or not text
        raise RequestError(f"{file}: damaged ({error}); use another --workdir.") from None
    if not isinstance(content, dict):
        raise RequestError(f"{file}: damaged (no settings); use another --workdir.")
    return content


def _filled(before: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Settings of an earlier release, with the keys that it did not have at their defaults."""
    filled = {**json.loads(json.dumps(defaults)), **before}
    for name, section in filled.items():
        if isinstance(section, dict) and isinstance(defaults.get(name), dict):
            filled[name] = _filled(section, defaults[name])
    return filled


def _differences(before: Any, now: Any, path: str) -> Iterator[str]:
    if path in FREE:
        return
    if isinstance(before, dict) and isinstance(now, dict):
        for name in {**before, **now}:
            yield from _differences(before.get(name), now.get(name), f"{path}.{name}")
    elif before != now:
        yield f"config.{path} was {before!r}, is {now!r}"


class RunRecord:
    """Collects the facts of a run and keeps run.json up to date."""

    def __init__(self, workdir: Path):
        self._path = workdir / "run.json"
        self._facts: dict[str, Any] = {}
        if self._path.exists():
            with contextlib.suppress(
                json.JSONDecodeError
            ):  # only facts for reading: a cut file is written anew
                self._facts = json.loads(self._path.read_text())
        self._facts |= environment()
        self._facts.setdefault("seconds", {})

    def note(self, **facts: Any) -> None:
        """Adds facts and writes the file, on the process that leads."""
        self._facts |= facts
        if processes.leads():
            write_json(self._path, self._facts)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage; a stage taken up again adds to its time."""
        began = time.monotonic()

        def note() -> None:
            seconds = self._facts["seconds"]
            seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - began, 1)
            self.note()

        try:
            yield
        except Stopped:
            note()
            raise
        note()

    def finish(self) -> None:
        """Notes what is known at the end only."""
        peak = memory()["host_gib"]
        self.note(peak_memory_gib=round(peak, 2))
        times = ", ".join(f"{name} {value:.0f} s" for name, value in self._facts["seconds"].items())
        print(f"Times: {times}; peak memory {peak:.1f} GiB.")

"""What a work directory remembers of its run: config.json (what was asked) and run.json (what happened)."""

import contextlib
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perturbdiff_jax.checkpoint import package_versions
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.settings import Settings

# Sections that may differ when a run is taken up again: they change no weight and no cell that is there already.
FREE = ("predict", "sampler")


def write_json(path: Path, content: Any) -> None:
    """Writes JSON aside and renames it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)


def check_same_run(workdir: Path, settings: Settings) -> None:
    """Writes config.json into a new work directory, or compares with the one that is there.

    Raises:
      RequestError: `workdir` is a file, or holds a run with other settings; names the first that differ.
    """
    if workdir.exists() and not workdir.is_dir():
        raise RequestError(f"--workdir {workdir}: is a file; give a directory.")
    asked = json.loads(json.dumps(settings.to_dict()))
    file = workdir / "config.json"
    if not file.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(file, asked)
        return
    try:
        before = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise RequestError(f"{file}: damaged ({error}); use another --workdir.") from None
    different = list(_differences(before, asked, ""))
    if different:
        raise RequestError(
            f"{workdir} holds a run with other settings: {'; '.join(different[:4])}.\n"
            "Give the same settings to resume it, or another --workdir."
        )
    write_json(file, asked)


def _differences(before: Any, now: Any, path: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in {**before, **now}:
            if path or name not in FREE:
                yield from _differences(before.get(name), now.get(name), f"{path}.{name}" if path else name)
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
        self._facts |= {
            "versions": {**package_versions(), "python": platform.python_version()},
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "command": " ".join(sys.argv),
        }
        self._facts.setdefault("seconds", {})

    def note(self, **facts: Any) -> None:
        """Adds facts and writes the file."""
        self._facts |= facts
        write_json(self._path, self._facts)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage; a stage taken up again adds to its time."""
        began = time.monotonic()
        yield
        seconds = self._facts["seconds"]
        seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - began, 1)
        self.note()

    def finish(self) -> None:
        """Notes what is known at the end only."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        self.note(peak_memory_gib=round(peak, 2))
        times = ", ".join(f"{name} {value:.0f} s" for name, value in self._facts["seconds"].items())
        print(f"Times: {times}; peak memory {peak:.1f} GiB.")

"""The folder of checkpoints as the file system shows it: which steps are there, and how one is taken away."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a folder that Orbax has not renamed yet
REMOVED = "removed-"  # on its way out


def last_good(bundle: Path) -> str:
    """Says which checkpoint a run can go on from."""
    steps = steps_in(bundle / "checkpoints")
    return (
        f"The last good checkpoint is that of step {steps[-1]:,}" if steps else "There is no checkpoint yet"
    )


def steps_in(folder: Path) -> list[int]:
    """Steps with a checkpoint, ascending; whether they can be read is another question."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal() and entry.is_dir())


def remove(folder: Path, steps: Iterable[int]) -> None:
    """Takes checkpoints away. Each is renamed first: a kill in between must leave nothing that looks like one."""
    for step in steps:
        os.replace(folder / str(step), folder / f"{REMOVED}{step}")
    sweep(folder, unfinished=False)


def sweep(folder: Path, *, unfinished: bool = True) -> None:
    """Removes what a killed run left behind; `unfinished` saves only while none is under way."""
    for entry in folder.iterdir():
        if entry.name.startswith(REMOVED) or (unfinished and UNFINISHED in entry.name):
            shutil.rmtree(entry, ignore_errors=True)

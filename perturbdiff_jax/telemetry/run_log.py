"""The log of a run: a JSONL file for programs, TensorBoard events for eyes, the same names in both.

`logs/metrics.jsonl` holds one object per line; a resumed run first drops the lines beyond its starting step, so
the log of a broken and resumed run reads like that of an unbroken one.
"""

import json
import os
import time
from pathlib import Path

from tensorboardX import SummaryWriter


class RunLog:
    """Writes metrics of a run to JSONL and TensorBoard.

    Where several processes train together one of them keeps the log: the others pass `writes=False` and touch no file.
    """

    def __init__(self, folder: str | Path, *, first_step: int = 0, writes: bool = True):
        self._writes = writes
        if not writes:
            return
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        self._keep_until(first_step)
        self._file = open(self._path, "a")
        self._events = SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else None)

    def _keep_until(self, step: int) -> None:
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a killed run may be cut short
            if row["step"] <= step:
                kept.append(line)
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(line + "\n" for line in kept))
        os.replace(partial, self._path)

    def write(self, step: int, kind: str, metrics: dict[str, float]) -> None:
        """Appends one line and its TensorBoard scalars; `kind` is `train` or `validation`."""
        if not self._writes:
            return
        row = {"step": int(step), "time": time.time(), "kind": kind}
        row |= {name: float(value) for name, value in metrics.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._events.add_scalar(name, float(value), int(step))
        self._events.flush()

    def close(self) -> None:
        """Closes both files."""
        if self._writes:
            self._file.close()
            self._events.close()

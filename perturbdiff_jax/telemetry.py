"""What a run says while it works: a progress line, a JSONL log, TensorBoard events.

`logs/metrics.jsonl` holds one object per line; a resumed run first drops the lines beyond its starting step, so
the log of a broken and resumed run reads like that of an unbroken one.
"""

import json
import os
import sys
import time
from pathlib import Path

from tensorboardX import SummaryWriter


def duration(seconds: float) -> str:
    """`1:02:03` or `4:05`."""
    seconds = int(max(0, seconds))
    hours, rest = divmod(seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Progress:
    """One line that tells how far a piece of work is; rewritten in place on a terminal, printed elsewhere.

    Away from a terminal a line is printed at most every `every` seconds.
    """

    def __init__(self, total: int, unit: str, *, start: int = 0, every: float = 0.0):
        self.total, self.unit, self.start, self.every = total, unit, start, every
        self._began = self._said = time.monotonic()
        self._live = sys.stderr.isatty()

    def seconds_left(self, done: int) -> float:
        """Estimate from the mean speed so far; 0 when nothing is left."""
        passed = time.monotonic() - self._began
        return passed / max(1, done - self.start) * (self.total - done)

    def show(self, done: int, text: str = "") -> None:
        """Shows `unit done/total text time left m:ss`."""
        left = f"time left {duration(self.seconds_left(done))}" if done < self.total else "done"
        line = f"{self.unit} {done:,}/{self.total:,}  {text + '  ' if text else ''}{left}"
        if self._live:
            sys.stderr.write("\r\x1b[K" + line + ("\n" if done >= self.total else ""))
            sys.stderr.flush()
        elif time.monotonic() - self._said >= self.every:
            self._said = time.monotonic()
            print(line, flush=True)


class RunLog:
    """Writes metrics of a run to JSONL and TensorBoard."""

    def __init__(self, folder: str | Path, *, first_step: int = 0):
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
        row = {"step": int(step), "time": time.time(), "kind": kind}
        row |= {name: float(value) for name, value in metrics.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._events.add_scalar(name, float(value), int(step))
        self._events.flush()

    def close(self) -> None:
        """Closes both files."""
        self._file.close()
        self._events.close()

"""How far a piece of work is, in one line."""

import sys
import time


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

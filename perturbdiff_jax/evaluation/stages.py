"""How many seconds an evaluation spends in which of its stages.

`timed()` starts a record, and every `stage(name)` that is entered inside it adds to it, however deep in the calls it
stands. A stage inside another one is not counted twice: its seconds are its own only. Without a record nothing happens.
"""

import contextlib
import contextvars
import time
from collections.abc import Iterator


class _Record:
    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.names: list[str] = []
        self.since = time.monotonic()

    def turn(self) -> None:
        """Gives the time since the last turn to the stage that is on top."""
        now = time.monotonic()
        if self.names:
            self.seconds[self.names[-1]] = self.seconds.get(self.names[-1], 0.0) + now - self.since
        self.since = now


_RECORD: contextvars.ContextVar[_Record | None] = contextvars.ContextVar("stages", default=None)


@contextlib.contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Seconds by stage, in the order in which the stages came up; filled while the block runs."""
    record = _Record()
    token = _RECORD.set(record)
    try:
        yield record.seconds
    finally:
        _RECORD.reset(token)


def so_far() -> dict[str, float]:
    """Seconds by stage of the record that runs, to a hundredth; empty without one."""
    record = _RECORD.get()
    return {} if record is None else {name: round(value, 2) for name, value in record.seconds.items()}


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Counts the block's wall time as `name` (threads that it starts are not followed)."""
    record = _RECORD.get()
    if record is None:
        yield
        return
    record.turn()
    record.names.append(name)
    try:
        yield
    finally:
        record.turn()
        record.names.pop()

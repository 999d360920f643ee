"""SIGTERM, by which clusters take a machine back: a run saves where it is and ends with exit code 0.

Ctrl-C stays what it is elsewhere: an end at once, without a save.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from perturbdiff_jax import processes
from perturbdiff_jax.errors import Stopped

AGAIN = "Give the same command again to go on."


class Interruption:
    """Listens for SIGTERM while it is entered.

    Alone, a process ends at once by raising Stopped, or, while `deferred`, where `at` is asked. With several processes
    JAX's own notice is used, which any of them may get: it is heard by `at` only, and all hear it at the same call.
    """

    def __init__(self):
        self.requested = False
        self._deferred = False
        self._asked = 0
        self._before: signal.Handlers | None = None

    def __enter__(self) -> "Interruption":
        # JAX listens itself where it joins processes; a handler of Python's would make it deaf.
        if processes.count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            # Asked to end, and about to: another signal has nothing to add.
            signal.signal(signal.SIGTERM, signal.SIG_IGN if self.requested else self._before)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        first, self.requested = not self.requested, True
        if first and not self._deferred:
            self.check()

    def check(self) -> None:
        """Raises Stopped if the run has been asked to end."""
        if self.requested:
            raise Stopped(f"Stopped by SIGTERM; what is done stays. {AGAIN}")

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal is noted for `at`; one that `at` was not asked about any more counts at the end."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.check()

    def at(self) -> bool:
        """Whether the run is to end here. All processes ask at the same steps."""
        if processes.count() > 1:
            from jax.experimental import multihost_utils

            # Counted from the start of the process: an agreement made before the first step is for the first question.
            self._asked += 1
            self.requested = multihost_utils.reached_preemption_sync_point(self._asked) or self.requested
        return self.requested

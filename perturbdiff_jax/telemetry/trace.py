"""A profiler's trace of a span of steps, for TensorBoard's profile page (or Perfetto).

`config.profile="START:STOP"` asks for it; every process writes its own devices' part into the same folder.
"""

from pathlib import Path
from typing import Any

import jax


class Trace:
    """Records the steps [span.start, span.stop) with jax.profiler; does nothing without a span.

    A run resumed inside the span records the rest of it, one resumed behind it nothing.

    Args:
      span: anything with `start` and `stop` (run_options.ProfileSpan, a range), or None.
      folder: where the trace goes, `WORKDIR/logs/profile`: TensorBoard of WORKDIR/logs finds it there.
    """

    def __init__(self, span: Any | None, folder: str | Path):
        self._span, self._folder = span, Path(folder)
        self._annotation: jax.profiler.StepTraceAnnotation | None = None
        self._running = False

    def at(self, step: int, latest: Any = None) -> None:
        """To be called before step number `step` (from 0) is dispatched: starts or ends the trace there.

        `latest` are arrays of the step before: where a trace starts or ends they are waited for, so that it holds
        whole steps although the device lags behind the host.
        """
        if self._span is None:
            return
        inside = self._span.start <= step < self._span.stop
        if inside != self._running:
            jax.block_until_ready(latest)
        if inside and not self._running:
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(self._folder)
            self._running = True
        self._mark_end()
        if inside:
            # Steps with a number are what the profile page counts and compares.
            self._annotation = jax.profiler.StepTraceAnnotation("train", step_num=step)
            self._annotation.__enter__()
        elif self._running:
            self._stop()

    def close(self) -> None:
        """Ends a trace that still runs: a run may end inside the span."""
        self._mark_end()
        if self._running:
            self._stop()

    def _mark_end(self) -> None:
        if self._annotation is not None:
            self._annotation.__exit__(None, None, None)
            self._annotation = None

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
        print(
            f"Trace of steps {self._span.start}:{self._span.stop} in {self._folder} (TensorBoard)", flush=True
        )

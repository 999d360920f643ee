"""How fast a run is: rates over windows of steps, what of the time went into waiting, memory.

The clock runs on the host. Steps are dispatched ahead of the device, so a window is right when it ends with a fetch
that waits for the device, as the training loop's windows do; the host waiting for data while the device is still busy
counts as waiting too, which makes that share an upper bound of what the data cost.
"""

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator

import jax

GIB = 2**30


class Meter:
    """Times the steps of a run.

    Args:
      cells_per_step: cells of a whole batch, over all processes.
      flops_per_step: model FLOPs of one step (flops.step_flops), None if not known.
      peak_flops: FLOP/s of all devices together (peaks.peak_flops), None if not known.
      clock: seconds, never going back.
    """

    def __init__(
        self,
        *,
        cells_per_step: int,
        flops_per_step: float | None,
        peak_flops: float | None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.cells_per_step, self.clock = cells_per_step, clock
        # FLOP/s of the model divided by FLOP/s of the hardware, for one step a second.
        self._utilisation = flops_per_step / peak_flops if flops_per_step and peak_flops else None
        self._since = clock()
        self._waited = self._paused = 0.0
        self._totals = {"steps": 0, "trained": 0.0, "waited": 0.0, "paused": 0.0}

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time inside counts as waiting for data."""
        began = self.clock()
        try:
            yield
        finally:
            self._waited += self.clock() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside is not training (validation, a checkpoint): it is left out of all rates and summed up apart."""
        began = self.clock()
        try:
            yield
        finally:
            self._paused += self.clock() - began

    def take(self, steps: int) -> dict[str, float]:
        """Closes a window of `steps` steps: its rates, and the memory of now.

        Returns:
          `speed/steps_per_second`, `speed/cells_per_second`, `speed/data_wait_share` (of the time without pauses),
          `speed/paused_share` (of all time), `speed/mfu` if FLOPs and peak are known, and what `memory()` gives.
        """
        now = self.clock()
        whole = now - self._since
        window = {
            "steps": steps,
            "trained": whole - self._paused,
            "waited": self._waited,
            "paused": self._paused,
        }
        self._since, self._waited, self._paused = now, 0.0, 0.0
        for name, value in window.items():
            self._totals[name] += value
        rates = {f"speed/{name}": value for name, value in self._rates(window).items()}
        return rates | {f"memory/{name}": value for name, value in memory().items()}

    @property
    def total_cells_per_second(self) -> float:
        """Cells per second of training over all windows so far; 0 before the first."""
        return self._rates(self._totals)["cells_per_second"]

    def totals(self) -> dict[str, float]:
        """The rates over all windows so far, for the run's record: as those of a window, without a prefix."""
        return self._rates(self._totals)

    def _rates(self, window: dict[str, float]) -> dict[str, float]:
        trained = max(window["trained"], 1e-9)
        rate = window["steps"] / trained
        rates = {
            "steps_per_second": rate,
            "cells_per_second": rate * self.cells_per_step,
            "data_wait_share": window["waited"] / trained,
            "paused_share": window["paused"] / (trained + window["paused"]),
        }
        return rates | ({} if self._utilisation is None else {"mfu": rate * self._utilisation})


def memory() -> dict[str, float]:
    """GiB: `host_gib` (the most that this process ever held) and, where the backend tells, `device_gib` and
    `device_peak_gib` of this process's fullest device."""
    unit = GIB if sys.platform == "darwin" else GIB / 1024  # macOS counts bytes, Linux KiB
    found = {"host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    for name, key in (("device_gib", "bytes_in_use"), ("device_peak_gib", "peak_bytes_in_use")):
        held = [one[key] for one in stats if key in one]
        if held:
            found[name] = max(held) / GIB
    return found

"""Lines that say how far a pass over files is: one every few seconds, none for short ones."""

import time
from collections.abc import Callable

EVERY = 5.0  # seconds


class Progress:
    """Counts cells (or another `unit`) of one pass; `echo` gets a line now and then."""

    def __init__(self, echo: Callable[[str], None], what: str, cells: int, *, unit: str = "cells"):
        self.echo, self.what, self.cells, self.unit = echo, what, cells, unit
        self.done = self.found = 0
        self.began = self.spoken = time.monotonic()

    def skip(self, cells: int) -> None:
        """Cells that an earlier run has dealt with."""
        self.done += cells
        self.found += cells

    def add(self, cells: int) -> None:
        self.done += cells
        now = time.monotonic()
        fresh = self.done - self.found
        if now - self.spoken < EVERY or self.done >= self.cells or not fresh:
            return
        self.spoken = now
        rate = fresh / max(now - self.began, 1e-9)
        left = (self.cells - self.done) / rate
        self.echo(
            f"{self.what}: {self.done:,} of {self.cells:,} {self.unit}, {rate:,.0f} {self.unit}/s, "
            f"about {left:,.0f} s left"
        )

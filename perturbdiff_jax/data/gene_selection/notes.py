"""What is worth saying about files, without a thousand lines of it: a few of each kind, all of them in the report."""

import collections
from collections.abc import Callable

MOST = 10  # lines of one kind
# Kinds, as they are called when lines are held back.
NAMES, VALUES, CHOICE = "gene names", "values", "chosen genes"


class Notes:
    """`say` prints the first lines of each kind through `echo`; `lines` has all of them."""

    def __init__(self, echo: Callable[[str], None]):
        self.echo, self.lines = echo, []
        self._said: collections.Counter[str] = collections.Counter()

    def say(self, kind: str, text: str) -> None:
        """`kind` is what lines that are alike are about."""
        self.lines.append(text)
        self._said[kind] += 1
        if self._said[kind] <= MOST:
            self.echo(text)

    def close(self, kind: str, report: str) -> None:
        """Says how many lines of a kind were not printed, and where they are."""
        if self._said[kind] > MOST:
            self.echo(f"... and {self._said[kind] - MOST:,} more lines about {kind}: {report}")
        del self._said[kind]

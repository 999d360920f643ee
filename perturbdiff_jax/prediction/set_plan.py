"""Which cells are asked for, cut into sets and parts, and the control cell that each of them is matched with.

A set is cells of one request that are walked together; a part is a stretch of sets, the unit in which cells are
computed and kept. Nothing here is as long as the cells that are asked for: sets and their control cells are told when
they are looked at.
"""

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp


@dataclasses.dataclass(frozen=True)
class Request:
    """`cells` cells of one condition in one context; `controls` [C, G] CSR, log1p, are its control cells."""

    perturbation: str
    cell_type: str
    batch: str
    codes: tuple[int, int, int]  # (perturbation, cell type, batch) in the bundle's vocabularies
    cells: int
    controls: sp.csr_matrix
    draw: int = 0
    source: int = 0  # input layer, of networks that have several
    covariate_batch: str = ""  # whose code stands in `codes`, where it is another batch's

    @property
    def names(self) -> tuple[str, str, str, int]:
        """(perturbation, cell type, batch, draw)."""
        return self.perturbation, self.cell_type, self.batch, self.draw

    @property
    def address(self) -> int:
        """Hash of what the request is, for its randomness."""
        return zlib.crc32("\x1f".join(map(str, self.names)).encode())


class PlannedSet(NamedTuple):
    """One set: the `index`-th of its request, of which `cells` are wanted; the rest only fill it up."""

    request: Request
    index: int
    cells: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetPlan:
    """Requests as sets of `cells_per_set` cells, `sets_per_part` of them, in order, to a part."""

    requests: Sequence[Request]
    cells_per_set: int
    sets_per_part: int
    seed: int

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(
            [-(-request.cells // self.cells_per_set) for request in self.requests], dtype=np.int64
        )

    @property
    def sets(self) -> int:
        """Sets of all requests."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def parts(self) -> int:
        """Parts of all requests; the last may have fewer sets."""
        return -(-self.sets // self.sets_per_part)

    @functools.cached_property
    def cells(self) -> int:
        """Cells of all requests."""
        return sum(request.cells for request in self.requests)

    def sets_of(self, part: int) -> list[PlannedSet]:
        """The sets of one part, in the order of the requests."""
        first, found = part * self.sets_per_part, []
        for number in range(first, min(first + self.sets_per_part, self.sets)):
            place = int(np.searchsorted(self._ends, number, side="right"))
            request = self.requests[place]
            index = number - (int(self._ends[place - 1]) if place else 0)
            cells = min(self.cells_per_set, request.cells - index * self.cells_per_set)
            found.append(PlannedSet(request, index, cells))
        return found

    def cells_of(self, part: int) -> int:
        """Cells of one part."""
        return sum(planned.cells for planned in self.sets_of(part))

    def control_rows(self, planned: PlannedSet) -> np.ndarray:
        """Rows int64 [cells_per_set] of the request's control cells, one for each cell of the set.

        The cells of a request go through permutations of its control cells, one after the other: every control cell is
        used before any is used twice.
        """
        available = planned.request.controls.shape[0]
        places = planned.index * self.cells_per_set + np.arange(self.cells_per_set)
        rounds = range(places[0] // available, places[-1] // available + 1)
        rows = [self._permutation(planned.request, number) for number in rounds]
        return np.concatenate(rows)[places - rounds[0] * available]

    def used_rows(self, request: Request) -> np.ndarray:
        """Ascending rows of the control cells that the wanted cells of a request are matched with."""
        if request.cells >= request.controls.shape[0]:
            return np.arange(request.controls.shape[0])
        return np.sort(self._permutation(request, 0)[: request.cells])

    def _permutation(self, request: Request, number: int) -> np.ndarray:
        return _permutation(self.seed, request.address, request.controls.shape[0], number)


@functools.lru_cache(maxsize=4)  # the sets of a request follow each other
def _permutation(seed: int, address: int, size: int, number: int) -> np.ndarray:
    """The `number`-th permutation of a request's stream, without drawing those before it."""
    bits = np.random.Philox(key=[seed, address])
    bits.advance(number * size // 4)  # a count of this generator gives four numbers
    stream = np.random.Generator(bits)
    stream.random(number * size % 4)
    return np.argsort(stream.random(size)).astype(np.int64)

"""Several sources of sets in fixed shares, one store each: which source fills a slot is a pattern, nothing is stored.

Along every lane the pattern has a period of PERIOD sets, in which each source has its share exactly (largest
remainder), in an order drawn for the lane. So a source's own position in a lane is a count, found without walking
there, and its stream is the one that it would have alone: every one of its cells once in each of its own epochs.
"""

import collections
import dataclasses
import functools
import types
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from perturbdiff_jax.array_types import Batch, PackedBatch
from perturbdiff_jax.data.loader import SetSource
from perturbdiff_jax.data.loading.batcher import Batcher
from perturbdiff_jax.data.loading.draws import SOURCES, fold, shuffled
from perturbdiff_jax.data.loading.sampler import Draw, Rows
from perturbdiff_jax.errors import RequestError

PERIOD = 1024
ROLES = ("perturbation", "cell_type", "batch")
HINTS = {
    "genes": "\nPrepare all with one --genes list and --absent-genes zero.",
    "kinds of stored values": "\nAllowed: config.loader.densify=host, which makes all of them matrices on the host.",
}


class Mixture:
    """`mixture[step]` -> batch whose `source` says for every set which of the sources it is from.

    The sources must have been made for the same sets_per_batch, cells_per_set, divisor, pairing, form, process and
    blocks, and their stores must have the same genes. Attributes: sources, sets_per_batch, shares (sets of each source
    in a period).
    """

    def __init__(
        self,
        sources: Sequence[SetSource],
        weights: Sequence[float],
        *,
        sets_per_batch: int,
        seed: int,
        codes: Sequence[Mapping[str, np.ndarray]] | None = None,
    ):
        """Args:
            sources: one per store, in the order of their numbers.
            weights: shares of the sets, any positive numbers.
            sets_per_batch: B, of all processes together.
            seed: of the pattern; the sources have their own.
            codes: for each source, by role ("perturbation", "cell_type", "batch"), the code in the model's vocabulary
                of each code of its store. Roles left out, and None, leave the stores' codes as they are: then the
                stores must share their vocabularies, or the caller maps the codes by `source`.

        Raises:
            RequestError: sources that do not fit each other, or weights that are no shares.
        """
        self.sources, self.sets_per_batch, self._seed = list(sources), sets_per_batch, int(seed)
        self.shares = _shares(weights, len(self.sources))
        _check_alike(self.sources, sets_per_batch)
        first = self.sources[0]
        joined = _joined([source.store for source in self.sources], codes)
        self._first_group, self._first_cell = joined.first_group, joined.first_cell
        own = first.batcher
        self.batcher = Batcher(joined, own.form, own.divisor, first.pairing, blocks=own.runs)
        self._pattern = functools.lru_cache(maxsize=None)(self._pattern)

    @property
    def n_cells(self) -> int:
        """Perturbed cells of all sources."""
        return sum(source.n_cells for source in self.sources)

    @property
    def n_sets(self) -> int:
        """Sets in one epoch of each source."""
        return sum(source.n_sets for source in self.sources)

    @property
    def padding_share(self) -> float:
        """Share of the cells that only fill sets up, 0 to 1."""
        return float(np.average([source.padding_share for source in self.sources], weights=self.shares))

    @property
    def steps_per_epoch(self) -> float:
        """Steps until the source that lasts longest has been seen once."""
        sets = [source.n_sets / share for source, share in zip(self.sources, self.shares)]
        return max(sets) * PERIOD / self.sets_per_batch

    def draw(self, step: int) -> tuple[Draw, np.ndarray]:
        """The cells of a step's batch and the source of each set, [B] int32; groups and cells numbered through."""
        # By source: (lane, position of the source in the lane, sets).
        stretches = collections.defaultdict(list)
        slots = []
        for lane, first, count in self.sources[0].stretches(step):
            for position in range(first, first + count):
                number, own = self.place(lane, position)
                slots.append(number)
                stretches[number].append((lane, own, 1))
        slots = np.array(slots, np.int32)
        numbers = sorted(stretches)
        parts = [self.sources[number].sets(stretches[number]) for number in numbers]
        order = np.argsort(np.argsort(slots, kind="stable"), kind="stable")

        def merged(side: str) -> Rows:
            blocks, which, rows, cells = [], [], [], []
            for number, part in zip(numbers, parts):
                taken = getattr(part, side)
                which.append(taken.which + len(blocks))
                blocks += taken.blocks
                rows.append(taken.rows)
                cells.append(taken.cells + self._first_cell[number])
            return Rows(blocks, *(np.concatenate(part)[order] for part in (which, rows, cells)))

        group = np.concatenate([part.group + self._first_group[n] for n, part in zip(numbers, parts)])[order]
        epoch, mask = (
            np.concatenate([getattr(part, name) for part in parts])[order] for name in ("epoch", "mask")
        )
        return Draw(group, epoch, mask, merged("perturbed"), merged("control")), slots

    def place(self, lane: int, position: int) -> tuple[int, int]:
        """(source, its own position in the lane) of the lane's set at `position`."""
        pattern, before = self._pattern(lane)
        periods, inside = divmod(position, PERIOD)
        number = int(pattern[inside])
        return number, periods * int(self.shares[number]) + int(before[inside])

    def __getitem__(self, step: int) -> Batch | PackedBatch:
        draw, source = self.draw(step)
        return dataclasses.replace(self.batcher.batch(draw), source=source)

    def __iter__(self) -> Iterator[Batch | PackedBatch]:
        """Endless, from step 0."""
        step = 0
        while True:
            yield self[step]
            step += 1

    def _pattern(self, lane: int) -> tuple[np.ndarray, np.ndarray]:
        """[PERIOD] the source of each place, and how often it stands at the places before."""
        order = shuffled(fold(self._seed, SOURCES, lane), PERIOD)
        pattern = np.repeat(np.arange(len(self.shares)), self.shares)[order]
        before = np.empty(PERIOD, np.int64)
        for number, share in enumerate(self.shares.tolist()):
            before[pattern == number] = np.arange(share)
        return pattern, before


def _shares(weights: Sequence[float], count: int) -> np.ndarray:
    """Sets of each source in a period, by largest remainder."""
    weights = np.asarray(weights, np.float64)
    if weights.shape != (count,) or count == 0 or not (np.isfinite(weights) & (weights > 0)).all():
        raise RequestError(
            f"weights {weights.tolist()}: must be a positive number for each of {count} sources."
        )
    exact = weights / weights.sum() * PERIOD
    shares = np.floor(exact).astype(np.int64)
    shares[np.argsort(shares - exact, kind="stable")[: PERIOD - shares.sum()]] += 1
    if not shares.all():
        raise RequestError(
            f"weights {weights.tolist()}: the smallest must be at least 1/{PERIOD} of their sum."
        )
    return shares


def _check_alike(sources: list[SetSource], sets_per_batch: int) -> None:
    def facts(source) -> dict:
        store = source.store
        kind = [store.is_counts, store.is_dense] if source.batcher.form == "packed" else None
        return {
            "genes": list(store.genes),
            "sets_per_batch": source.sets_per_batch,
            "cells_per_set": source.index.cells_per_set,
            "form": (source.batcher.form, source.batcher.divisor, source.batcher.runs, source.pairing),
            "rows": source.rows,
            "kinds of stored values": kind,
        }

    first = facts(sources[0]) | {"sets_per_batch": sets_per_batch}
    for source in sources:
        for name, value in facts(source).items():
            if value != first[name]:
                hint = HINTS.get(name, "")
                raise RequestError(
                    f"{source.store.path}: its {name} differ from those of {sources[0].store.path}; "
                    f"sources can be mixed only if they agree.{hint}"
                )


def _joined(stores: list, codes: Sequence[Mapping[str, np.ndarray]] | None):
    """What a Batcher asks of a store, over several whose groups and cells are numbered through."""
    codes = [{}] * len(stores) if codes is None else codes

    def mapped(number: int, role: str, values: np.ndarray) -> np.ndarray:
        values = np.asarray(values)
        if role not in codes[number]:
            return values
        return np.where(values < 0, values, np.asarray(codes[number][role])[np.maximum(values, 0)])

    tables = {
        role: np.concatenate([mapped(n, role, getattr(s.groups, role)) for n, s in enumerate(stores)])
        for role in ROLES
    }
    cells = np.cumsum([0, *(store.n_cells for store in stores)])

    def batch_codes(rows: np.ndarray) -> np.ndarray:
        out = np.empty(rows.shape, np.int32)
        of = np.searchsorted(cells, rows, side="right") - 1
        for number, store in enumerate(stores):
            mine = of == number
            out[mine] = mapped(number, "batch", store.batch_codes(rows[mine] - cells[number]))
        return out

    return types.SimpleNamespace(
        genes=stores[0].genes,
        n_cells=int(cells[-1]),
        nnz=sum(store.nnz for store in stores),
        is_counts=stores[0].is_counts,
        is_dense=stores[0].is_dense,
        groups=types.SimpleNamespace(**tables),
        batch_codes=batch_codes,
        first_group=np.cumsum([0, *(len(store.groups.size) for store in stores)]),
        first_cell=cells,
    )

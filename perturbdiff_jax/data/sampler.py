"""Which cells stand where: a pure function of (group table, seed, set number). Rows only, no expression.

Every draw has its own key, folded from (seed, purpose, epoch, group, set), and its own counter stream:
SplitMix64 (Steele, Lea, Flood 2014) written out here, because a library's shuffle may change between versions
and a resumed run must see the same cells. For one key SplitMix64 never repeats a word, so sorting by its
words is an exact shuffle without ties.
"""

import dataclasses
import functools

import numpy as np

from perturbdiff_jax.data.index import SetIndex

# What a key is for. Numbers are part of the stream: never reuse or renumber them.
SETS, CELLS, FILL, CONTROLS = 1, 2, 3, 4

WORD = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15
MIX1, MIX2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * MIX1) & WORD
    z = ((z ^ (z >> 27)) * MIX2) & WORD
    return z ^ (z >> 31)


def fold(*parts: int) -> int:
    """Key (64-bit int) of a sequence of integers; order matters."""
    key = 0
    for part in parts:
        key = _mix(key ^ _mix((int(part) + GAMMA) & WORD))
    return key


def words(key: int, count: int) -> np.ndarray:
    """The first `count` words of the key's SplitMix64 stream, [count] uint64, all different."""
    z = np.arange(1, count + 1, dtype=np.uint64)
    z *= np.uint64(GAMMA)  # uint64 arrays wrap around, as the generator wants
    z += np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(MIX1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(MIX2)
    return z ^ (z >> np.uint64(31))


def shuffled(key: int, n: int) -> np.ndarray:
    """A uniform permutation of 0..n-1, [n] int64."""
    return np.argsort(words(key, n))


def chosen(key: int, n: int, count: int) -> np.ndarray:
    """`count` numbers of 0..n-1, [count] int64: all different if n >= count, else independent."""
    if n < count:
        return (words(key, count) % np.uint64(n)).astype(np.int64)
    if n <= 4 * count:
        return shuffled(key, n)[:count]
    ask = count + count // 4 + 8
    while (
        True
    ):  # the first `count` different values of independent draws; more words only extend the same stream
        drawn = (words(key, ask) % np.uint64(n)).astype(np.int64)
        _, first = np.unique(drawn, return_index=True)
        if len(first) >= count:
            return drawn[np.sort(first)[:count]]
        ask *= 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """The rows of B sets."""

    group: np.ndarray  # [B] int64, group in the store's table
    rows: np.ndarray  # [B, S] int64, cells of the store
    control_rows: np.ndarray  # [B, S] int64, cells of the store
    mask: np.ndarray  # [B, S] float32, 0 where the cell only fills the set up


class Sampler:
    """Cells of any set of the endless stream of epochs, in any order of asking.

    Each epoch shuffles the cells of every group, cuts them into sets, and shuffles the sets of all groups; a
    group's last set is filled up by drawing from the group again, with replacement (mask 0). Control cells
    come from the group's matched control group, drawn anew for every set: all different when the control
    group has S cells or more.

    A control group as target (pretraining, or `train_on_controls`) is its own control group. Its partner
    cells are the same shuffled order moved on by a random step, which makes every partner another cell than
    its target (groups of at least 2), and no partner a target of the same set (groups of at least 2 S).
    """

    def __init__(self, groups, index: SetIndex, *, seed: int, shuffle: bool = True):
        """With `shuffle=False` sets and cells are in the store's order; fillings and controls are drawn."""
        self.index = index
        self._seed, self._shuffle = int(seed), shuffle
        control = np.asarray(groups.control, np.int64)[index.group]
        self._is_own_control = control == index.group
        self._control_start = np.asarray(groups.start, np.int64)[control]
        self._control_size = np.asarray(groups.size, np.int64)[control]
        # Pure functions behind; the caches hold two epochs because a batch can run on into the next one.
        self._set_order = functools.lru_cache(maxsize=2)(self._set_order)
        self._cell_order = functools.lru_cache(maxsize=2 * len(index.group))(self._cell_order)

    def plan(self, first: int, count: int) -> Plan:
        """Rows of the sets first..first+count-1 of the endless stream."""
        epochs, places = self.index.epoch_of(np.arange(first, first + count))
        numbers = (
            np.array([self._set_order(int(e))[p] for e, p in zip(epochs, places)])
            if self._shuffle
            else places
        )
        positions, inside = self.index.locate(numbers)
        drawn = [self._set(int(e), int(g), int(k)) for e, g, k in zip(epochs, positions, inside)]
        return Plan(self.index.group[positions], *(np.stack(part) for part in zip(*drawn)))

    def _set(self, epoch: int, position: int, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        size, group = int(self.index.size[position]), int(self.index.group[position])
        n = self.index.cells_per_set
        order = self._cell_order(epoch, position)
        places = np.arange(number * n, (number + 1) * n)
        mask = (places < size).astype(np.float32)
        filling = int(n - mask.sum())
        if filling:
            again = words(fold(self._seed, FILL, epoch, group), filling) % np.uint64(size)
            places[n - filling :] = again.astype(np.int64)
        key = fold(self._seed, CONTROLS, epoch, group, number)
        if self._is_own_control[position]:
            low, high = (n, size - n) if size >= 2 * n else (1, size - 1) if size > 1 else (0, 0)
            step = low + int(words(key, 1)[0]) % (high - low + 1)
            control = order[(places + step) % size]
        else:
            control = chosen(key, int(self._control_size[position]), n)
        return self.index.start[position] + order[places], self._control_start[position] + control, mask

    def _set_order(self, epoch: int) -> np.ndarray:
        return shuffled(fold(self._seed, SETS, epoch), self.index.n_sets)

    def _cell_order(self, epoch: int, position: int) -> np.ndarray:
        size = int(self.index.size[position])
        if not self._shuffle:
            return np.arange(size)
        order = shuffled(fold(self._seed, CELLS, epoch, int(self.index.group[position])), size)
        return order.astype(
            np.int32
        )  # positions inside one group: half the memory, which grows with the cells

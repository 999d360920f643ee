"""Keyed draws: counter streams, exact permutations, exact samples without replacement. Numbers only, no cells.

A stream is SplitMix64 (Steele, Lea, Flood 2014) written out here, because a library's shuffle may change between
versions and a resumed run must see the same cells. What is drawn for a key depends on nothing but the key and the sizes
given with it, so many keys are served at once and any part of a stream can be had alone.
"""

import threading

import numpy as np

# What a key is for. Numbers are part of the stream: never reuse or renumber them.
SETS, CELLS, FILL, CONTROLS, SEGMENTS, OFFSETS, SLABS, SOURCES = range(1, 9)

WORD = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15
MIX1, MIX2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

# Bits of a sorting key: first place of the piece, random word, place in the piece.
FIRST_BITS, PLACE_BITS = 19, 17
WORD_BITS = 64 - FIRST_BITS - PLACE_BITS
LARGEST_PIECE, LARGEST_WINDOW = 1 << PLACE_BITS, 1 << FIRST_BITS

STRATA = 64  # a sample from more than so many times its size is stratified
AT_ONCE = 1 << 14  # draws made together, so that everything stays in the cache

_kept = threading.local()


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


def _mixed(z: np.ndarray) -> np.ndarray:
    """`_mix` of every number of a fresh uint64 array, in place."""
    shift = z >> np.uint64(30)
    z ^= shift
    z *= np.uint64(MIX1)  # uint64 arrays wrap around, as the generator wants
    np.right_shift(z, np.uint64(27), out=shift)
    z ^= shift
    z *= np.uint64(MIX2)
    np.right_shift(z, np.uint64(31), out=shift)
    z ^= shift
    return z


def folded(key: int | np.ndarray, *parts: np.ndarray) -> np.ndarray:
    """`fold` for many: keys [n] uint64 of `key` followed by each row of the int arrays `parts` [n].

    `folded(fold(a, b), c)[i] == fold(a, b, c[i])`.
    """
    for part in parts:
        inner = _mixed(np.asarray(part).astype(np.uint64) + np.uint64(GAMMA))
        inner ^= np.asarray(key, np.uint64)
        key = _mixed(inner)
    return key


def words(key: int, count: int) -> np.ndarray:
    """The first `count` words of the key's SplitMix64 stream, [count] uint64, all different."""
    return words_at(np.uint64(key), np.arange(count))


def words_at(keys: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Words of streams by their place from 0: keys uint64 and places int, broadcast together -> fresh uint64."""
    z = (places.astype(np.uint64) + np.uint64(1)) * np.uint64(GAMMA)
    return _mixed(z + keys)


def shuffled(key: int, n: int) -> np.ndarray:
    """A uniform permutation of 0..n-1, [n] int64. Words of one stream never repeat, so there are no ties."""
    return np.argsort(words(key, n))


def below(drawn: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Random words to int64 in 0..size-1 (broadcast). Sizes below 2**31; bias below size / 2**33."""
    drawn >>= np.uint64(31)
    drawn *= np.asarray(sizes, np.uint64)
    drawn >>= np.uint64(33)
    return drawn.view(np.int64)


def permuted(keys: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """For each key a permutation of 0..size-1, one after the other: keys uint64 [n], sizes int64 [n] -> int32.

    One sort for all: by piece, then by WORD_BITS bits of the key's words. Cells whose bits are equal (a few pairs among
    65,536 cells) keep their order among themselves.

    Raises ValueError for a size above LARGEST_PIECE and for more than LARGEST_WINDOW cells in all.
    """
    total = int(sizes.sum())
    if total > LARGEST_WINDOW or (len(sizes) and sizes.max() > LARGEST_PIECE):
        raise ValueError(f"{total} cells, the largest piece {sizes.max()}: too many for one sort")
    first = np.cumsum(sizes) - sizes
    first = np.repeat(first, sizes)
    place = np.arange(total) - first
    composite = words_at(np.repeat(keys, sizes), place)
    composite >>= np.uint64(64 - WORD_BITS)
    composite <<= np.uint64(PLACE_BITS)
    composite |= place.view(np.uint64)
    first <<= WORD_BITS + PLACE_BITS
    composite |= first.view(np.uint64)
    composite.sort()
    composite &= np.uint64(LARGEST_PIECE - 1)
    return composite.astype(np.int32)


def sampled(keys: np.ndarray, sizes: np.ndarray, count: int) -> np.ndarray:
    """For each key `count` numbers of 0..size-1: keys uint64 [n], sizes int64 [n] -> int32 [n, count].

    Independent draws where size < count, else all different and in random order: a uniform sample up to
    size = STRATA * count. From more numbers, STRATA * count equal strata that begin anywhere (and wrap around) are
    sampled, and one number of each: every number is as likely as any other, and only close ones rarely meet.
    """
    out = np.empty((len(keys), count), np.int32)
    scarce, tight = sizes < count, sizes < 4 * count
    rows = np.flatnonzero(scarce)
    out[rows] = below(words_at(keys[rows, None], np.arange(count)), sizes[rows, None])
    for size in np.unique(sizes[tight & ~scarce]).tolist():
        rows = np.flatnonzero(sizes == size)
        for part in np.split(rows, range(AT_ONCE // size + 1, len(rows), AT_ONCE // size + 1)):
            out[part] = _first_of_all(keys[part], size, count)
    strata = np.minimum(sizes, STRATA * count)
    rows = np.flatnonzero(~tight)
    rows = rows[np.argsort(-strata[rows], kind="stable")]  # so that the first of several has the most
    while len(rows):
        most = int(strata[rows[0]])
        several = max(1, AT_ONCE // count)
        part, rows = rows[:several], rows[several:]
        out[part] = _without_repeats(keys[part], strata[part], count, most)
    wide = np.flatnonzero(sizes > strata)
    for part in np.split(wide, range(AT_ONCE // count + 1, len(wide), AT_ONCE // count + 1)):
        out[part] = _spread(keys[part], sizes[part], strata[part], out[part])
    return out


def _first_of_all(keys, size: int, count: int) -> np.ndarray:
    """The first of a permutation of 0..size-1, by sorting words whose lowest bits are replaced by the number."""
    low = np.uint64((1 << size.bit_length()) - 1)
    composite = words_at(keys[:, None], np.arange(size))
    composite &= ~low
    composite |= np.arange(size, dtype=np.uint64)
    composite.sort(axis=1)
    return composite[:, :count] & low


def _spread(keys, sizes, strata, numbers) -> np.ndarray:
    """A number of each stratum [n, count] drawn."""
    keys = folded(keys, np.zeros(len(keys), np.int64))[:, None]
    width = (sizes // strata)[:, None]
    begin = below(words_at(keys, np.zeros(1)), sizes[:, None])
    inside = below(words_at(keys, np.arange(1, numbers.shape[1] + 1)), width)
    inside += numbers * width
    inside += begin
    inside -= (inside >= sizes[:, None]) * sizes[:, None]
    return inside


def _table(size: int, largest: int) -> np.ndarray:
    """Memory for `_without_repeats`, one per thread: new pages for every call would cost more than the work."""
    kind = np.uint16 if largest < 2**16 else np.uint32
    table = getattr(_kept, kind.__name__, None)
    if table is None or len(table) < size:
        table = np.zeros(size, kind)
        setattr(_kept, kind.__name__, table)
    return table


def _without_repeats(keys, sizes, count: int, most: int) -> np.ndarray:
    """Draws, finds the repeats in a table (row, number) -> place, and draws those again until there are none.

    Which of the equal numbers stays does not depend on the number, so every sample is equally likely. The table is
    never emptied: an entry counts only if the number at the place that it names is the one looked up.
    """
    n = len(keys)
    table = _table(n * most, count)
    numbers = below(words_at(keys[:, None], np.arange(count)), sizes[:, None])
    slots = (numbers + (np.arange(n) * most)[:, None]).reshape(-1)
    numbers = numbers.reshape(-1)
    places = np.tile(np.arange(count, dtype=table.dtype), n)
    table[slots] = places  # numpy assigns in order: the last of equal ones stays
    waiting = np.flatnonzero(table[slots] != places)
    turn = 0
    while len(waiting):
        turn += 1
        row, place = np.divmod(waiting, count)
        drawn = below(words_at(keys[row], turn * count + place), sizes[row])
        slot = row * most + drawn
        holder = np.minimum(table[slot], count - 1)
        free = np.flatnonzero(numbers[row * count + holder] != drawn)
        slot, place, drawn = slot[free], place[free].astype(table.dtype), drawn[free]
        table[slot] = place
        won = table[slot] == place
        numbers[waiting[free[won]]] = drawn[won]
        waiting = np.delete(waiting, free[won])
    return numbers.reshape(n, count)

"""Low-data training: a share of the perturbed training cells, drawn for each perturbation over all of its contexts.

Of the N training cells of a perturbation ceil(fraction * N) are kept, so every perturbation keeps at least one. How
many of them lie in each (cell type, batch) is drawn uniformly: every cell has a random word of the stream of (seed,
perturbation), and the cells with the smallest words are counted by group. Inside a group the rows of a store lie in
random order, so neighbours are a fair sample of it: the kept ones are a stretch that begins at a place that the seed
draws (past the end it goes on at the beginning), which is read at once. A larger fraction takes more words and longer
stretches from the same places, so it has all the cells of a smaller one. Control, validation and test cells stay as
they are.

Source: PerturbDiff, section 5.3 ("uniformly subsampling cells per perturbation at fixed ratios (1 %, 5 %), ensuring
that all perturbation types remain represented").
"""

import fractions
import math
import numbers

import numpy as np

from perturbdiff_jax.data.conditions import TRAIN
from perturbdiff_jax.data.loading.draws import below, fold, folded, words, words_at
from perturbdiff_jax.data.storage.face import StoreFace
from perturbdiff_jax.data.storage.members import Members
from perturbdiff_jax.data.storage.subset import stored_members, subset
from perturbdiff_jax.errors import RequestError

# What keys are for, besides those of groups.py and loading/draws.py.
CELLS, PLACES = 101, 102


def check_share(fraction: object, seed: object, where: str = "") -> None:
    """Raises RequestError, which names the two as `where` + "fraction" and "fraction_seed", unless they can be used."""
    number = isinstance(fraction, numbers.Real) and not isinstance(fraction, bool)
    if not number or not 0 < fraction <= 1:
        raise RequestError(
            f"{where}fraction={fraction!r}: must be above 0 and at most 1, the share of the perturbed training cells."
        )
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or not 0 <= seed < 2**32:
        raise RequestError(f"{where}fraction_seed={seed!r}: allowed are whole numbers from 0 to {2**32 - 1}.")


def low_data(store: StoreFace, *, fraction: float, seed: int = 0) -> StoreFace:
    """The store with a share of its perturbed training cells; the store itself when `fraction` is 1.

    A view: it has the store's vocabularies, and no cell is copied. It depends on the store, the fraction and the seed
    alone.

    Args:
        store: grouped by context, as stored or merged.
        fraction: above 0, at most 1.
        seed: of the draw, 0 to 2**32 - 1.

    Raises RequestError for another fraction or seed.
    """
    check_share(fraction, seed)
    if fraction == 1:
        return store
    return subset(store, *kept_cells(stored_members(store), fraction=fraction, seed=seed))


def kept_cells(members: Members, *, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(place of the first cell kept, number of cells kept) of every member, int64 [M] each; see storage/subset.py."""
    # As it is written: 0.07 * 100 is a little more than 7 as a float.
    share = fractions.Fraction(repr(float(fraction)))
    size = members.size.astype(np.int64)
    trained = np.flatnonzero(members.split == TRAIN)
    trained = trained[np.argsort(members.perturbation[trained], kind="stable")]
    codes, first = np.unique(members.perturbation[trained], return_index=True)
    for code, mine in zip(codes.tolist(), np.split(trained, first[1:])):
        cells = members.size[mine]
        total = int(cells.sum())
        size[mine] = _counts(fold(seed, CELLS, code), cells, math.ceil(share * total))
    keys = folded(fold(seed, PLACES), members.perturbation, members.cell_type, members.batch, members.part)
    place = below(words_at(keys, np.zeros(1)), members.size)
    return np.where(size < members.size, place, 0), size


def _counts(key: int, cells: np.ndarray, keep: int) -> np.ndarray:
    """How many of the `keep` cells with the smallest words lie in each stretch of `cells` [M] cells."""
    ends = np.cumsum(cells)
    if keep >= ends[-1]:
        return cells
    drawn = np.argpartition(words(key, int(ends[-1])), keep - 1)[:keep]
    return np.bincount(np.searchsorted(ends, drawn, side="right"), minlength=len(cells))

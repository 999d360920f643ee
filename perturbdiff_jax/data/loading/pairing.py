"""Which control cell of a set stands beside which perturbed cell: rows i of the two share a token.

A pairing is a function (perturbed [B, S, G], control [B, S, G]) -> control in paired order [B, S, G].
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

from perturbdiff_jax.errors import unknown


def random(perturbed: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Leaves the random draw as it is."""
    return control


def matched_order(perturbed: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Which control cell belongs beside each perturbed cell of one set: [S, G] twice -> [S] int64.

    The pairing with the least sum of squared distances: exact optimal transport inside the set.
    |x - y|^2 = |x|^2 + |y|^2 - 2 x.y, and the first two terms add the same amount to every pairing, so only
    the inner products decide. (No difference of large numbers, so float32 is enough. Near-ties may fall
    differently with another BLAS: the stream is pinned across machines for `random` only.)
    """
    return linear_sum_assignment(perturbed @ control.T, maximize=True)[1]


def matched(perturbed: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Optimal transport inside every set."""
    paired = np.empty_like(control)
    for x, y, out in zip(perturbed, control, paired):
        np.take(y, matched_order(x, y), axis=0, out=out)
    return paired


PAIRINGS = {"random": random, "matched": matched}


def find_pairing(name: str):
    """The pairing of that name. Raises RequestError, listing the names, for another one."""
    if name not in PAIRINGS:
        raise unknown("pairing", name, PAIRINGS)
    return PAIRINGS[name]

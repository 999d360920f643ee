"""Weights of the recorded networks, from a formula instead of a file.

Every array follows from its name in the released state_dict and its shape alone: standard normal numbers of numpy's
`RandomState` (its streams are frozen) seeded with the CRC-32 of the name, scaled in float64, then cast to float32.
So a fixture of a few kilobytes stands for a network of megabytes, and anyone can build it again with numpy.
"""

import math
import zlib
from collections.abc import Mapping

import numpy as np

NORM_WEIGHTS = ("q_norm.weight", "k_norm.weight", "layer_norm.weight")
TABLES = ("_encoder.weight", "_encoder.0.weight", "null_emb.weight")  # rows are looked up, not multiplied


def seeded(names_and_shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """float32 arrays by name: norm weights 1 + 0.1 z, biases 0.1 z, tables z, kernels (out, in) 0.7 z / sqrt(in)."""
    return {name: _draw(name, tuple(shape)) for name, shape in names_and_shapes.items()}


def fingerprint(arrays: Mapping[str, np.ndarray]) -> int:
    """CRC-32 of all float32 arrays in order of their names: tells whether two machines drew the same weights."""
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(np.ascontiguousarray(arrays[name], "<f4").tobytes(), crc)
    return crc


def _draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith(NORM_WEIGHTS):
        drawn = 1.0 + 0.1 * z
    elif name.endswith(".bias"):
        drawn = 0.1 * z
    elif name.endswith(TABLES):
        drawn = z
    elif name.endswith(".weight") and len(shape) == 2:
        drawn = 0.7 / math.sqrt(shape[1]) * z
    else:  # the dose index table, for one, is stored in its fixture
        raise ValueError(f"{name} {shape}: no rule draws this; rules exist for *.weight and *.bias")
    return drawn.astype(np.float32)

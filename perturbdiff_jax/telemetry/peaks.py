"""The most FLOP/s that devices can do, from their data sheet or, where none is known here, measured.

Which arithmetic a float32 matrix product gets is up to JAX's default precision, and the network leaves it there: one
pass of bfloat16 on TPU, TensorFloat-32 on NVIDIA GPUs that have it (Ampere and later), true float32 elsewhere. The
table holds the peak of just that, dense: NVIDIA's sheets print twice as much, for sparse matrices. The energy
distance asks for more (highest precision) and is slower than its peak; its share of a step's FLOPs is small.
"""

import re
import time
from collections.abc import Iterable

import jax
import jax.numpy as jnp

TERA = 1e12
# (device_kind, TFLOP/s of bfloat16, TFLOP/s of a float32 product at default precision), of one device, dense.
# Cloud TPU documentation, "Peak compute per chip"; NVIDIA's data sheets. A part of a GPU (MIG) matches none.
DATA_SHEETS = (
    (r"TPU v4", 275, 275),
    (r"TPU v5( lite|e)", 197, 197),
    (r"TPU v5p?", 459, 459),
    (r"TPU v6( lite|e)", 918, 918),
    (r"Tesla T4", 8.1, 8.1),  # neither bfloat16 nor TensorFloat-32: both run as float32
    (r"NVIDIA A100(-SXM4-|-PCIE-| )\d0GB( PCIe)?", 312, 156),
    (r"NVIDIA L4", 121, 60),
    (r"NVIDIA L40S", 362, 183),
    (r"NVIDIA H100 PCIe", 756, 378),
    (r"NVIDIA (H100|H200) NVL", 835, 417),
    (r"NVIDIA (H100 80GB HBM3|H200)", 989, 495),
    (r"NVIDIA B200", 2250, 1100),
)
SIZES = (512, 1024, 2048, 4096, 8192)  # of the matrices that are multiplied to measure
LONG_ENOUGH = 0.02  # seconds of one product: beyond, larger matrices are not faster
BOUND = 0.3  # seconds of measuring, compilation not counted


def peak_flops(devices: Iterable[jax.Device], dtype: str) -> tuple[float, str] | None:
    """FLOP/s of all `devices` together, and a text that says what it is and where it comes from.

    Devices of a kind that is not in the table are measured, one for all of the kind: at most `BOUND` seconds of
    matrix products. CPU devices of a process share its threads and are counted once for each process.

    Args:
      devices: those that train, over all processes.
      dtype: the model's, "float32" or "bfloat16".

    Returns:
      None where a kind is unknown and this process has no such device to measure.
    """
    total, texts = 0.0, []
    kinds: dict[str, list[jax.Device]] = {}
    for device in devices:
        kinds.setdefault(device.device_kind, []).append(device)
    for kind, members in kinds.items():
        shared = members[0].platform == "cpu"
        count = len({device.process_index for device in members}) if shared else len(members)
        peak, source = from_data_sheet(kind, dtype), "data sheet"
        if peak is None:
            here = [device for device in members if device.process_index == jax.process_index()]
            if not here:
                return None
            peak, source = measured(here[0], dtype), "measured"
        total += count * peak
        texts.append(f"{count} x {kind}, {dtype}: {count * peak / TERA:.3g} TFLOP/s ({source})")
    return (total, "; ".join(texts)) if texts else None


def from_data_sheet(kind: str, dtype: str) -> float | None:
    """FLOP/s of one device of this kind, None if it is not in the table."""
    for pattern, bfloat16, float32 in DATA_SHEETS:
        if re.fullmatch(pattern, kind):
            return TERA * {"bfloat16": bfloat16, "float32": float32}[dtype]
    return None


def measured(device: jax.Device, dtype: str) -> float:
    """FLOP/s of the fastest square matrix product on one device, over sizes up to what takes `LONG_ENOUGH`."""
    best, spent = 0.0, 0.0
    for size in SIZES:
        ones = jax.device_put(jnp.ones((size, size), dtype), device)
        product = jax.jit(jnp.dot).lower(ones, ones).compile()
        product(ones, ones).block_until_ready()  # a first call sets things up
        quickest = float("inf")
        for _ in range(3):
            began = time.perf_counter()
            product(ones, ones).block_until_ready()
            quickest = min(quickest, time.perf_counter() - began)
            spent += time.perf_counter() - began
        best = max(best, 2 * size**3 / quickest)
        # The next size takes eight times as long, four times over.
        if quickest > LONG_ENOUGH or spent + 32 * quickest > BOUND:
            break
    return best

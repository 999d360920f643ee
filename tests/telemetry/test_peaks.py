"""Peaks: names of devices as their drivers spell them, sums over devices, measuring that ends."""

import time
import types

import jax
import numpy as np
import pytest

from perturbdiff_jax.telemetry import peaks


def device(kind, platform="gpu", process=0):
    return types.SimpleNamespace(device_kind=kind, platform=platform, process_index=process)


@pytest.mark.parametrize(
    ("kind", "bfloat16", "float32"),
    [
        ("TPU v4", 275, 275),
        ("TPU v5 lite", 197, 197),
        ("TPU v5e", 197, 197),
        ("TPU v5", 459, 459),
        ("TPU v5p", 459, 459),
        ("TPU v6 lite", 918, 918),
        ("Tesla T4", 8.1, 8.1),
        ("NVIDIA A100-SXM4-40GB", 312, 156),
        ("NVIDIA A100-SXM4-80GB", 312, 156),
        ("NVIDIA A100-PCIE-40GB", 312, 156),
        ("NVIDIA A100 80GB PCIe", 312, 156),
        ("NVIDIA H100 80GB HBM3", 989, 495),
        ("NVIDIA H100 PCIe", 756, 378),
        ("NVIDIA H100 NVL", 835, 417),
        ("NVIDIA H200", 989, 495),
        ("NVIDIA L4", 121, 60),
        ("NVIDIA L40S", 362, 183),
        ("NVIDIA B200", 2250, 1100),
    ],
)
def test_data_sheets_by_the_name_of_the_device(kind, bfloat16, float32):
    found = [peaks.from_data_sheet(kind, dtype) for dtype in ("bfloat16", "float32")]
    assert found == [bfloat16 * 1e12, float32 * 1e12]


@pytest.mark.parametrize(
    "kind", ["cpu", "TPU v3", "TPU v7", "NVIDIA L40", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA H100"]
)
def test_other_devices_and_parts_of_one_are_in_no_sheet(kind):
    assert peaks.from_data_sheet(kind, "bfloat16") is None


def test_devices_add_up():
    four = [device("TPU v5 lite", "tpu", process) for process in (0, 0, 1, 1)]
    assert peaks.peak_flops(four, "float32") == (
        4 * 197e12,
        "4 x TPU v5 lite, float32: 788 TFLOP/s (data sheet)",
    )
    mixed, text = peaks.peak_flops([*four, device("NVIDIA L4")], "bfloat16")
    assert mixed == 4 * 197e12 + 121e12 and text.endswith(
        "; 1 x NVIDIA L4, bfloat16: 121 TFLOP/s (data sheet)"
    )


def test_unknown_devices_are_measured_once_and_virtual_ones_share_the_machine(monkeypatch):
    asked = []
    monkeypatch.setattr(peaks, "measured", lambda device, dtype: asked.append(device) or 5e12)
    new = [device("New 1"), device("New 1"), device("New 1", process=1)]
    assert peaks.peak_flops(new, "bfloat16") == (15e12, "3 x New 1, bfloat16: 15 TFLOP/s (measured)")
    assert asked == new[:1]
    virtual = [device("cpu", "cpu", process) for process in (0, 0, 0, 1, 1, 1)]
    assert peaks.peak_flops(virtual, "float32")[0] == 10e12
    assert peaks.peak_flops([device("New 1", process=1)], "float32") is None
    assert peaks.peak_flops([], "float32") is None


def test_what_is_measured_is_what_this_machine_does():
    began = time.monotonic()
    found, text = peaks.peak_flops(jax.devices(), "float32")
    assert time.monotonic() - began < 10  # compilation included, on a busy machine
    assert text.startswith("1 x cpu, float32") and text.endswith("(measured)")
    # numpy's own product on as many threads: the same machine, so the same order of magnitude.
    ones = np.ones((768, 768), np.float32)
    quickest = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        ones @ ones
        quickest = min(quickest, time.perf_counter() - began)
    assert 0.1 < found / (2 * 768**3 / quickest) < 10

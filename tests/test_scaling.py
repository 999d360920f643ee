"""The arithmetic of docs/scaling.md: against other figures of the same data sheets, and by hand on made-up rows."""

import math
import pathlib
import sys

import pytest

sys.path.append(str(pathlib.Path(__file__).parents[1] / "benchmarks"))
import tpu_scaling
from tpu_chips import CHIPS, chip_of, slice_shape

from perturbdiff_jax.telemetry.peaks import from_data_sheet


@pytest.mark.parametrize(("kind", "pod"), [("v5e", 51.2e12), ("v6e", 102.4e12)])
def test_a_whole_pod_sums_as_fast_as_its_data_sheet_says(kind, pod):
    """ "All-reduce bandwidth per pod", a figure that the table of chips does not use."""
    assert 256 * CHIPS[kind].reduce_rate((16, 16)) == pod
    assert CHIPS[kind].reduce_rate((4, 4)) == pod / 256 / 2  # open at the sides


@pytest.mark.parametrize(("kind", "units", "side"), [("v5e", 4, 128), ("v5p", 8, 128)])
def test_the_clock_is_the_one_that_the_peak_is_made_of(kind, units, side):
    chip = CHIPS[kind]
    assert chip.peak == pytest.approx(2 * units * side**2 * chip.clock, rel=0.005)


@pytest.mark.parametrize(("topology", "name"), [("v5e:4x4", "TPU v5 lite"), ("v5p:4x4x4", "TPU v5"), ("v6e:4x4", "TPU v6 lite")])  # fmt: skip # noqa: E501
def test_telemetry_knows_the_same_peaks(topology, name):
    assert chip_of(topology).peak == from_data_sheet(name, "bfloat16")


@pytest.mark.parametrize("chips", tpu_scaling.COUNTS)
def test_slices_have_as_many_chips_as_asked(chips):
    for chip in CHIPS.values():
        assert math.prod(slice_shape(chip, chips)) == chips
    assert slice_shape(CHIPS["v5e"], 8) == (4, 2) and slice_shape(CHIPS["v5p"], 64) == (4, 4, 4)


def row(mesh, sets, cycles, collectives):
    names = ("kind", "bytes", "sent", "overlaps", "in_branch")
    return {
        "topology": "v5e:4x4", "form": "finetuning", "mesh": mesh, "batch": "packed", "sets": sets, "remat": "none",
        "devices": 16, "cost": {"cycles": cycles, "flops": 197e9, "bytes": 819e6},
        "collectives": [dict(zip(names, one)) for one in collectives],
    }  # fmt: skip


ROWS = [
    row("data", 8, 45e6, [("all-reduce", 400e6, 750e6, False, False)]),
    row("data", 1, 10e6, [("all-reduce", 400e6, 750e6, False, False)]),
    row(
        "fsdp",
        8,
        48e6,
        [("collective-permute", 1e9, 1e9, True, False), ("all-gather", 1e8, 5e7, False, True)],
    ),
]


def test_steps_by_hand():
    one = tpu_scaling.compiled_of(ROWS, "v5e", "finetuning")
    assert one.compute(8) == pytest.approx(0.030) and one.compute(1) == pytest.approx(10e6 / 1.5e9)
    assert one.compute(4.5) == pytest.approx((45e6 + 10e6) / 2 / 1.5e9)  # halfway from 1 to 8
    assert one.limit() == pytest.approx(1e-3)
    # 16 chips, open sides: 2 x 15/16 x 400 MB at 100 GB/s. 1,024: four slices, 200 GB/s inside, 3.125 GB/s between.
    assert one.data_step(16) == pytest.approx(0.030 + 0.0075)
    between = 2 * 3 / 4 * 400e6 / 256 / 3.125e9
    assert one.data_step(1024) == pytest.approx(0.030 + 2 * 255 / 256 * 400e6 / 200e9 + between)
    # One group of 16: a gigabyte at 100 GB/s overlaps with computing, the 50 MB of every second step do not.
    assert one.fsdp_step(16) == pytest.approx(0.032 + 0.00025)
    # 32 ms less 35 M cycles: the gathers take longer.
    assert one.fsdp_step(16, 1) == pytest.approx(0.010 + 0.00025)
    # 16 groups sum a sixteenth each.
    assert one.fsdp_step(256) == pytest.approx(0.03225 + 2 * 15 / 16 * 400e6 / 16 / 100e9)


def test_the_tables_hold_every_count_of_chips():
    text = tpu_scaling.tables(ROWS)
    assert all(f"| {chips:,} | {8 * chips:,} |" in text for chips in tpu_scaling.COUNTS)
    assert "37.5 (80%)" in text  # 16 chips, data-parallel
    with pytest.raises(ValueError, match=r"tpu_aot\.py first"):
        tpu_scaling.tables([])

"""The meter against times set by hand: windows, waiting, pauses, utilisation, memory."""

import types

import pytest

from perturbdiff_jax.telemetry import meter
from perturbdiff_jax.telemetry.meter import Meter


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self):
        self.now = 50.0

    def __call__(self):
        return self.now

    def pass_(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


def speed(rates):
    return {name.removeprefix("speed/"): rate for name, rate in rates.items() if name.startswith("speed/")}


def test_a_window_is_what_passed_since_the_last_one(clock):
    timed = Meter(cells_per_step=64, flops_per_step=None, peak_flops=None, clock=clock)
    clock.pass_(4.0)
    first = speed(timed.take(8))
    assert first == {"steps_per_second": 2, "cells_per_second": 128, "data_wait_share": 0, "paused_share": 0}
    clock.pass_(2.0)
    assert speed(timed.take(1))["steps_per_second"] == 0.5
    assert timed.total_cells_per_second == 9 * 64 / 6


def test_pauses_are_left_out_of_rates_and_waiting_is_a_share_of_training(clock):
    timed = Meter(cells_per_step=10, flops_per_step=None, peak_flops=None, clock=clock)
    with timed.waiting():
        clock.pass_(1.0)
    clock.pass_(3.0)
    with timed.paused():
        clock.pass_(12.0)
    found = speed(timed.take(4))
    assert found == {
        "steps_per_second": 1,
        "cells_per_second": 10,
        "data_wait_share": 0.25,
        "paused_share": 0.75,
    }
    clock.pass_(4.0)  # the next window knows nothing of that pause
    assert speed(timed.take(4))["paused_share"] == 0
    totals = timed.totals()
    assert totals["paused_share"] == 12 / 20 and totals["data_wait_share"] == 1 / 8
    assert totals["cells_per_second"] == timed.total_cells_per_second == 10


def test_time_counts_when_the_work_inside_fails(clock):
    timed = Meter(cells_per_step=1, flops_per_step=None, peak_flops=None, clock=clock)
    for span in (timed.waiting, timed.paused):
        with pytest.raises(ValueError), span():
            clock.pass_(1.0)
            raise ValueError
    clock.pass_(1.0)
    found = speed(timed.take(2))
    assert (found["steps_per_second"], found["data_wait_share"]) == (1.0, 0.5)
    assert found["paused_share"] == pytest.approx(1 / 3)


def test_utilisation_is_model_flops_per_second_over_the_peak(clock):
    timed = Meter(cells_per_step=1, flops_per_step=3e9, peak_flops=1e11, clock=clock)
    clock.pass_(0.5)
    assert speed(timed.take(5))["mfu"] == pytest.approx(5 * 3e9 / 0.5 / 1e11)
    assert timed.totals()["mfu"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    "known", [{"flops_per_step": None, "peak_flops": 1e9}, {"flops_per_step": 1e9, "peak_flops": None}]
)
def test_without_flops_or_peak_there_is_no_utilisation(clock, known):
    timed = Meter(cells_per_step=1, clock=clock, **known)
    clock.pass_(1.0)
    assert "speed/mfu" not in timed.take(1)


def test_an_empty_window_has_rates_of_zero(clock):
    timed = Meter(cells_per_step=1, flops_per_step=None, peak_flops=None, clock=clock)
    assert timed.total_cells_per_second == 0
    assert set(speed(timed.take(0)).values()) == {0}


def test_memory_of_the_host_is_the_most_it_ever_was():
    block = bytearray(200 * 2**20)
    held = meter.memory()["host_gib"]
    assert held > len(block) / 2**30
    assert meter.memory()["host_gib"] >= held
    with open("/proc/self/status") as status:  # the kernel's own words: VmHWM in kB
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    assert meter.memory()["host_gib"] == pytest.approx(peak / 2**20, rel=0.02)


def test_memory_of_the_fullest_device(monkeypatch, clock):
    stats = [{"bytes_in_use": 2**30, "peak_bytes_in_use": 3 * 2**30}, {"bytes_in_use": 2**31}, None]
    devices = [types.SimpleNamespace(memory_stats=lambda one=one: one) for one in stats]
    monkeypatch.setattr(meter.jax, "local_devices", lambda: devices)
    taken = Meter(cells_per_step=1, flops_per_step=None, peak_flops=None, clock=clock).take(1)
    assert (taken["memory/device_gib"], taken["memory/device_peak_gib"]) == (2.0, 3.0)
    monkeypatch.setattr(meter.jax, "local_devices", lambda: devices[2:])
    assert set(meter.memory()) == {"host_gib"}

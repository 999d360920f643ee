"""The progress line and the words for a time span."""

import io

import pytest

from perturbdiff_jax.telemetry import progress
from perturbdiff_jax.telemetry.progress import Progress, duration


@pytest.mark.parametrize(("seconds", "text"), [(-3, "0:00"), (0, "0:00"), (65.9, "1:05"), (3723, "1:02:03")])
def test_duration(seconds, text):
    assert duration(seconds) == text


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


def test_progress_tells_how_far_and_how_long(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    line = Progress(1000, "step", start=400)
    clock.now += 60
    line.show(500, "loss 1.0")
    line.show(1000, "loss 0.5")
    assert (
        capsys.readouterr().out
        == "step 500/1,000  loss 1.0  time left 5:00\nstep 1,000/1,000  loss 0.5  done\n"
    )


def test_progress_away_from_a_terminal_is_not_chatty(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    line = Progress(10, "set", every=5.0)
    for done in range(1, 11):
        clock.now += 1
        line.show(done)
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["5/10", "10/10"]


def test_progress_on_a_terminal_is_one_line(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(progress.sys, "stderr", screen)
    line = Progress(2, "set")
    line.show(1)
    line.show(2)
    assert screen.getvalue().count("\n") == 1 and screen.getvalue().count("\r") == 2

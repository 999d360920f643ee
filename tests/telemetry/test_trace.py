"""Traces of a span of steps: when they start and end, and that they hold the steps and the work."""

import jax
import jax.numpy as jnp
import pytest

from perturbdiff_jax.telemetry import trace
from perturbdiff_jax.telemetry.trace import Trace


@pytest.fixture
def calls(monkeypatch):
    """What the profiler is told, instead of a profiler."""
    made = []
    monkeypatch.setattr(trace.jax.profiler, "start_trace", lambda folder: made.append("start"))
    monkeypatch.setattr(trace.jax.profiler, "stop_trace", lambda: made.append("stop"))
    return made


def walk(tracer, calls, steps):
    for step in steps:
        tracer.at(step)
        calls.append(step)
    tracer.close()


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (range(6), [0, 1, "start", 2, 3, "stop", 4, 5]),
        (range(3, 6), ["start", 3, "stop", 4, 5]),  # resumed inside the span
        (range(4, 6), [4, 5]),  # resumed behind it
        (range(3), [0, 1, "start", 2, "stop"]),  # the run ends inside it
        (range(2), [0, 1]),
    ],
)
def test_the_span_decides(tmp_path, calls, steps, expected):
    walk(Trace(range(2, 4), tmp_path), calls, steps)
    assert calls == expected


def test_closing_twice_and_without_a_span_is_nothing(tmp_path, calls):
    tracer = Trace(range(0, 5), tmp_path)
    walk(tracer, calls, range(2))
    tracer.close()
    assert calls == ["start", 0, 1, "stop"]
    walk(Trace(None, tmp_path / "none"), calls, range(2))
    assert calls[4:] == [0, 1] and not (tmp_path / "none").exists()


def test_the_steps_and_their_work_are_in_the_file_where_tensorboard_looks(tmp_path, capsys):
    work = jax.jit(lambda x: jnp.tanh(x @ x))
    x, tracer = jnp.ones((64, 64)), Trace(range(41, 43), tmp_path / "profile")
    for step in range(40, 45):
        tracer.at(step, x)
        x = work(x)
    tracer.close()
    assert str(tmp_path / "profile") in capsys.readouterr().out
    (file,) = (tmp_path / "profile").glob("plugins/profile/*/*.xplane.pb")
    content = file.read_bytes()
    assert b"step_num" in content and b"jit__lambda" in content.replace(b"jit_<lambda>", b"jit__lambda")
    data = jax.profiler.ProfileData.from_serialized_xspace(content)
    numbers = {
        dict(event.stats).get("step_num")
        for plane in data.planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    }
    assert numbers == {41, 42}

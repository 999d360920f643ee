"""The log and the progress line: a resumed log reads like an unbroken one."""

import io
import json

import pytest

from perturbdiff_jax import telemetry
from perturbdiff_jax.telemetry import Progress, RunLog, duration


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines_beyond_the_resumed_step_are_dropped(tmp_path):
    log = RunLog(tmp_path / "logs")
    for step in (2, 4, 6):
        log.write(step, "train", {"loss/total": step / 2})
    log.write(4, "validation", {"validation/energy": 0.5})
    log.close()
    with open(tmp_path / "logs/metrics.jsonl", "a") as file:
        file.write('{"step": 8, "ti')  # killed in the middle of a line
    again = RunLog(tmp_path / "logs", first_step=4)
    again.write(5, "train", {"loss/total": 9})
    again.close()
    found = [(row["step"], row["kind"]) for row in rows(tmp_path / "logs")]
    assert found == [(2, "train"), (4, "train"), (4, "validation"), (5, "train")]
    assert rows(tmp_path / "logs")[1]["loss/total"] == 2.0 and all(
        row["time"] > 1e9 for row in rows(tmp_path / "logs")
    )
    assert [path.name for path in (tmp_path / "logs").glob("*.partial")] == []


def test_a_whole_last_line_without_its_end_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kind": "train"}')
    log = RunLog(tmp_path, first_step=1)
    log.write(2, "train", {"loss/total": 1})
    log.close()
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]


def test_a_fresh_start_begins_an_empty_log(tmp_path):
    for _ in range(2):
        log = RunLog(tmp_path)
        log.write(1, "train", {"loss/total": 1})
        log.close()
    assert len(rows(tmp_path)) == 1


def test_events_are_scalars_of_the_same_names(tmp_path):
    from tensorboardX.event_file_writer import EventFileWriter  # noqa: F401  (the package is there)
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import RecordWriter  # noqa: F401

    log = RunLog(tmp_path)
    log.write(3, "train", {"loss/total": 0.25})
    log.close()
    raw = next(tmp_path.glob("events.out.tfevents*")).read_bytes()
    found, at = {}, 0
    while at < len(raw):
        length = int.from_bytes(raw[at : at + 8], "little")
        event = event_pb2.Event.FromString(raw[at + 12 : at + 12 + length])
        found |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
        at += 12 + length + 4
    assert found == {"loss/total": (3, 0.25)}


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
    monkeypatch.setattr(telemetry, "time", clock)
    progress = Progress(1000, "step", start=400)
    clock.now += 60
    progress.show(500, "loss 1.0")
    progress.show(1000, "loss 0.5")
    assert (
        capsys.readouterr().out
        == "step 500/1,000  loss 1.0  time left 5:00\nstep 1,000/1,000  loss 0.5  done\n"
    )


def test_progress_away_from_a_terminal_is_not_chatty(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(telemetry, "time", clock)
    progress = Progress(10, "set", every=5.0)
    for done in range(1, 11):
        clock.now += 1
        progress.show(done)
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["5/10", "10/10"]


def test_progress_on_a_terminal_is_one_line(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(telemetry.sys, "stderr", screen)
    progress = Progress(2, "set")
    progress.show(1)
    progress.show(2)
    assert screen.getvalue().count("\n") == 1 and screen.getvalue().count("\r") == 2

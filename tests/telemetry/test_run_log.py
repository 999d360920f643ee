"""The log: a resumed log reads like an unbroken one, TensorBoard gets the same names, one process writes."""

import json

from perturbdiff_jax.telemetry.run_log import RunLog


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


def test_a_process_that_does_not_lead_touches_no_file(tmp_path):
    log = RunLog(tmp_path / "logs", first_step=3, writes=False)
    log.write(4, "train", {"loss/total": 1})
    log.close()
    assert list(tmp_path.iterdir()) == []

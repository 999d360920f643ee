"""Seconds by stage, and threads that change no number."""

import time

import pandas as pd
import pytest
from toy_cells import evaluated, prediction, screen, store_of

from perturbdiff_jax.evaluation import threads
from perturbdiff_jax.evaluation.stages import so_far, stage, timed


def test_a_stage_inside_another_is_not_counted_twice(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 3.5, 4.0, 10.0, 10.25])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with timed() as seconds:  # 0
        with stage("outer"), stage("inner"):  # 1, 3
            pass  # 3.5, 4
        with stage("outer"):  # 10
            pass  # 10.25
        assert so_far() == {"outer": 2.0 + 0.5 + 0.25, "inner": 0.5}
    assert seconds == {"outer": 2.75, "inner": 0.5} and so_far() == {}


def test_without_a_record_nothing_is_counted_and_a_failing_stage_is_left():
    @stage("anything")
    def job():
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError):
            job()
    with timed() as seconds:
        with pytest.raises(ValueError):
            job()
        with stage("after"):
            pass
    assert list(seconds) == ["anything", "after"]


def test_items_keep_their_order_and_a_fault_its_kind(monkeypatch):
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert threads.threads(threads.LARGE - 1) == 1 and threads.threads(threads.LARGE) == 3
    for values in (0, threads.LARGE):
        slow_first = threads.mapped(lambda i: time.sleep(0.02 * (i == 0)) or -i, range(7), values)
        assert slow_first == [0, -1, -2, -3, -4, -5, -6]
        with pytest.raises(ZeroDivisionError):
            threads.mapped(lambda i: 1 // (i - 3), range(7), values)


def test_threads_change_no_number_and_stages_add_up(tmp_path, monkeypatch):
    raw = screen()
    alone = evaluated(tmp_path / "alone", prediction(raw), store=store_of(raw))
    monkeypatch.setattr(threads, "LARGE", 0)
    dealt = evaluated(tmp_path / "dealt", prediction(raw), store=store_of(raw))
    pd.testing.assert_frame_equal(alone.rows, dealt.rows, check_exact=True)
    stages = dealt.settings["stages"]
    assert {"reading", "training cells", "energy distances", "plane of cells"} <= set(stages)
    assert sum(stages.values()) <= dealt.settings["seconds"] + 0.2

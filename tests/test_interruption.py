"""SIGTERM: heard at once outside the training loop, at the next step inside it, and once only."""

import os
import signal
import threading

import pytest
from tiny_run import said

from perturbdiff_jax import processes
from perturbdiff_jax.errors import RunError, Stopped
from perturbdiff_jax.interruption import Interruption
from perturbdiff_jax.main import guarded


@pytest.fixture(autouse=True)
def before():
    """What SIGTERM does outside; an exception of its own rather than the end of the test run."""

    def outside(*_):
        raise RuntimeError("not for the run")

    old = signal.signal(signal.SIGTERM, outside)
    yield outside
    signal.signal(signal.SIGTERM, old)


def term():
    os.kill(os.getpid(), signal.SIGTERM)


def test_outside_the_loop_it_ends_the_run_at_once(before):
    reached = []
    with pytest.raises(Stopped, match=r"what is done stays\. Give the same command again"), Interruption():
        reached.append("before")
        term()
        reached.append("after")
    assert reached == ["before"]


def test_a_second_signal_does_not_break_the_way_out(before):
    tidied = []
    with pytest.raises(Stopped), Interruption():
        try:
            term()
        finally:
            term()
            tidied.append(True)
    term()  # nor one after it: the process is about to end with code 0
    assert tidied == [True] and signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_inside_the_loop_it_waits_to_be_asked_for(before):
    with Interruption() as stop:
        with pytest.raises(Stopped, match="at step 3"), stop.deferred():
            assert not stop.at()
            term()
            term()
            assert stop.at()
            raise Stopped("saved at step 3")
        with pytest.raises(Stopped):
            stop.check()


def test_one_that_came_too_late_for_the_last_step_counts_behind_it(before):
    with pytest.raises(Stopped, match="what is done stays"), Interruption() as stop, stop.deferred():
        term()


def test_without_a_signal_everything_is_as_before(before):
    with Interruption() as stop, stop.deferred():
        assert not stop.at()
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(RuntimeError, match="not for the run"):
        term()


def test_elsewhere_than_in_the_main_thread_it_does_not_listen(before):
    def job():
        with Interruption() as stop:
            found.append(stop.at())

    found = []
    thread = threading.Thread(target=job)
    thread.start()
    thread.join()
    assert found == [False] and signal.getsignal(signal.SIGTERM) is before


def test_several_processes_go_by_jaxs_agreement(before, monkeypatch):
    from jax.experimental import multihost_utils

    asked = []

    def agreed(number):
        asked.append(number)
        return number == 3

    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", agreed)
    with Interruption() as stop:
        assert signal.getsignal(signal.SIGTERM) is before  # JAX's own, there
        assert [stop.at() for _ in range(4)] == [False, False, True, True]
    assert asked == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("error", "code", "out", "err"),
    [
        (Stopped("Stopped by SIGTERM at step 7; saved."), 0, "Stopped by SIGTERM at step 7; saved.\n", ""),
        (
            RunError("step 7: not finite.\nStep 6 is safe."),
            1,
            "",
            "error: step 7: not finite.\nStep 6 is safe.\n",
        ),
        (KeyboardInterrupt(), 130, "", "interrupted; give the same command again to go on\n"),
    ],
    ids=["SIGTERM", "a run that cannot go on", "Ctrl-C"],
)
def test_command_lines_say_how_a_run_ended(error, code, out, err):
    def job():
        raise error

    assert said(lambda _: guarded(job)) == (code, out, err)

"""grain ahead of a source: the same batches from any step on, errors at their step, nothing left running."""

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from fake_store import fake_store

from perturbdiff_jax.data.loader import SetSource
from perturbdiff_jax.data.loading.prefetch import prefetch
from perturbdiff_jax.errors import RequestError

ROOT = Path(__file__).parents[2]


def source(**changed):
    return SetSource(fake_store(), **{"cells_per_set": 8, "sets_per_batch": 3, "seed": 0, **changed})


def assert_same(one, other):
    for field in ("perturbed", "control", "perturbation", "cell_type", "batch", "mask"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=field)


@pytest.mark.parametrize("tier", ["resident", "streamed"])
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_prefetch_equals_asking_and_starts_anywhere(threads, tier):
    made = source(tier=tier)
    got = list(prefetch(made, 4, stop_step=15, num_threads=threads))
    assert [step for step, _ in got] == list(range(4, 15))
    for step, batch in got:
        assert_same(batch, source()[step])


def test_resuming_repeats_the_unbroken_run():
    unbroken = dict(prefetch(source(), 0, stop_step=9))
    first = prefetch(source(), 0)
    taken = [next(first) for _ in range(4)]
    first.close()
    resumed = taken + list(prefetch(source(), taken[-1][0] + 1, stop_step=9))
    assert [step for step, _ in resumed] == list(unbroken)
    for step, batch in resumed:
        assert_same(batch, unbroken[step])


def test_prefetch_raises_the_sources_error_at_its_step():
    class Broken:
        def __getitem__(self, step):
            if step == 2:
                raise RequestError("cell 7 is damaged")
            return step

    ahead = prefetch(Broken())
    assert [next(ahead), next(ahead)] == [(0, 0), (1, 1)]
    with pytest.raises(RequestError, match="cell 7 is damaged"):
        next(ahead)


def test_closing_prefetch_stops_the_work_ahead():
    asked = []

    class Slow:
        def __getitem__(self, step):
            asked.append(step)
            time.sleep(0.02)
            return step

    ahead = prefetch(Slow(), num_threads=1, buffer=20)
    next(ahead)
    ahead.close()
    done = len(asked)
    time.sleep(0.2)
    assert len(asked) <= done + 1  # the batch under way may end, the ones behind it are dropped
    with pytest.raises(StopIteration):
        next(ahead)


def test_leaving_prefetch_early_does_not_hang_the_process():
    """The process leaves an endless, slow source in the middle: once closed, once simply dropped at exit."""
    script = """
        import time
        from perturbdiff_jax.data.loading.prefetch import prefetch
        class Slow:
            def __getitem__(self, step):
                time.sleep(0.05)
                return step
        closed = prefetch(Slow(), 3, num_threads=2, buffer=4)
        assert next(closed) == (3, 3)
        closed.close()
        left = prefetch(Slow(), num_threads=2, buffer=4)
        for step, item in left:
            if step == 2:
                break
        print("left", flush=True)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 0 and done.stdout == "left\n", done.stderr

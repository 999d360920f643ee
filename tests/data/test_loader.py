"""Batches: the right cells as numbers, the same stream in every way of asking, and grain ahead of it."""

import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from fake_store import TABLE, fake_store

from perturbdiff_jax.data.loader import ResidentCells, SetSource, ordered, prefetch
from perturbdiff_jax.errors import RequestError

FIELDS = ("perturbed", "control", "perturbation", "cell_type", "batch", "mask")
ROOT = Path(__file__).parents[2]


def source(**changed):
    return SetSource(fake_store(), **{"cells_per_set": 8, "sets_per_batch": 3, "seed": 0, **changed})


def assert_same(one, other):
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=field)


def rows_of(expression):
    """Row numbers, which fake_store writes into gene 0."""
    return np.rint(expression[..., 0] * 10).astype(int) - 1


def test_batch_holds_the_planned_cells_divided_and_the_codes():
    store, made = fake_store(), source(train_on_controls=True)
    for step in range(6):
        batch, plan = made[step], made.plan(step)
        for b in range(3):
            for s in range(8):
                np.testing.assert_array_equal(
                    batch.perturbed[b, s], store.dense[plan.rows[b, s]] / np.float32(10)
                )
                np.testing.assert_array_equal(
                    batch.control[b, s], store.dense[plan.control_rows[b, s]] / np.float32(10)
                )
            context, perturbation, _, _ = TABLE[plan.group[b]]
            codes = (batch.perturbation[b], batch.cell_type[b], batch.batch[b])
            assert codes == (perturbation, context, context % 2)
        np.testing.assert_array_equal(batch.mask, plan.mask)


def test_controls_are_targets_only_when_asked_for():
    for asked, cells in ((False, 59), (True, 59 + 46)):
        made = source(train_on_controls=asked)
        codes = {int(code) for step in range(len(made)) for code in made[step].perturbation}
        assert (0 in codes) == asked and made.n_cells == cells


def test_shapes_and_types():
    batch = source()[0]
    assert batch.perturbed.shape == batch.control.shape == (3, 8, 7) and batch.mask.shape == (3, 8)
    assert {batch.perturbed.dtype, batch.control.dtype, batch.mask.dtype} == {np.dtype(np.float32)}
    for code in (batch.perturbation, batch.cell_type, batch.batch):
        assert code.shape == (3,) and code.dtype == np.int32


def test_the_stores_own_matrix_is_left_alone_and_cells_can_be_shared():
    store = fake_store()
    before = store.load().data.copy()
    cells = ResidentCells(store)
    one = SetSource(store, cells_per_set=8, sets_per_batch=3, seed=0, cells=cells)
    assert one.cells is cells
    assert_same(one[0], source()[0])
    np.testing.assert_array_equal(store.load().data, before)
    with pytest.raises(ValueError, match=r"divided by 10\.0.*asks for 1"):
        SetSource(store, cells_per_set=8, sets_per_batch=3, seed=0, divisor=1.0, cells=cells)


def test_every_cell_once_an_epoch_across_batches_that_run_on():
    made = source()  # 10 sets in an epoch, 3 in a batch: 10 batches are exactly 3 epochs
    sets = [
        (rows_of(x), mask) for step in range(10) for x, mask in zip(made[step].perturbed, made[step].mask)
    ]
    train = [row for row in range(129) if fake_store().groups.split[fake_store().group_of[row]] == 0]
    for epoch in range(3):
        real = np.concatenate([rows[mask == 1] for rows, mask in sets[10 * epoch : 10 * epoch + 10]])
        assert sorted(real) == train


def test_any_order_of_asking_and_a_fresh_source_give_the_same_stream():
    one, other = source(seed=5), source(seed=5)
    forward = [one[step] for step in range(12)]
    for step in (11, 3, 7, 0, 11, 4):
        assert_same(other[step], forward[step])
        assert_same(source(seed=5)[step], forward[step])
    assert (source(seed=6)[0].perturbed != forward[0].perturbed).any()


def test_the_stream_of_sets_does_not_depend_on_the_batch_size():
    wide, narrow = source(sets_per_batch=6), source(sets_per_batch=2)
    parts = [narrow[step] for step in range(6)]
    for step in range(2):
        for field in FIELDS:
            joined = np.concatenate([getattr(part, field) for part in parts[3 * step : 3 * step + 3]])
            np.testing.assert_array_equal(getattr(wide[step], field), joined)


def test_sizes_that_a_source_reports():
    made = source()
    assert (made.n_cells, made.n_sets, len(made)) == (59, 10, 4)
    assert made.steps_per_epoch == pytest.approx(10 / 3) and made.padding_share == pytest.approx(21 / 80)
    assert len(source(sets_per_batch=5)) == 2


def test_matched_pairing_has_the_least_cost_and_the_same_cells():
    random, matched = source(), source(pairing="matched")
    for step in range(4):
        one, other = random[step], matched[step]
        np.testing.assert_array_equal(one.perturbed, other.perturbed)
        for x, drawn, paired in zip(one.perturbed, one.control, other.control):
            np.testing.assert_array_equal(np.sort(rows_of(drawn)), np.sort(rows_of(paired)))
            cost = np.sum((x - paired) ** 2)
            assert cost <= np.sum((x - drawn) ** 2) + 1e-3
            for i in range(8):  # no exchange of two cells makes it better
                for j in range(i):
                    swapped = paired.copy()
                    swapped[[i, j]] = paired[[j, i]]
                    assert cost <= np.sum((x - swapped) ** 2) + 1e-3


@pytest.mark.parametrize("split", ["validation", "test", "train", "control"])
def test_ordered_has_every_cell_once_in_order(split):
    store = fake_store()
    batches = list(made := ordered(store, split, cells_per_set=8, sets_per_batch=3))
    assert len(batches) == len(made) and {batch.perturbed.shape for batch in batches} == {(3, 8, 7)}
    real = np.concatenate([rows_of(batch.perturbed)[batch.mask == 1] for batch in batches])
    code = ("train", "validation", "test", "control").index(split)
    expected = [row for row in range(store.n_cells) if store.groups.split[store.group_of[row]] == code]
    assert real.tolist() == expected
    for batch, again in zip(batches, made):
        assert_same(batch, again)
    with pytest.raises(IndexError):
        made[len(made)]


def test_ordered_can_take_the_first_cells_of_each_group():
    made = ordered(fake_store(), "train", cells_per_set=8, sets_per_batch=3, max_cells=5)
    assert made.n_cells == 5 + 5 + 3 + 1 + 5 == sum(batch.mask.sum() for batch in made)


def test_wrong_requests_are_named():
    with pytest.raises(RequestError, match=r"unknown pairing 'match'.*'matched'"):
        source(pairing="match")
    with pytest.raises(RequestError, match="sets_per_batch = 0"):
        source(sets_per_batch=0)
    with pytest.raises(RequestError, match=r"fake\.store: unknown split"):
        source(split="tests")
    with pytest.raises(IndexError, match="step -1"):
        source()[-1]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_prefetch_equals_asking_and_starts_anywhere(threads):
    made = source()
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
        from perturbdiff_jax.data.loader import prefetch
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


def test_real_sized_matrix_gathers_exactly():
    """Repeated and unordered rows of a larger CSR matrix, with empty rows, against numpy indexing."""
    matrix = sp.random(500, 60, 0.05, format="csr", dtype=np.float32, random_state=1)
    cells = ResidentCells(types.SimpleNamespace(load=lambda: matrix), divisor=2.0)
    rows = np.random.default_rng(0).integers(0, 500, (5, 40))
    np.testing.assert_array_equal(cells.dense(rows), matrix.toarray()[rows] / np.float32(2))

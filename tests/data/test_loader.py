"""Batches: the right cells as numbers, and the same stream in every way of asking."""

import numpy as np
import pytest
from fake_store import TABLE, fake_store, random_table

from perturbdiff_jax.data.loader import SetSource, ordered
from perturbdiff_jax.data.loading import tiers
from perturbdiff_jax.data.loading.set_stream import Reach
from perturbdiff_jax.errors import RequestError

FIELDS = ("perturbed", "control", "perturbation", "cell_type", "batch", "mask")
SHORT = Reach(window=200, piece=32, segment=50)


def source(store=None, **changed):
    options = {"cells_per_set": 8, "sets_per_batch": 3, "seed": 0, **changed}
    return SetSource(store or fake_store(), **options)


def assert_same(one, other):
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=field)


def rows_of(expression):
    """Row numbers, which fake_store writes into gene 0."""
    return np.rint(expression[..., 0] * 10).astype(int) - 1


def share(number, hosts, sets=16):
    """The rows of one of so many hosts."""
    return range(number * sets // hosts, (number + 1) * sets // hosts)


def test_batch_holds_the_planned_cells_divided_and_the_codes():
    store, made = fake_store(), source(train_on_controls=True)
    for step in range(6):
        batch, plan = made[step], made.draw(step)
        for b in range(3):
            for s in range(8):
                np.testing.assert_array_equal(
                    batch.perturbed[b, s], store.dense[plan.perturbed.cells[b, s]] / np.float32(10)
                )
                np.testing.assert_array_equal(
                    batch.control[b, s], store.dense[plan.control.cells[b, s]] / np.float32(10)
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


def test_the_cells_in_memory_can_be_shared():
    store = fake_store()
    one = source(store)
    store.fetched.clear()
    other = source(store, cells=one.cells, seed=1)
    validation = ordered(store, "validation", cells_per_set=8, sets_per_batch=3, cells=one.cells)
    assert other.cells is one.cells and not store.fetched
    assert_same(other[0], source(seed=1)[0])
    assert (rows_of(validation[0].perturbed) == validation.draw(0).cells).all()
    for changed in ({"divisor": 1.0}, {"densify": "device"}):
        with pytest.raises(ValueError, match=r"divided by 10\.0; this source asks for"):
            source(store, cells=one.cells, **changed)


def test_a_store_is_loaded_in_parts(monkeypatch):
    monkeypatch.setattr(tiers, "LOADED_AT_ONCE", 100)
    store = fake_store()
    made = source(store)
    assert len(store.fetched) == 4 and sum(store.fetched) == store.n_cells
    for step in range(4):
        assert_same(made[step], source()[step])


def test_batches_run_on_across_epochs():
    made = source()  # 10 sets in an epoch, 3 in a batch: 10 batches are exactly 3 epochs
    real = np.concatenate([rows_of(made[step].perturbed)[made[step].mask == 1] for step in range(10)])
    store = fake_store()
    train = np.flatnonzero(store.groups.split[store.group_of] == 0)
    assert sorted(real.tolist()) == sorted([*train.tolist()] * 3)


def test_any_order_of_asking_and_a_fresh_source_give_the_same_stream():
    one, other = source(seed=5), source(seed=5)
    forward = [one[step] for step in range(12)]
    for step in (11, 3, 7, 0, 11, 4):
        assert_same(other[step], forward[step])
        assert_same(source(seed=5)[step], forward[step])
    assert (source(seed=6)[0].perturbed != forward[0].perturbed).any()


@pytest.mark.parametrize("hosts", [2, 4, 8])
@pytest.mark.parametrize("tier", ["resident", "streamed"])
def test_the_batch_of_several_hosts_is_the_batch_of_one(hosts, tier):
    store, options = fake_store(random_table()), {"sets_per_batch": 16, "reach": SHORT, "tier": tier}
    whole = source(store, **options)
    parts = [source(store, rows=[share(number, hosts)], **options) for number in range(hosts)]
    for step in (0, 1, 7, 30):
        made = [part[step] for part in parts]
        assert {len(part.mask) for part in made} == {16 // hosts}
        for field in FIELDS:
            joined = np.concatenate([getattr(part, field) for part in made])
            np.testing.assert_array_equal(getattr(whole[step], field), joined)


@pytest.mark.parametrize("tier", ["resident", "streamed"])
def test_any_rows_of_a_batch_can_be_asked_for(tier):
    """Parts of lanes, runs that do not follow each other: 128 sets in 64 lanes of two."""
    store, options = fake_store(random_table()), {"sets_per_batch": 128, "reach": SHORT, "tier": tier}
    whole, rows = source(store, **options), [range(3, 4), range(4, 9), range(70, 71), range(127, 128)]
    part = source(store, rows=rows, **options)
    assert part.rows == [range(3, 9), range(70, 71), range(127, 128)]
    for step in (0, 5):
        for field in FIELDS:
            expected = getattr(whole[step], field)[[row for span in rows for row in span]]
            np.testing.assert_array_equal(getattr(part[step], field), expected)


@pytest.mark.parametrize("batch", [1, 6, 8, 67, 128])
def test_every_cell_once_an_epoch_whatever_the_batch(batch):
    store = fake_store(random_table())
    made = source(store, sets_per_batch=batch, reach=SHORT)
    expected = np.flatnonzero(store.groups.split[store.group_of] == 0)
    drawn = [made.draw(step) for step in range(3 * made.n_sets // batch + 2)]
    for epoch in range(3):
        real = np.concatenate([d.cells[(d.mask == 1) & (d.epoch == epoch)[:, None]] for d in drawn])
        np.testing.assert_array_equal(np.sort(real), expected)


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
    for changed, message in (
        ({"tier": "memory"}, r"unknown tier 'memory'(.|\n)*streamed"),
        ({"densify": "gpu"}, r"unknown densify 'gpu'(.|\n)*device"),
        ({"group_by": "batch"}, r"unknown group_by 'batch'(.|\n)*cell_type"),
        ({"control_memory": 0}, "control_memory = 0"),
        ({"rows": [range(2, 9)]}, "ascending ranges of the 3 sets"),
        ({"rows": [range(2, 3), range(0, 1)]}, "ascending ranges"),
        ({"rows": []}, "0 sets of it"),
        ({"blocks": 2}, "2 devices"),
    ):
        with pytest.raises(RequestError, match=message):
            source(**changed)
    with pytest.raises(IndexError, match="step -1"):
        source()[-1]

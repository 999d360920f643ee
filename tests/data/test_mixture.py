"""Several sources: exact shares, each source's own stream untouched, the same batches on any number of hosts."""

import collections
import dataclasses

import numpy as np
import pytest
from fake_store import fake_store, random_table

from perturbdiff_jax.data.loader import SetSource
from perturbdiff_jax.data.loading.mixture import PERIOD, Mixture
from perturbdiff_jax.data.loading.prefetch import prefetch
from perturbdiff_jax.data.loading.set_stream import Reach
from perturbdiff_jax.errors import RequestError

FIELDS = ("perturbed", "control", "perturbation", "cell_type", "batch", "mask", "source")
SHORT = Reach(window=200, piece=32, segment=50)
STORES = [fake_store(random_table(groups, seed=seed)) for seed, groups in enumerate((40, 12, 20))]
WEIGHTS = [5, 3, 0.5]


def sources(stores=STORES, tier="resident", **changed):
    options = {"cells_per_set": 8, "sets_per_batch": 8, "reach": SHORT, "tier": tier} | changed
    return [SetSource(store, seed=seed, **options) for seed, store in enumerate(stores)]


def mixed(weights=WEIGHTS, seed=0, codes=None, **changed):
    batch = changed.get("sets_per_batch", 8)
    return Mixture(sources(**changed), weights, sets_per_batch=batch, seed=seed, codes=codes)


def assert_same(one, other):
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=field)


@pytest.mark.parametrize(
    ("weights", "shares"),
    [([1, 1, 1], [342, 341, 341]), ([5, 3, 0.5], [602, 362, 60]), ([1000, 23, 1], [1000, 23, 1])],
)
def test_shares_are_exact_in_every_period_of_a_lane(weights, shares):
    made = mixed(weights)
    assert made.shares.tolist() == shares and sum(shares) == PERIOD
    for lane in (0, 7):
        for first in (0, 5 * PERIOD):
            found = collections.Counter(made.place(lane, first + k)[0] for k in range(PERIOD))
            assert [found[n] for n in range(3)] == shares


def test_a_sources_positions_follow_each_other_along_a_lane():
    made = mixed()
    for lane in (0, 3):
        seen = collections.Counter()
        for position in range(2 * PERIOD + 100):
            number, own = made.place(lane, position)
            assert own == seen[number]
            seen[number] += 1
    orders = [[made.place(lane, k)[0] for k in range(PERIOD)] for lane in range(3)]
    assert orders[0] != orders[1] != orders[2]
    assert orders[0] != [mixed(seed=1).place(0, k)[0] for k in range(PERIOD)]


def test_every_source_gives_each_of_its_cells_once_in_its_own_epoch():
    made = mixed()
    first_cell = np.cumsum([0, *(store.n_cells for store in STORES)])
    found = collections.Counter()
    for step in range(round(2.5 * made.steps_per_epoch)):
        draw, source = made.draw(step)
        for cells, mask, epoch, number in zip(draw.cells, draw.mask, draw.epoch, source):
            if epoch < 2:
                found.update(
                    (int(number), int(epoch), int(cell - first_cell[number])) for cell in cells[mask == 1]
                )
    expected = {
        (number, epoch, cell)
        for number, store in enumerate(STORES)
        for epoch in (0, 1)
        for cell in np.flatnonzero(store.groups.split[store.group_of] == 0).tolist()
    }
    assert set(found) == expected and set(found.values()) == {1}


def test_a_batch_holds_the_sets_of_its_sources_with_their_codes():
    made, seen = mixed(), set()
    first_group = np.cumsum([0, *(len(store.groups.size) for store in STORES)])
    for step in range(20):
        batch, (draw, source) = made[step], made.draw(step)
        np.testing.assert_array_equal(batch.source, source)
        assert batch.source.dtype == np.int32
        for b, number in enumerate(source):
            store, seen = STORES[number], seen | {int(number)}
            group = draw.group[b] - first_group[number]
            row = np.rint(batch.perturbed[b, :, 0] * 10).astype(int) - 1
            assert (store.group_of[row] == group).all()
            np.testing.assert_array_equal(batch.perturbed[b], store.dense[row] / np.float32(10))
            control = np.rint(batch.control[b, :, 0] * 10).astype(int) - 1
            assert (store.group_of[control] == store.groups.control[group]).all()
            np.testing.assert_array_equal(batch.control[b], store.dense[control] / np.float32(10))
            codes = (batch.perturbation[b], batch.cell_type[b], batch.batch[b])
            assert codes == tuple(
                getattr(store.groups, n)[group] for n in ("perturbation", "cell_type", "batch")
            )
    assert seen == {0, 1, 2}


def test_codes_can_be_mapped_source_by_source():
    maps = [{}, {"cell_type": np.array([10, 11, 12, 13]), "perturbation": np.arange(100, 120)}, {}]
    plain, made = mixed(), mixed(codes=maps)
    for step in range(10):
        one, other = plain[step], made[step]
        mine = one.source == 1
        np.testing.assert_array_equal(other.cell_type, one.cell_type + 10 * mine)
        np.testing.assert_array_equal(other.perturbation, one.perturbation + 100 * mine)
        np.testing.assert_array_equal(other.batch, one.batch)
        assert other.cell_type.dtype == np.int32


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_the_batch_of_several_hosts_is_the_batch_of_one(hosts):
    whole = mixed(sets_per_batch=16)
    parts = [
        mixed(
            sets_per_batch=16, rows=[range(number * 16 // hosts, (number + 1) * 16 // hosts)], tier="streamed"
        )
        for number in range(hosts)
    ]
    for step in (0, 3, 150):
        made = [part[step] for part in parts]
        joined = {field: np.concatenate([getattr(part, field) for part in made]) for field in FIELDS}
        assert_same(whole[step], dataclasses.replace(made[0], **joined))


def test_any_step_can_be_asked_for_and_prefetch_resumes():
    forward = [batch for _, batch in zip(range(12), mixed())]
    for step in (11, 3, 0):
        assert_same(mixed()[step], forward[step])
    for step, batch in prefetch(mixed(tier="streamed"), 5, stop_step=12):
        assert_same(batch, forward[step])


def test_a_packed_mixture_knows_its_sources():
    batch, dense = mixed(densify="device", blocks=2)[3], mixed()[3]
    np.testing.assert_array_equal(batch.source, dense.source)
    np.testing.assert_array_equal(batch.mask, dense.mask)


def test_sizes_that_a_mixture_reports():
    made = mixed()
    assert made.n_sets == sum(s.n_sets for s in made.sources) and made.n_cells == sum(
        s.n_cells for s in made.sources
    )
    assert made.steps_per_epoch * 8 * 60 / 1024 >= made.sources[2].n_sets - 1e-6
    assert 0 < made.padding_share < 1


def test_wrong_requests_are_named():
    for weights, message in (
        ([1, 2], "for each of 3 sources"),
        ([1, 2, 0], "positive"),
        ([1, 1, float("nan")], "positive"),
        ([10_000, 1, 1], "at least 1/1024"),
    ):
        with pytest.raises(RequestError, match=message):
            mixed(weights)
    other = fake_store(genes=8)
    with pytest.raises(RequestError, match=r"fake\.store: its genes differ"):
        Mixture(sources([STORES[0], other]), [1, 1], sets_per_batch=8, seed=0)
    with pytest.raises(RequestError, match="with one --genes list and --absent-genes zero"):
        Mixture(sources([STORES[0], other]), [1, 1], sets_per_batch=8, seed=0)
    with pytest.raises(RequestError, match="its sets_per_batch differ"):
        Mixture(sources(), WEIGHTS, sets_per_batch=4, seed=0)
    uneven = [*sources(STORES[:1]), *sources(STORES[1:2], cells_per_set=4)]
    with pytest.raises(RequestError, match="its cells_per_set differ"):
        Mixture(uneven, [1, 1], sets_per_batch=8, seed=0)
    with pytest.raises(IndexError, match="step -1"):
        mixed().draw(-1)

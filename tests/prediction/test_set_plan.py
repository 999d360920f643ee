"""How requests are cut into sets and parts, and which control cell serves each cell."""

import numpy as np
import pytest
import scipy.sparse as sp

from perturbdiff_jax.prediction.set_plan import Request, SetPlan


def request(cells, controls=5, name="P"):
    return Request(name, "T", "B", (1, 0, 0), cells, sp.csr_matrix((controls, 3), dtype=np.float32))


def plan(requests, sets=3, cells=4, seed=7):
    return SetPlan(requests=requests, cells_per_set=cells, sets_per_part=sets, seed=seed)


def in_one_go(asked, cells_per_set, seed):
    """Rows of all sets of a request: the stream of permutations drawn from its beginning."""
    stream = np.random.Generator(np.random.Philox(key=[seed, asked.address]))
    wanted = -(-asked.cells // cells_per_set) * cells_per_set
    rows = []
    while len(rows) < wanted:
        rows += np.argsort(stream.random(asked.controls.shape[0])).tolist()
    return np.array(rows[:wanted]).reshape(-1, cells_per_set)


@pytest.mark.parametrize("sizes", [[7], [1, 4, 5, 12, 3], [40, 40]])
@pytest.mark.parametrize("sets", [1, 3, 50])
def test_parts_hold_every_cell_once_and_in_order(sizes, sets):
    ours = plan([request(size, name=f"P{i}") for i, size in enumerate(sizes)], sets)
    found = [one for part in range(ours.parts) for one in ours.sets_of(part)]
    expected = [
        (f"P{i}", first // 4, min(4, size - first))
        for i, size in enumerate(sizes)
        for first in range(0, size, 4)
    ]
    assert [(one.request.perturbation, one.index, one.cells) for one in found] == expected
    assert ours.sets == len(found) and ours.cells == sum(sizes)
    assert [ours.cells_of(part) for part in range(ours.parts)] == [
        sum(cells for _, _, cells in expected[first : first + sets])
        for first in range(0, len(expected), sets)
    ]


@pytest.mark.parametrize("controls", [1, 3, 5, 8, 50])
@pytest.mark.parametrize("backwards", [False, True])
def test_control_cells_are_those_of_one_stream_whatever_is_looked_at(controls, backwards):
    asked = [request(30, controls), request(11, controls, "Q")]
    ours = plan(asked, sets=1)
    numbers = range(ours.parts)
    found = {n: ours.control_rows(ours.sets_of(n)[0]) for n in (reversed(numbers) if backwards else numbers)}
    expected = np.concatenate([in_one_go(one, 4, 7) for one in asked])
    np.testing.assert_array_equal([found[n] for n in numbers], expected)


@pytest.mark.parametrize("cells", [1, 4, 5, 6, 100])
def test_used_control_cells_are_those_of_the_wanted_cells(cells):
    asked = request(cells, 6)
    expected = np.unique(in_one_go(asked, 4, 7).ravel()[:cells])
    np.testing.assert_array_equal(plan([asked]).used_rows(asked), expected)


def test_a_plan_of_any_length_is_cheap_to_look_into():
    many = plan([request(10**12, 1000), request(5, 1000, "Q")], sets=16, cells=256)
    assert many.parts == -(-(10**12 // 256 + 1) // 16)
    assert [one.request.perturbation for one in many.sets_of(many.parts - 1)][-1] == "Q"
    rows = many.control_rows(many.sets_of(many.parts - 2)[0])
    assert len(set(rows.tolist())) > 100 and rows.max() < 1000

"""Short ranges read with what lies between them: which rows are read, in which stages, and what comes out."""

import threading

import numpy as np
import pytest
import uneven_screens

from perturbdiff_jax.data.low_data import low_data
from perturbdiff_jax.data.raw_cells import RawCells
from perturbdiff_jax.data.storage import staged_fetch
from perturbdiff_jax.data.storage import view as storage_view
from perturbdiff_jax.data.storage.fetch import rearranged
from perturbdiff_jax.data.storage.staged_fetch import Stage, StagedFetch, stages_of
from perturbdiff_jax.errors import RequestError

CASES = {
    "apart": ([0, 0, 0], [0, 500, 900], [3, 4, 5]),
    "close": ([0, 0, 0], [0, 20, 40], [3, 4, 5]),
    "adjacent": ([0, 0], [5, 8], [3, 4]),
    "two parts": ([0, 0, 1, 1], [0, 30, 40, 400], [3, 4, 5, 6]),
    "a long one": ([0, 0, 0, 0], [0, 40, 400, 420], [3, 300, 5, 1]),
}


def rows_of(part, row, size):
    """(part, row) of every row of the pieces, one after the other."""
    return [(p, r + step) for p, r, n in zip(part, row, size) for step in range(n)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("most", [1, 40, 10_000])
@pytest.mark.parametrize("through", [0, 16, 160])
def test_stages_hold_every_row_once_and_little_else(monkeypatch, case, most, through):
    monkeypatch.setattr(staged_fetch, "THROUGH", through)
    part, row, size = (np.array(column) for column in CASES[case])
    taken, read = [], []
    for stage in stages_of(part, row, size, most=most):
        rows = [(p, r) for p, start, stop in stage.reads for r in range(start, stop)]
        chosen = np.arange(len(rows))
        if stage.pieces is not None:
            chosen = np.concatenate([np.arange(first, first + count) for first, count in zip(*stage.pieces)])
            assert len(chosen) < len(rows)
        taken += [rows[at] for at in chosen]
        read += rows
        # The last piece may be longer than a stage.
        assert len(rows) <= most + max(size) + through
        assert all(start < stop for _, start, stop in stage.reads)
    wanted = rows_of(part, row, size)
    assert taken == wanted and len(read) == len(set(read))
    for spare in set(read) - set(wanted):
        near = [abs(spare[1] - r) for p, r in wanted if p == spare[0]]
        assert min(near) <= through
    if most == 10_000 and case == "close":
        assert (len(read) == 45) == (through >= 17)


def test_rows_between_are_dropped():
    """Rows 1, 2 and 5 of six cells, 5 first; what is stored of a cell tells its number."""
    counts = np.array([2, 0, 3, 1, 2, 4])
    data = np.repeat(np.arange(6), counts).astype(np.uint16)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    cells = RawCells(data, np.arange(len(data), dtype=np.uint16), indptr, np.arange(6, dtype=np.float32), 99)
    kept = rearranged(cells, np.array([5, 1]), np.array([1, 2]))
    assert kept.data.tolist() == [5, 5, 5, 5, 2, 2, 2] and kept.indptr.tolist() == [0, 4, 4, 7]
    assert kept.indices.tolist() == [8, 9, 10, 11, 2, 3, 4] and kept.scale.tolist() == [5, 1, 2]


@pytest.mark.parametrize("layout", ["one store", "merged"])
@pytest.mark.parametrize("stage_bytes", [1, 2000, 2**25])
def test_a_view_reads_the_same_by_stages(build, tmp_path, monkeypatch, layout, stage_bytes):
    make = uneven_screens.prepared if layout == "one store" else uneven_screens.merged
    view = low_data(make(build, tmp_path), fraction=0.3)
    ranges = [(40, 71), (3, 3), (10, 40), (80, 81), (0, 5)]
    view.thinned = False  # as views are read that leave nothing out
    plain = view.fetch(ranges).result().lognorm().toarray()
    view.thinned = True
    monkeypatch.setattr(storage_view, "STAGE_BYTES", stage_bytes)
    fetch = view.fetch(ranges)
    assert (len(fetch._stages) > 3) == (stage_bytes == 1)
    found = []
    threads = [threading.Thread(target=lambda: found.append(fetch.result())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for cells in found:
        np.testing.assert_array_equal(cells.lognorm().toarray(), plain)
    assert len(view.fetch([(2, 2)]).result()) == 0


def test_a_stage_that_cannot_be_read_says_so_and_one_is_read_ahead():
    asked = []

    class Bad:
        def result(self):
            raise RequestError("the disk is gone.")

    def ask(stage):
        asked.append(stage.reads[0][1])
        return Bad()

    fetch = StagedFetch([Stage([(0, row, row + 1)], None) for row in (1, 2, 3)], ask, None)
    assert asked == [1]
    with pytest.raises(RequestError, match="the disk is gone"):
        fetch.result()
    assert asked == [1, 2]

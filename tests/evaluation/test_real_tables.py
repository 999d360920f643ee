"""Kept differential expression of real cells: found again by content, made anew when damaged, computed once."""

import io
import pickle

import numpy as np
import pytest
import scipy.sparse as sp
from toy_cells import evaluated, foreign, prediction, screen

from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.evaluation import celleval, real_tables
from perturbdiff_jax.evaluation.contexts import Context, as_cells
from perturbdiff_jax.evaluation.real_tables import RealTables, content_key

pl = pytest.importorskip("polars")
needs_celleval = pytest.mark.skipif(
    not celleval.installed(), reason="cell-eval (extra [eval]) is not installed"
)
TABLE = pl.DataFrame(
    {
        "target": ["P1", "P1", "P2"],
        "feature": ["g0", "g1", "g0"],
        "p_value": [0.5, 1e-300, float("nan")],
        "fdr": [0.75, 2e-300, 1.0],
        "log2_fold_change": [float("inf"), -0.1, 0.0],
    },
    schema_overrides={"fdr": pl.Float32},
)
KEY = "0" * 32


def cells(seed, count=3):
    rng = np.random.default_rng(seed)
    return as_cells(sp.csr_matrix(rng.poisson(1.0, size=(count, 4)).astype(np.float32)))


def key(**changes):
    given = {
        "cells": {"P1": cells(1), "P2": cells(2)},
        "control": cells(3),
        "genes": ("a", "b", "c", "d"),
        "label": "control",
        "settings": {"is_log1p": True, "cell-eval": "0.8.2"},
    }
    return content_key(**(given | changes))


def test_the_key_depends_on_everything_and_on_nothing_else():
    same = {"P2": cells(2), "P1": cells(1)}  # another order
    assert key() == key(cells=same) and len(key()) == 32
    moved = cells(1).copy()
    moved.data[0] = np.nextafter(moved.data[0], np.float32(9))
    others = [
        key(cells={"P1": moved, "P2": cells(2)}),
        key(cells={"P1": cells(2), "P2": cells(1)}),
        key(cells={"P1": cells(1), "P3": cells(2)}),
        key(cells={"P1": cells(1)}),
        key(control=cells(4)),
        key(control=cells(3)[:, ::-1].sorted_indices()),
        key(genes=("a", "b", "d", "c")),
        key(genes=("a", "b", "cd", "")),
        key(label="ctrl"),
        key(settings={"is_log1p": False, "cell-eval": "0.8.2"}),
        key(settings={"is_log1p": True, "cell-eval": "0.8.3"}),
    ]
    assert len({key(), *others}) == len(others) + 1


def test_a_table_comes_back_as_it_was(tmp_path):
    made = []
    for count in (1, 1):
        tables = RealTables(tmp_path / "de", print)
        found = tables.get(KEY, lambda: made.append(1) or TABLE)
        assert found.equals(TABLE, null_equal=True) and found.schema == TABLE.schema
        assert len(made) == count
    assert (tables.read, tables.computed) == (1, 0)
    assert [path.suffix for path in (tmp_path / "de").iterdir()] == [".parquet"]


def flip(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def parquet(table):
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    return buffer.getvalue()


DAMAGE = {
    "a bit": flip,
    "cut short": lambda data: data[:-40],
    "empty": lambda data: b"",
    "a pickle": lambda data: pickle.dumps({"target": 1}),
    "other numbers": lambda data: parquet(TABLE.with_columns(p_value=pl.lit(0.01))),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_made_anew_with_a_remark(kind, tmp_path):
    RealTables(tmp_path, print).get(KEY, lambda: TABLE)
    (path,) = tmp_path.iterdir()
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    said = []
    tables = RealTables(tmp_path, said.append)
    assert tables.get(KEY, lambda: TABLE).equals(TABLE, null_equal=True)
    assert (tables.read, tables.computed) == (0, 1)
    assert len(said) == 1 and path.name in said[0] and "damaged" in said[0]
    again = RealTables(tmp_path, said.append)
    again.get(KEY, lambda: pytest.fail("it was computed a second time"))
    assert len(list(tmp_path.iterdir())) == 1 and len(said) == 1


def test_a_whole_file_of_something_else_is_not_believed(tmp_path):
    tables = RealTables(tmp_path, lambda _: None)
    tables._write(KEY, pl.DataFrame({"target": ["P1"]}))
    assert tables.get(KEY, lambda: TABLE) is TABLE and tables.computed == 1


def test_what_cannot_be_written_is_said_and_costs_nothing_else(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(real_tables.os, "replace", full)
    said = []
    assert RealTables(tmp_path, said.append).get(KEY, lambda: TABLE) is TABLE
    assert len(said) == 1 and "No space left" in said[0] and list(tmp_path.iterdir()) == []


def test_a_file_in_the_directorys_place_is_refused_before_anything(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(RequestError, match="is a file; give a directory"):
        evaluated(tmp_path / "out", prediction(screen()), cache=tmp_path / "cache")
    assert not (tmp_path / "out").exists()


@needs_celleval
def test_settings_and_versions_are_part_of_the_key(tmp_path, monkeypatch):
    context = Context("A", ("a", "b", "c", "d"), {"x": cells(3, 8)}, {("x", "P1"): cells(1, 8)})

    def computed(**options):
        tables = RealTables(tmp_path, print)
        celleval.ContextScorer(context, "control", tables=tables, **options)
        return tables.computed

    assert [computed(), computed()] == [1, 0]
    assert [computed(is_log1p=False), computed(is_log1p=False)] == [1, 0]
    monkeypatch.setattr(celleval, "versions", lambda: {"cell-eval": "9.0", "pdex": "9.0"})
    assert [computed(), computed()] == [1, 0]


@needs_celleval
def test_real_cells_are_tested_once_for_all_models_and_later_calls(tmp_path, monkeypatch):
    raw = screen()
    calls = []
    compute = celleval.expression_table

    def counted(given, control, *rest, **options):
        calls.append(round(float(sum(part.sum() for part in given.values())), 3))
        return compute(given, control, *rest, **options)

    monkeypatch.setattr(celleval, "expression_table", counted)
    sources = {"ours": prediction(raw), "state": foreign(raw), "third": foreign(raw, seed=6)}
    found = evaluated(tmp_path / "a", sources, cache=tmp_path / "cache")
    # Per cell type: the real cells, three predictions, the control rival, the ceiling's truth and its half.
    assert len(calls) == 2 * 7 and len(set(calls)) == 14
    assert found.settings["real_de_tables"] == {"read": 0, "computed": 4}
    assert not (tmp_path / "a" / "real_de").exists()

    calls.clear()
    other = {"later": foreign(raw, seed=9), **sources}
    again = evaluated(tmp_path / "b", other, cache=tmp_path / "cache")
    assert len(calls) == 2 * 6  # four predictions, control, the ceiling's half: no real side
    assert again.settings["real_de_tables"] == {"read": 4, "computed": 0}
    fresh = evaluated(tmp_path / "c", other)
    assert again.rows.equals(fresh.rows) and (tmp_path / "c" / "real_de").is_dir()
    said = []
    evaluated(tmp_path / "b", other, said=said, cache=tmp_path / "cache")
    assert any("differential expression: 4 of 4 tables read" in line for line in said)
    changed = raw.copy()
    changed.X[0, 0] += 1.0  # an A / x control: not evaluated
    at = int(np.flatnonzero((raw.obs["lot"] == "y") & (raw.obs["type"] == "B"))[0])
    changed.X[at, 0] += 1.0
    third = evaluated(tmp_path / "d", other, real=changed, cache=tmp_path / "cache")
    assert third.settings["real_de_tables"] == {"read": 2, "computed": 2}  # cell type B anew

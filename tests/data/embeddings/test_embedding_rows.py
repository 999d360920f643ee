"""What the network is told of each name: vectors side by side, learned rows, never a silent zero."""

import numpy as np
import pytest

from perturbdiff_jax.data.embeddings.files import checked
from perturbdiff_jax.data.embeddings.labels import Label, read_label
from perturbdiff_jax.data.embeddings.registry import Encoding
from perturbdiff_jax.data.embeddings.rows import (
    absent_words,
    cell_type_rows,
    nearest,
    perturbation_rows,
    vector_of,
)

ONE = checked(["A", "B", "C"], np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]), "one")
TWO = checked(["A", "C", "D"], np.array([[5.0], [6.0], [7.0]]), "two")
NAMES = ["control", "A", "A+B", "C", "D"]


@pytest.mark.parametrize(
    ("label", "wanted"),
    [
        ("KLF1", Label(("KLF1",))),
        ("KLF1+MAP2K6", Label(("KLF1", "MAP2K6"))),
        ("control+KLF1", Label(("KLF1",))),
        ("KLF1 + control", Label(("KLF1",))),
        ("NAD+", Label(("NAD+",))),
        ("CD4+T", Label(("CD4+T",))),  # a name that the table knows whole
        ("Erlotinib @ 0.5", Label(("Erlotinib",), 0.5)),
        ("A+B @ 10", Label(("A", "B"), 10.0)),
        ("at @ home", Label(("at @ home",))),
        ("[('DMSO_TF', 0.0, 'uM')]", Label(("DMSO_TF",), 0.0)),
        ("[('Abemaciclib ', 5.0, 'uM')]", Label(("Abemaciclib",), 5.0)),
        ("[('x'", Label(("[('x'",))),
        ("control", Label(("control",))),
    ],
)
def test_labels(label, wanted):
    assert read_label(label, "control", {"CD4+T"}) == wanted


def test_vectors_of_parts_are_added_and_tables_stand_side_by_side():
    both = Encoding(False, (("one", ONE), ("two", TWO)))
    np.testing.assert_array_equal(vector_of(both, Label(("A",))), [1, 0, 5])
    np.testing.assert_array_equal(vector_of(both, Label(("A", "C"))), [4, 3, 11])
    np.testing.assert_array_equal(vector_of(both, Label(("A", "B"))), [1, 2, 0])  # two lacks B
    np.testing.assert_array_equal(vector_of(both, Label(("D",))), [0, 0, 7])
    assert vector_of(both, Label(("E",))) is None and vector_of(both, Label(("A", "E"))) is None


def test_one_hot_alone_is_a_row_for_each_name():
    found = perturbation_rows(Encoding(True), NAMES, "control", set(NAMES), add_up=False)
    assert found.frozen is None and found.learned == () and not found.absent and not found.unknown


def test_a_table_gives_frozen_rows_and_the_control_their_mean():
    found = perturbation_rows(
        Encoding(False, (("one", ONE),)), NAMES[:4], "control", set(NAMES), add_up=False
    )
    a, ab, c = [1, 0], [1, 2], [3, 3]
    np.testing.assert_allclose(found.frozen, [[0, 0], np.mean([a, ab, c], axis=0), a, ab, c], rtol=1e-6)
    assert found.learned == () and found.absent == {"one": []} and not found.unknown


def test_a_name_that_a_table_lacks_is_learned_and_reported():
    found = perturbation_rows(Encoding(False, (("one", ONE),)), NAMES, "control", set(NAMES), add_up=False)
    assert found.absent == {"one": ["D"]} and not found.unknown
    assert found.learned == ((), (), (), (), (), (0,))
    np.testing.assert_array_equal(found.frozen[5], [0, 0])
    assert absent_words(found.absent, "perturbation") == [
        "1 perturbation(s) are not in the table one and get a learned embedding: D."
    ]


def test_what_was_never_trained_has_no_learned_row_and_is_unknown_without_a_vector():
    trained = {"control", "A", "C"}
    plain = perturbation_rows(Encoding(True), NAMES, "control", trained, add_up=False)
    assert plain.unknown == ["A+B", "D"] and plain.learned == ((0,), (1,), (2,), (), (3,), ())
    told = perturbation_rows(Encoding(True, (("one", ONE),)), NAMES, "control", trained, add_up=False)
    assert told.unknown == ["D"] and told.learned == plain.learned
    bare = perturbation_rows(Encoding(False, (("one", ONE),)), NAMES, "control", trained, add_up=False)
    assert bare.unknown == ["D"] and bare.learned == ()


def test_combinations_are_sums_of_learned_parts_when_asked():
    trained = {"control", "A", "B", "D"}
    names = ["control", "A", "B", "A+B", "B+D", "A+E"]
    found = perturbation_rows(Encoding(True), names, "control", trained, add_up=True)
    # none, control, A, B; B+D lacks a trained D of its own label, A+E an E
    assert found.learned == ((0,), (1,), (2,), (3,), (2, 3), (), ())
    assert found.unknown == ["B+D", "A+E"]
    whole = perturbation_rows(Encoding(True), [*names, "D"], "control", trained, add_up=True)
    assert whole.learned == ((0,), (1,), (2,), (3,), (2, 3), (3, 4), (), (4,))


def test_a_dose_is_part_of_a_learned_label_and_not_of_a_vector():
    names = ["control", "A @ 1", "A @ 10"]
    found = perturbation_rows(Encoding(True, (("one", ONE),)), names, "control", set(names), add_up=True)
    assert found.learned == ((0,), (1,), (2,), (3,))
    np.testing.assert_array_equal(found.frozen[2:], [[1, 0], [1, 0]])


def test_cell_types_have_no_row_for_none():
    names = ["T", "A", "C"]
    table = Encoding(False, (("one", ONE),))
    found = cell_type_rows(table, names, {"T", "A"})
    np.testing.assert_array_equal(found.frozen, [[0, 0], [1, 0], [3, 3]])
    assert found.learned == ((0,), (), ()) and found.absent == {"one": ["T"]} and not found.unknown
    assert cell_type_rows(table, names, {"A"}).unknown == ["T"]
    assert cell_type_rows(Encoding(True), names, {"T", "A", "C"}).learned == ()
    assert cell_type_rows(Encoding(True), names, {"T", "A"}).unknown == ["C"]


def test_the_nearest_is_by_angle():
    table = np.array([[1.0, 0.0], [0.0, 0.0], [10.0, 10.0], [-1.0, 0.0]])
    assert nearest(table, np.array([0.5, 0.4]))[0] == 2
    assert nearest(table, np.array([2.0, 0.0])) == (0, 0.0)
    row, distance = nearest(table, np.array([1.0, 1.0]) * 1e-3)
    assert row == 2 and distance == pytest.approx(0, abs=1e-12)

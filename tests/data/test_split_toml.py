"""The cell-load split TOML: its semantics against a loop, and every slip in it an error."""

import pytest
from split_cases import conditions, refusal, splits_of

from perturbdiff_jax.data.splits import assign

TOML = """
[datasets]
pbmc = "/data/{a,b}/"
[training]
pbmc = "train"
[zeroshot]
"pbmc.NK" = "test"
[fewshot."pbmc.B.naive"]
val = ["P1", "P2"]
test = ["P2", "P3"]
"""


def test_cell_load_toml(split_file):
    assignment = assign(conditions(), split=split_file(TOML))
    for (kind, batch, name), value in splits_of(assignment).items():
        expected = "train"
        if name == "PBS":
            expected = "control"
        elif kind == "NK":
            expected = "test"
        elif kind == "B.naive":  # the key is split at its first dot only; test wins over val
            expected = {"P1": "validation", "P2": "test", "P3": "test", "P4": "train"}[name]
        assert value == expected, (kind, batch, name)
    assert "P2" in assignment.notes[0] and "test" in assignment.notes[0]


def test_zeroshot_wins_over_fewshot(split_file):
    text = TOML.replace('"pbmc.NK" = "test"', '"pbmc.NK" = "test"\n"pbmc.B.naive" = "val"')
    assignment = assign(conditions(), split=split_file(text))
    got = splits_of(assignment)
    assert {value for t, value in got.items() if t[0] == "B.naive" and t[2] != "PBS"} == {"validation"}
    assert "zeroshot" in assignment.notes[-1]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"pbmc.NK" =', '"pbmc.NKT" =', ["cell type", "'NKT'", "'NK'"]),
        ('"pbmc.NK" =', '"pbmx.NK" =', ["dataset", "'pbmx'", "'pbmc'"]),
        ('"pbmc.NK" =', '"NK" =', ["DATASET.CELLTYPE"]),
        ('= "test"', '= "tests"', ["'tests'", "'test'", "NK"]),
        ('["P2", "P3"]', '["P2", "P33"]', ["perturbation", "'P33'", "'P3'"]),
        ('["P2", "P3"]', '"P2"', ["list"]),
        ('["P2", "P3"]', '["P2", "PBS"]', ["control"]),
        ("[zeroshot]", "[zero_shot]", ["'zero_shot'", "'zeroshot'"]),
        ('pbmc = "train"', 'pbmc = "test"', ['"train"']),
        ('[training]\npbmc = "train"', "", ["[training]"]),
        ("test = ", "tset = ", ["'tset'", "'test'"]),
        ('"pbmc.B.naive"', '"pbmc.NK"', []),  # filled in below: P4 has no cells in NK
        ('[fewshot."pbmc.B.naive"]', "[fewshot.pbmc.B]", ["DATASET.CELLTYPE"]),
        ("[datasets]", "[datasets", ["TOML"]),
        ('pbmc = "/data', '"pb.mc" = "/data', ["dot"]),
    ],
)
def test_wrong_toml(split_file, old, new, words):
    assert old in TOML
    text = TOML.replace(old, new)
    if not words:
        text, words = text.replace('"P1", "P2"]', '"P4"]'), ["'P4'", "no cells", "'NK'"]
    message = refusal(split_file(text))
    assert all(word in message for word in words), message

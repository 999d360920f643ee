"""Names turned by a table: direction, versions, ambiguous ones, and several that become one."""

import pytest

from perturbdiff_jax.data.gene_naming.name_table import is_ensembl, read_name_table, unversioned
from perturbdiff_jax.errors import RequestError

IDS = [f"ENSG{number:011d}" for number in range(10)]
ROWS = [(IDS[0], "TP53"), (IDS[1], "MYC"), (IDS[2], "GAPDH"), (IDS[3], "AL627309.1")]


@pytest.fixture
def write(tmp_path):
    def table(rows, *, header="ensembl_id,symbol", name="map.csv"):
        path = tmp_path / name
        path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
        return path

    return table


def test_forms_of_ids():
    assert is_ensembl("ENSG00000141510") and is_ensembl("ENSMUSG00000059552.14")
    assert is_ensembl("ENSG00000002586.20_PAR_Y")
    assert not any(map(is_ensembl, ["TP53", "AL627309.1", "ENSG0001", "ENSA", "RP11-206L10.9", ""]))
    assert unversioned("ENSG00000141510.17") == "ENSG00000141510"
    assert unversioned("ENSG00000002586.20_PAR_Y") == "ENSG00000002586_PAR_Y"
    assert unversioned("AL627309.1") == "AL627309.1"


def test_direction_is_seen_from_the_names(write):
    table = read_name_table(write(ROWS))
    assert (table.other, table.wanted) == ("ensembl_id", "symbol")
    turned = table.turn([IDS[1], IDS[0], IDS[7]], where="a")
    assert turned.names == ["MYC", "TP53", None] and turned.mapped == 2
    assert turned.lost == {"are not in the table": [IDS[7]]}
    # These have symbols already: what the table does not know stays.
    turned = table.turn(["MYC", "NEW1", "TP53"], where="a")
    assert turned.names == ["MYC", "NEW1", "TP53"] and turned.mapped == 0 and not turned.lost
    # An id among symbols (a gene without one, in some annotations) is turned, too.
    assert table.turn(["MYC", "TP53", IDS[2]], where="a").names == ["MYC", "TP53", "GAPDH"]


def test_the_direction_can_be_chosen(write):
    table = read_name_table(write(ROWS), "ensembl_id")
    assert table.turn(["MYC", "TP53", "NEW1"], where="a").names == [IDS[1], IDS[0], None]
    assert table.turn([IDS[5], IDS[1]], where="a").names == [IDS[5], IDS[1]]
    with pytest.raises(RequestError, match=r"map\.csv \(--map-to\): unknown column 'sym'"):
        read_name_table(write(ROWS), "sym")


def test_versions_are_understood_on_both_sides(write):
    rows = [(f"{IDS[0]}.4", "TP53"), (IDS[1], "MYC"), (f"{IDS[2]}.1", "GAPDH"), (f"{IDS[3]}.9", "AL627309.1")]
    table = read_name_table(write(rows))
    names = [f"{IDS[0]}.4", f"{IDS[1]}.17", f"{IDS[2]}.8", IDS[3], "AL627309"]
    assert table.turn(names, where="a").names == ["TP53", "MYC", "GAPDH", "AL627309.1", None]
    # What has this naming already loses versions that the table does not write, also where it is not in the table.
    plain = read_name_table(write(ROWS), "ensembl_id")
    turned = plain.turn([f"{IDS[0]}.3", IDS[1], f"{IDS[8]}.2", "MYC2", "GAPDH"], where="a")
    assert turned.names == [IDS[0], IDS[1], IDS[8], "MYC2", IDS[2]]
    assert (turned.mapped, turned.plain) == (1, 2)
    back = read_name_table(write(rows), "ensembl_id")
    assert back.turn([f"{IDS[0]}.9", f"{IDS[7]}.2"], where="a").names == [f"{IDS[0]}.4", f"{IDS[7]}.2"]
    assert back.turn([f"{IDS[1]}.17", f"{IDS[0]}.9", "GAPDH"], where="a").names == [
        IDS[1],
        f"{IDS[0]}.4",
        f"{IDS[2]}.1",
    ]


def test_ambiguous_names_are_turned_into_none(write):
    rows = [*ROWS, (IDS[4], "A"), (IDS[4], "B"), (IDS[0], "TP53"), (f"{IDS[5]}.1", "C"), (f"{IDS[5]}.2", "D")]
    table = read_name_table(write(rows))
    assert table.ambiguous == {IDS[4], IDS[5]}
    turned = table.turn([IDS[4], IDS[0], IDS[5], f"{IDS[5]}.2", f"{IDS[4]}.3"], where="a")
    assert turned.names == [None, "TP53", None, "D", None]
    assert turned.lost == {"have several names in symbol": [IDS[4], IDS[5], f"{IDS[4]}.3"]}


def test_several_names_that_become_one(write):
    table = read_name_table(write([*ROWS, (IDS[4], "MYC"), (IDS[5], "TP53")]))
    for names in ([IDS[4], IDS[1], IDS[2]], [IDS[2], IDS[1], IDS[4]]):
        turned = table.turn(names, where="a")
        assert dict(zip(names, turned.names)) == {IDS[1]: "MYC", IDS[4]: None, IDS[2]: "GAPDH"}
        assert turned.lost == {"share their symbol with another gene": [IDS[4]]}
    # The one that is written like it comes first.
    turned = table.turn([IDS[0], "TP53", IDS[1]], where="a")
    assert turned.names == [None, "TP53", "MYC"]


def test_a_source_that_the_table_does_not_know(write):
    table = read_name_table(write(ROWS))
    with pytest.raises(RequestError) as caught:
        table.turn(["x1", "x2"], where="f.h5ad")
    text = str(caught.value)
    assert text.startswith("f.h5ad: none of its 2 genes (x1, x2)") and "symbol: " in text and IDS[0] in text


@pytest.mark.parametrize(
    ("rows", "header", "word"),
    [
        ([("a", "b", "c")], "id,symbol,chromosome", "two columns"),
        ([("a", "b")], "id", "two columns"),
        ([("a", "b")], "id,id", "two columns"),
        ([("a", "")], "id,symbol", "no pair"),
        ([], "", "has none"),
    ],
)
def test_wrong_tables_of_names(write, rows, header, word):
    with pytest.raises(RequestError, match=word) as caught:
        read_name_table(write(rows, header=header))
    assert "map.csv" in str(caught.value)


def test_tab_separated_tables_and_files_that_are_none(write, tmp_path):
    path = tmp_path / "map.tsv"
    path.write_text(f"id\tsymbol\n{IDS[0]}\tTP53\n\n{IDS[1]}\t\n")
    assert read_name_table(path).turn([IDS[0], IDS[1]], where="a").names == ["TP53", None]
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match="not a text file"):
        read_name_table(path)

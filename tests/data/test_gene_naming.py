"""Sources that do not speak of the same genes are refused with both sides' names, or turned by a table."""

import pytest
from vocabulary_runs import cells_of, refusal, run

from perturbdiff_jax.data.gene_naming.source_names import is_writable, kind_of
from perturbdiff_jax.data.gene_selection.notes import MOST, Notes

SYMBOLS = [f"SYM{i}" for i in range(60)]
IDS = [f"ENSG{i:011d}" for i in range(60)]


@pytest.fixture
def make(tmp_path):
    """`make(name, genes, seed)` -> path of a file with these gene names."""

    def write(name, genes, seed=0, **var):
        adata = cells_of(30, len(genes), seed, names=genes)
        for column, values in var.items():
            adata.var[column] = values
        adata.write_h5ad(tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "map.csv"
    path.write_text("ensembl_id,symbol\n" + "".join(f"{a},{b}\n" for a, b in zip(IDS, SYMBOLS)))
    return path


def test_kinds():
    assert kind_of(IDS) == "Ensembl ids" and kind_of([*IDS[:9], "x"]) == "Ensembl ids"
    assert kind_of(SYMBOLS) == "symbols" and kind_of([*SYMBOLS[:9], IDS[0]]) == "symbols"
    assert kind_of([*IDS[:5], *SYMBOLS[:5]]) == "Ensembl ids and symbols"


def test_ids_beside_symbols(make, table, tmp_path):
    files = [make("ids.h5ad", [f"{name}.7" for name in IDS]), make("symbols.h5ad", SYMBOLS, 1)]
    message = refusal(files, tmp_path / "g.txt")
    assert "ids.h5ad has Ensembl ids (ENSG00000000000.7, " in message and "symbols.h5ad has other" in message
    assert "SYM0, SYM1" in message and "--map" in message
    (tmp_path / "own.txt").write_text("\n".join(IDS[:5]))
    message = refusal(files[1:], tmp_path / "g.txt", include=[tmp_path / "own.txt"])
    assert "own.txt has Ensembl ids" in message and "symbols.h5ad has other" in message
    found, said = run(files, tmp_path / "g.txt", map=table, include=[tmp_path / "own.txt"])
    # What both files say in symbols, and the list turned into symbols.
    same, _ = run(
        [make("same.h5ad", SYMBOLS), files[1]], tmp_path / "h.txt", include=[make_list(tmp_path, SYMBOLS[:5])]
    )
    assert found.genes == same.genes
    assert "ids.h5ad: 60 of 60 genes turned from ensembl_id into symbol." in said
    assert "own.txt: 5 of 5 genes turned" in said
    back, _ = run(files, tmp_path / "i.txt", map=table, map_to="ensembl_id", include=[tmp_path / "own.txt"])
    assert back.genes == sorted(IDS[SYMBOLS.index(name)] for name in same.genes)
    assert f"{files[0]}: 60 ids taken in the table's version, or without one." in back.report["notes"]


def make_list(folder, names):
    path = folder / "symbols.txt"
    path.write_text("\n".join(names))
    return path


def test_left_out_names_are_said(make, table, tmp_path):
    text = table.read_text().replace(f"{IDS[3]},SYM3\n", f"{IDS[3]},SYM3\n{IDS[3]},OTHER\n")
    table.write_text(text.replace(f"{IDS[5]},SYM5", f"{IDS[5]},SYM6"))
    unknown = "ENSG99999999999"
    path = make("ids.h5ad", [*IDS[:20], unknown])
    found, said = run([path], tmp_path / "g.txt", hvg=100, map=table)
    assert set(found.genes) == set(SYMBOLS[:20]) - {"SYM3", "SYM5"}
    assert f"map.csv: 1 names of ensembl_id have several in symbol and are turned into none: {IDS[3]}" in said
    assert f"ids.h5ad: 1 genes have several names in symbol, left out: '{IDS[3]}'" in said
    assert f"1 genes are not in the table, left out: '{unknown}'" in said
    assert f"1 genes share their symbol with another gene, left out: '{IDS[6]}'" in said
    assert found.report["files"][0]["genes"] == 18


def test_files_and_lists_that_share_nothing(make, tmp_path):
    files = [
        make("a.h5ad", SYMBOLS),
        make("b.h5ad", SYMBOLS, 1),
        make("mouse.h5ad", [n.lower() for n in SYMBOLS]),
    ]
    message = refusal(files, tmp_path / "g.txt")
    assert "mouse.h5ad: shares none of its 60 genes (sym0, sym1, sym2) with any other file" in message
    assert "a.h5ad has SYM0" in message
    (tmp_path / "far.txt").write_text("FAR1\nFAR2\n")
    message = refusal(files[:2], tmp_path / "g.txt", include=[tmp_path / "far.txt"])
    assert "far.txt: shares none of its 2 genes (FAR1, FAR2) with the files of --input" in message
    (tmp_path / "near.txt").write_text("FAR1\nSYM2\n")
    found, said = run(files[:2], tmp_path / "g.txt", include=[tmp_path / "near.txt"])
    assert "FAR1" in found.genes
    assert "near.txt: 1 of its 2 genes are in no file, taken all the same: FAR1." in said


def test_a_column_of_var(make, tmp_path):
    symbols = [*SYMBOLS[:56], "SYM1", "", "nan", " x"]
    path = make("a.h5ad", IDS, symbol=symbols)
    found, said = run([path], tmp_path / "g.txt", hvg=100, gene_key="symbol")
    assert set(found.genes) == set(SYMBOLS[:56]) - {"SYM1"}
    assert "a.h5ad: 2 genes are names of several genes, left out: 'SYM1', 'SYM1'." in said
    assert "a.h5ad: 3 genes are no names for a gene list, left out: '', 'nan', ' x'." in said
    path = make("b.h5ad", IDS, symbol=["", *["#"] * 59])
    assert "none of its 60 genes can be used" in refusal([path], tmp_path / "h.txt", gene_key="symbol")


def test_names_that_a_list_can_hold():
    assert all(map(is_writable, ["TP53", "AL627309.1", "HLA-A", "a b"]))
    assert not any(map(is_writable, ["", "#A", " A", "A\n", "A\u2028B", "nan", "A\tB\r"]))


def test_a_few_lines_of_a_kind_are_printed_and_all_are_kept():
    lines = []
    notes = Notes(lines.append)
    for number in range(MOST + 5):
        notes.say("gene names", f"file {number}")
    notes.say("values", "one")
    for kind in ("gene names", "values"):
        notes.close(kind, "r.json")
    assert lines == [
        *(f"file {n}" for n in range(MOST)),
        "one",
        "... and 5 more lines about gene names: r.json",
    ]
    assert len(notes.lines) == MOST + 6

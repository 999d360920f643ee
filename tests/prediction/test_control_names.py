"""Control cells whose genes are called otherwise than the bundle's: turned by a table, by the rules of `prepare`."""

import anndata
import numpy as np
import pytest
from small_controls import GENES, make, read
from tiny_run import FLAGS, KEYS, said

from perturbdiff_jax import cli
from perturbdiff_jax.errors import RequestError

IDS = {name: f"ENSG{at:011d}" for at, name in enumerate(GENES)}


def with_ids(adata):
    """The same cells, in another order of genes that are called by versioned Ensembl ids."""
    adata = adata[:, np.random.default_rng(2).permutation(adata.n_vars)].copy()
    adata.var_names = [f"{IDS[name]}.{at % 4 + 1}" for at, name in enumerate(adata.var_names)]
    return adata


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "map.csv"
    path.write_text("ensembl_id,symbol\n" + "".join(f"{IDS[name]},{name}\n" for name in GENES))
    return path


@pytest.mark.parametrize("form", ["memory", "file"])
def test_names_make_no_other_difference(table, tmp_path, form):
    wanted, heard, source = read(make()), [], with_ids(make())
    if form == "file":
        source.write_h5ad(tmp_path / "ids.h5ad")
        source = tmp_path / "ids.h5ad"
    found = read(source, heard.append, map=table)
    assert found.names == wanted.names
    for context, cells in wanted.cells.items():
        np.testing.assert_allclose(found.cells[context].toarray(), cells.toarray(), rtol=1e-6)
    assert any("12 of 12 genes turned from ensembl_id into symbol." in line for line in heard)
    column = make()
    column.var["id"] = [IDS[name] for name in GENES]
    column.var_names = [f"probe{at}" for at in range(12)]
    found = read(column, gene_key="id", map=table)
    np.testing.assert_allclose(found.cells["T", "d1"].toarray(), wanted.cells["T", "d1"].toarray(), rtol=1e-6)
    # A file that is named as wanted already, and a table read the other way round.
    assert read(make(), map=table).cells.keys() == wanted.cells.keys()
    with pytest.raises(RequestError, match="has 0 of the bundle's 10 genes"):
        read(make(), map=table, map_to="ensembl_id")


def test_genes_that_a_table_cannot_turn_count_in_totals_only(table):
    """g9 has no row, g8's id is called g7: both are zero for the network, and still molecules of a cell."""
    lines = [line for line in table.read_text().splitlines() if not line.endswith(",g9")]
    lines = [f"{IDS['g8']},g7" if line.endswith(",g8") else line for line in lines]
    table.write_text("\n".join(lines))
    heard, adata = [], with_ids(make())
    found = read(adata, heard.append, map=table, min_gene_overlap=0.5)
    wanted = read(make()).cells["B", "d2"].toarray()
    lost = [GENES[2:].index(name) for name in ("g8", "g9")]
    assert wanted[:, lost].any()
    wanted[:, lost] = 0
    np.testing.assert_allclose(found.cells["B", "d2"].toarray(), wanted, rtol=1e-6)
    text = "\n".join(heard)
    assert "1 genes are not in the table, left out: 'ENSG00000000009" in text
    assert "1 genes share their symbol with another gene, left out: 'ENSG00000000008" in text
    assert "2 of 10 genes are missing and taken as zero" in text
    with pytest.raises(RequestError, match=r"has 8 of the bundle's 10 genes \(80%\); at least 90%"):
        read(adata, map=table, min_gene_overlap=0.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"map_to": "symbol"}, "--map-to names a column of the table --map"),
        ({"map": "none.csv"}, r"none\.csv: no such file \(--map takes"),
        ({"map": "MAP", "map_to": "symbl"}, r"map\.csv \(--map-to\): unknown column 'symbl'"),
        ({"map": "BAD"}, r"bad\.csv: a header of two columns is needed"),
        ({"map": "FAR"}, r"none of its 12 genes \(.*far\.csv"),
        ({"gene_key": "nme", "map": "MAP"}, "unknown var column 'nme'"),
        ({}, r"has 0 of the bundle's 10 genes(.|\n)*--gene-key takes a column of var, --map turns"),
    ],
)
def test_wrong_wishes_are_named(table, tmp_path, options, message):
    (tmp_path / "bad.csv").write_text("only\nx\n")
    (tmp_path / "far.csv").write_text("a,b\nx,y\n")
    places = {"MAP": table, "BAD": tmp_path / "bad.csv", "FAR": tmp_path / "far.csv"}
    with pytest.raises(RequestError, match=message) as caught:
        read(with_ids(make()), **{name: places.get(value, value) for name, value in options.items()})
    assert len(str(caught.value).splitlines()) <= 2


def test_the_words_of_the_command_and_in_python(finished, model, tmp_path):
    source, names = finished.workdir / "simulated.h5ad", tmp_path / "names.tsv"
    adata = anndata.read_h5ad(source)
    names.write_text("symbol\tid\n" + "".join(f"{name}\tX{at}\n" for at, name in enumerate(adata.var_names)))
    adata.var["id"] = [f"X{at}" for at in range(adata.n_vars)]
    adata.var_names = [f"probe{at}" for at in range(adata.n_vars)]
    adata.write_h5ad(tmp_path / "ids.h5ad")
    found = {}
    for name, words in (
        ("plain", ("--input", source)),
        (
            "turned",
            ("--input", tmp_path / "ids.h5ad", "--gene-key", "id", "--map", names, "--map-to", "symbol"),
        ),
    ):
        out = tmp_path / f"{name}.h5ad"
        command = ("predict", "--checkpoint", finished.workdir, "--output", out, "--perturbations", "P02")
        code, _, err = said(cli.run, *command, "--cells-per-condition", 3, *FLAGS, *words)
        assert (code, err) == (0, "")
        found[name] = anndata.read_h5ad(out).X.toarray()
    np.testing.assert_array_equal(found["turned"], found["plain"])
    words = {"gene_key": "id", "map": names, "map_to": "symbol", "cells_per_condition": 3, **KEYS}
    own = model.predict(tmp_path / "ids.h5ad", "P02", echo=lambda _: None, **words)
    np.testing.assert_array_equal(own.X.toarray(), found["plain"])
    command = ("predict", "--checkpoint", finished.workdir, "--output", tmp_path / "o.h5ad")
    for flag in ("--gene-key", "--map", "--map-to"):
        split = ("--split", "test", "--store", finished.workdir / "store", flag, "x")
        code, _, err = said(cli.run, *command, *split)
        assert code == 2 and f"{flag} is about --input" in err
    # Before anything is opened, the bundle too.
    command = ("predict", "--checkpoint", tmp_path / "none", "--output", tmp_path / "o.h5ad")
    code, _, err = said(cli.run, *command, "--input", source, "--perturbations", "P02", "--map-to", "x")
    assert code == 2 and "--map-to names a column of the table --map" in err

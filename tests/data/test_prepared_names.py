"""Files that name their genes otherwise than the list: a column of var, a table of names, and what is left out."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
from prepare_runs import refusal, run

from perturbdiff_jax import cli
from perturbdiff_jax.data.storage.writer import store_hash
from perturbdiff_jax.data.store import Store

IDS = [f"ENSG{i:011d}" for i in range(30)]
SYMBOLS = [f"g{i}" for i in range(30)]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "map.csv"
    path.write_text("ensembl_id,symbol\n" + "".join(f"{a},{b}\n" for a, b in zip(IDS, SYMBOLS)))
    return path


@pytest.fixture
def listed(tmp_path):
    path = tmp_path / "genes.txt"
    path.write_text("g9\nnowhere\ng2\ng4\ng7\n")
    return str(path)


def with_ids(adata):
    """The same cells whose genes are called by versioned Ensembl ids."""
    adata.var_names = [f"{name}.{n % 7 + 1}" for n, name in enumerate(IDS)]
    return adata


@pytest.mark.parametrize("options", [{"hvg": 10}, {"all_genes": True}, {"genes": "list"}])
def test_names_make_no_other_difference(build, save, table, listed, tmp_path, options):
    options = {"genes": listed} if "genes" in options else options
    plain, _ = run(save(build(), "plain.h5ad"), tmp_path / "plain", **options)
    turned, said = run(save(with_ids(build()), "ids.h5ad"), tmp_path / "turned", map=table, **options)
    assert f"{tmp_path / 'ids.h5ad'}: 30 of 30 genes turned from ensembl_id into symbol." in said
    column = with_ids(build())
    column.var["name"] = SYMBOLS
    keyed, _ = run(save(column, "column.h5ad"), tmp_path / "keyed", gene_key="name", **options)
    assert turned.genes == keyed.genes == plain.genes
    assert store_hash(turned.manifest) == store_hash(keyed.manifest) == store_hash(plain.manifest)
    digest = hashlib.sha256(table.read_bytes()).hexdigest()
    names = {"path": str(table), "sha256": digest, "from": "ensembl_id", "to": "symbol"}
    assert turned.manifest["gene_names"] == {"gene_key": None, "map": names}
    assert keyed.manifest["gene_names"] == {"gene_key": "name", "map": None}
    assert plain.manifest["gene_names"] is None


def test_two_files_named_otherwise_are_one_store(build, save, table, tmp_path):
    paths = [save(build(seed=1), "one.h5ad"), save(with_ids(build(seed=2)), "two.h5ad")]
    store, said = run(paths, tmp_path / "s", map=table, all_genes=True)
    assert store.genes == SYMBOLS and "left out" not in said and "two.h5ad: 30 of 30 genes turned" in said
    back, _ = run(paths, tmp_path / "t", map=table, map_to="ensembl_id", all_genes=True)
    # The list of names is the first file's: its symbols as ids.
    assert back.genes == IDS
    np.testing.assert_array_equal(back.load().toarray(), store.load().toarray())


def test_genes_without_a_usable_name_are_left_out_and_count_towards_totals(build, save, table, tmp_path):
    lines = table.read_text().splitlines()
    lines[6] = f"{IDS[5]},g6"  # two ids of one symbol
    del lines[8]  # an id that the table lacks
    table.write_text("\n".join([*lines, f"{IDS[3]},other"]))
    adata = with_ids(build())
    counts = pd.DataFrame(adata.X.toarray(), index=adata.obs_names, columns=SYMBOLS)
    store, said = run(save(adata), tmp_path / "s", map=table, all_genes=True)
    assert f"map.csv: 1 names of ensembl_id have several in symbol and are turned into none: {IDS[3]}" in said
    for why, name in (
        ("have several names in symbol", f"{IDS[3]}.4"),
        ("are not in the table", f"{IDS[7]}.1"),
        ("share their symbol with another gene", f"{IDS[6]}.7"),
    ):
        assert f"a.h5ad: 1 genes {why}, left out: '{name}'." in said
    kept = [name for n, name in enumerate(SYMBOLS) if n not in (3, 6, 7)]
    kept[kept.index("g5")] = "g6"
    assert store.genes == kept and store.measured.all()
    scaled = np.log1p(1e4 * counts.div(counts.sum(axis=1), axis=0)).drop(columns=["g3", "g6", "g7"])
    found = pd.DataFrame(store.load().toarray(), index=store.obs.index).loc[scaled.index]
    np.testing.assert_allclose(found, scaled, rtol=1e-6)


def test_a_column_with_names_that_are_none(build, save, tmp_path):
    adata = build()
    adata.var["name"] = [*SYMBOLS[:26], "g1", "", "nan", " x"]
    store, said = run(save(adata), tmp_path / "s", gene_key="name", all_genes=True)
    assert store.genes == ["g0", *SYMBOLS[2:26]]
    assert "a.h5ad: 2 genes are names of several genes, left out: 'g1', 'g1'." in said
    assert "a.h5ad: 3 genes are no names for a gene list, left out: '', 'nan', ' x'." in said


def test_files_that_lack_names_of_each_other(build, save, table, tmp_path):
    one, two = build(seed=1), with_ids(build(seed=2))
    two.var_names = [*two.var_names[:-2], "ENSG99999999998", "ENSG99999999999"]
    paths = [save(one, "one.h5ad"), save(two, "two.h5ad")]
    store, said = run(paths, tmp_path / "s", map=table, all_genes=True)
    assert store.genes == SYMBOLS[:-2]
    assert "2 of 30 genes are not in every file and left out: g28, g29" in said and "two.h5ad lacks 2" in said


def test_a_list_is_taken_as_it_is(build, save, table, tmp_path):
    (tmp_path / "ids.txt").write_text("\n".join([IDS[4], IDS[2], "ENSG99999999999"]))
    path, wish = save(build()), {"genes": str(tmp_path / "ids.txt"), "absent_genes": "zero"}
    message = refusal(path, tmp_path / "s", **wish)
    assert "ids.txt: none of its 3 genes" in message and "--map" in message and "--gene-key" in message
    store, said = run(path, tmp_path / "s", map=table, map_to="ensembl_id", **wish)
    assert store.genes == [IDS[4], IDS[2], "ENSG99999999999"]
    assert store.measured.tolist() == [[True, True, False]] and "30 of 30 genes turned from symbol" in said


def test_ids_among_symbols_do_not_pass_for_a_low_share(build, save, tmp_path):
    (tmp_path / "g.txt").write_text("\n".join([*SYMBOLS, IDS[0]]))
    path, wish = save(with_ids(build())), {"genes": str(tmp_path / "g.txt"), "absent_genes": "zero"}
    adata = with_ids(build())
    adata.var_names = IDS
    message = refusal(save(adata), tmp_path / "s", **wish)
    assert "g.txt has symbols (g0, g1, g2" in message and "a.h5ad has Ensembl ids" in message
    assert "--map TABLE.csv" in message and path.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"map_to": "symbol"}, ["--map-to", "--map"]),
        ({"map": "none.csv"}, ["none.csv", "no such file"]),
        ({"gene_key": "nme"}, ["a.h5ad (--gene-key)", "'nme'", "'name'"]),
        ({"map": "MAP", "map_to": "symbl"}, ["(--map-to)", "'symbl'", "ensembl_id, symbol"]),
        ({"map": "BAD"}, ["bad.csv: a header of two columns is needed"]),
        ({"map": "FAR"}, ["a.h5ad: none of its 30 genes (g0, g1, g2", "far.csv"]),
        ({"gene_key": "void"}, ["a.h5ad: none of its 30 genes can be used"]),
    ],
)
def test_wrong_wishes_are_named(build, save, table, tmp_path, options, said):
    (tmp_path / "bad.csv").write_text("only\nx\n")
    (tmp_path / "far.csv").write_text("a,b\nx,y\n")
    places = {"MAP": table, "BAD": tmp_path / "bad.csv", "FAR": tmp_path / "far.csv"}
    adata = build()
    adata.var["name"], adata.var["void"] = SYMBOLS, "nan"
    given = {name: str(places.get(value, value)) for name, value in options.items()}
    message = refusal(save(adata), tmp_path / "s", **given)
    assert all(word in message for word in said), message


def test_a_changed_table_starts_a_run_again(build, save, table, tmp_path, monkeypatch):
    from perturbdiff_jax.data import prepare as story

    path = save(build())
    monkeypatch.setattr(story, "HELD_BYTES", 1e9)

    def interrupted():
        def broken(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(story, "gather", broken)
            run(path, tmp_path / "s", map=table)

    interrupted()
    _, said = run(path, tmp_path / "s", map=table)
    assert "going on where" in said
    (tmp_path / "s").rename(tmp_path / "away")
    interrupted()
    table.write_text(table.read_text() + "ENSG99999999999,another\n")
    store, said = run(path, tmp_path / "s", map=table)
    assert "other inputs or options" in said
    assert store.manifest["gene_names"]["map"]["sha256"] == hashlib.sha256(table.read_bytes()).hexdigest()


def test_the_words_of_the_command_and_of_a_config(build, save, table, tmp_path, capsys):
    from perturbdiff_jax.data_options import DataOptions, HoldoutOptions

    data = DataOptions(gene_key="a", map="b", map_to="c")
    options = data.prepare_options(HoldoutOptions(), seed=0, cells_per_set=8)
    assert (options.gene_key, options.map, options.map_to) == ("a", "b", "c")
    words = [
        "prepare",
        "--input",
        str(save(with_ids(build()))),
        "--output",
        str(tmp_path / "s"),
        "--all-genes",
    ]
    words += ["--perturbation-key", "pert", "--control", "control", "--workers", "1", "--map", str(table)]
    assert cli.run([*words, "--map-to", "symbol"]) == 0
    assert Store.open(tmp_path / "s").genes == SYMBOLS
    assert json.loads((tmp_path / "s" / "manifest.json").read_text())["gene_names"]["map"]["to"] == "symbol"
    for word in ("gene-key", "map", "map-to"):
        assert cli.run(["prepare", "--merge", str(tmp_path / "s"), "--output", "t", f"--{word}", "x"]) == 2
        assert f"--{word} has no meaning with --merge" in capsys.readouterr().err

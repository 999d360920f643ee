"""A run that begins with another network's weights: what is taken, by name and by shape, and what is refused."""

import dataclasses
import shutil

import numpy as np
import pytest
from covariate_runs import untrained, vectors, write_table
from first_states import SEEN, Renamed, begun, flat, saved
from tiny_run import QUICKSTART, flags, said

from perturbdiff_jax import load, main
from perturbdiff_jax.bundle import read_bundle, write_bundle
from perturbdiff_jax.errors import RequestError


def test_the_same_names_take_everything(store, source, tmp_path):
    found, drawn, account, bundle = begun(store, source, tmp_path)
    wanted = flat(source.params)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert any((drawn[name] != wanted[name]).any() for name in wanted)
    looped, *_ = begun(store, source, tmp_path, model__scan="yes")
    for name, values in wanted.items():
        np.testing.assert_array_equal(looped[name], values, err_msg=name)
    size = sum(values.size for values in wanted.values())
    assert (
        account.lines()[0].endswith(f": {size:,} of {size:,} parameters (100.0%).")
        and bundle.covariate_genes == 0
    )


def test_what_is_known_by_name_is_taken_by_name(store, source, tmp_path):
    genes = ["NEW", *store.genes[:3:-2]]
    perturbations = [*store.perturbations[:5], "OTHER", store.perturbations[5]]
    other = Renamed(
        store, genes=genes, perturbations=perturbations, cell_types=["T9", "T1"], batches=["B2", "B3"]
    )
    found, drawn, account, bundle = begun(other, source, tmp_path, model__anchor="scaled_control")
    there = flat(source.params)
    assert bundle.covariate_genes == len(store.genes)
    rows = {gene: row for row, gene in enumerate(store.genes)}
    for name in ("embed_perturbed/kernel", "embed_control/kernel"):
        for row, gene in enumerate(genes):
            for half in (0, 1):
                mine = found[name][row + half * len(genes)]
                base, at = (
                    (drawn, row + half * len(genes)) if gene == "NEW" else (there, rows[gene] + half * 40)
                )
                np.testing.assert_array_equal(mine, base[name][at])
    for row, gene in enumerate(genes):
        base, at = (drawn, row) if gene == "NEW" else (there, rows[gene])
        np.testing.assert_array_equal(
            found["head/out/linear/kernel"][:, row], base["head/out/linear/kernel"][:, at]
        )
        np.testing.assert_array_equal(found["head/out/linear/bias"][row], base["head/out/linear/bias"][at])
    table, known = found["covariates/perturbation"], ["none", *store.perturbations]
    for row, name in enumerate(["none", *perturbations]):
        base, at = (there, known.index(name)) if name in known else (drawn, row)
        np.testing.assert_array_equal(table[row], base["covariates/perturbation"][at])
    np.testing.assert_array_equal(found["covariates/cell_type"][0], drawn["covariates/cell_type"][0])
    np.testing.assert_array_equal(found["covariates/cell_type"][1], there["covariates/cell_type"][0])
    np.testing.assert_array_equal(found["covariates/batch"][0], there["covariates/batch"][1])
    np.testing.assert_array_equal(found["covariates/batch"][1], drawn["covariates/batch"][1])
    for name in (
        "covariates/mix/linear/kernel",
        "condition/linear/kernel",
        "blocks/mlp_x/hidden/linear/kernel",
    ):
        np.testing.assert_array_equal(found[name], there[name])
    text = "\n".join(account.lines())
    assert "partly taken:" in text and "covariates/cell_type 8/16" in text and "drawn anew:" in text
    np.testing.assert_array_equal(
        found["anchor/to_parts/linear/kernel"], drawn["anchor/to_parts/linear/kernel"]
    )


def test_covariates_that_are_not_used_leave_the_others_where_they_were(store, source, tmp_path):
    found, drawn, account, _ = begun(store, source, tmp_path, model__use_cell_type="no")
    there = flat(source.params)
    mix, width = "covariates/mix/linear/kernel", 8
    np.testing.assert_array_equal(found[mix][:width], there[mix][:width])
    np.testing.assert_array_equal(found[mix][width:], there[mix][2 * width :])
    assert "covariates/cell_type" not in found and "dropped" in "\n".join(account.lines())
    assert drawn[mix].shape == found[mix].shape


def test_learned_rows_beside_a_table_and_the_map_of_the_same_table(store, tmp_path):
    """Of a combination's rows none is its own; a map belongs to the vectors that it was trained on."""
    table = write_table(tmp_path / "mine.npz")
    told = {"covariates__perturbation": f"onehot + mine={table}"}
    names = ["control", "P01", "P01+P03", "P03", "P04", "P05", "P06"]
    combined = Renamed(store, perturbations=names)
    sums = untrained(combined, tmp_path / "sums", **SEEN, **told, covariates__combinations="sum")
    source = saved(sums)
    learned, there = source.bundle.tables["perturbation"]["learned"], flat(source.params)
    assert learned[3] == [*learned[2], *learned[4]]
    found, *_ = begun(store, source, tmp_path)
    for row, name in enumerate(["none", *store.perturbations]):
        if name in ("P02",):
            continue
        at = learned[0 if name == "none" else 1 + names.index(name)][0]
        np.testing.assert_array_equal(
            found["covariates/perturbation"][row], there["covariates/perturbation"][at]
        )
    found, *_ = begun(store, source, tmp_path, **told)
    kernel = "covariates/map_perturbation/linear/kernel"
    np.testing.assert_array_equal(found[kernel], there[kernel])
    other = write_table(tmp_path / "other.npz", table=vectors()[::-1])
    found, drawn, *_ = begun(store, source, tmp_path, covariates__perturbation=f"onehot + mine={other}")
    np.testing.assert_array_equal(found[kernel], drawn[kernel])


@pytest.mark.parametrize("layers", ["fresh", "hvg"])
def test_layers_of_genes_are_drawn_anew_when_asked(store, source, tmp_path, layers):
    found, drawn, account, _ = begun(store, source, tmp_path, init_layers=layers)
    there = flat(source.params)
    for name in found:
        base = drawn if name.startswith(("embed_", "head/out")) else there
        np.testing.assert_array_equal(found[name], base[name], err_msg=name)
    assert account.facts()["drawn anew"].keys() == {"embed_perturbed", "embed_control", "head/out"}


def test_other_genes_want_other_layers(store, source, tmp_path):
    fewer = Renamed(store, genes=store.genes[:30])
    with pytest.raises(
        RequestError, match=r"init_layers=fresh: the 30 genes here are not the 40 of .*init_layers=hvg"
    ):
        begun(fewer, source, tmp_path, init_layers="fresh")
    found, *_ = begun(fewer, source, tmp_path, init_layers="hvg")
    assert found["embed_perturbed/kernel"].shape == (60, 16)
    none = Renamed(store, genes=[f"ENSG{i}" for i in range(9)])
    with pytest.raises(
        RequestError, match=r"none of the 9 genes here \(ENSG0, .*\nTake config\.init_layers=hvg"
    ):
        begun(none, source, tmp_path)


def test_one_input_layer_of_several(store, source, tmp_path):
    params = dict(source.params)
    for name in ("embed_perturbed", "embed_control"):
        params[name] = {leaf: np.stack([values + 1, values]) for leaf, values in params[name].items()}
    bundle = dataclasses.replace(source.bundle, sources=["pbmc", "replogle"], datasets={"Screen": "replogle"})
    write_bundle(tmp_path / "several", bundle)
    several = saved(dataclasses.replace(source, path=tmp_path / "several", bundle=bundle, params=params))
    there = flat(source.params)
    for asked, more in (("replogle", 0), ("Screen", 0), ("pbmc", 1)):
        found, *_ = begun(store, several, tmp_path, init_source=asked)
        for name in ("embed_perturbed/kernel", "embed_control/bias"):
            np.testing.assert_allclose(found[name], there[name] + more)
    with pytest.raises(
        RequestError, match=r"an input layer for each of pbmc, replogle; say which in config\.init_"
    ):
        begun(store, several, tmp_path)
    with pytest.raises(RequestError, match="unknown source 'kang'"):
        begun(store, several, tmp_path, init_source="kang")
    begun(store, several, tmp_path, init_layers="fresh")


def test_rows_that_pretraining_never_used_are_drawn(store, source, tmp_path):
    settings = {
        **source.bundle.settings,
        "model": {**source.bundle.settings["model"], "use_perturbation": "no"},
    }
    bundle = dataclasses.replace(source.bundle, settings=settings)
    write_bundle(tmp_path / "pretrained", bundle)
    pretrained = saved(dataclasses.replace(source, path=tmp_path / "pretrained", bundle=bundle))
    found, drawn, *_ = begun(store, pretrained, tmp_path)
    there, name = flat(source.params), "covariates/perturbation"
    np.testing.assert_array_equal(found[name][0], there[name][0])
    np.testing.assert_array_equal(found[name][1:], drawn[name][1:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__width": 32}, r"config\.model\.width=32: the network of config\.init_from=.* has 16"),
        ({"model__depth": 3}, r"config\.model\.depth=3: .* has 2"),
        ({"init_layers": "all"}, r"unknown config\.init_layers 'all'"),
        ({"init_from": "/nowhere"}, "/nowhere: not a checkpoint bundle"),
    ],
)
def test_what_does_not_fit_is_refused(store, source, tmp_path, changes, message):
    with pytest.raises(RequestError, match=message):
        begun(store, source, tmp_path, **changes)


def test_a_finetuned_run_from_the_command_line(finished, tmp_path):
    """Begins where the other ended, goes on without it, and is as good from its first step."""
    before = tmp_path / "before"
    shutil.copytree(finished.workdir / "bundle", before)
    changes = {
        "init_from": str(before),
        "train__steps": 3,
        "train__save_every": 1,
        "optim__learning_rate": 1e-6,
    }
    command = [f"--config={QUICKSTART}", f"--workdir={tmp_path / 'run'}", *flags(**changes)]
    code, out, err = said(main.run, *command)
    assert code == 0, err
    assert "Begins with the weights of" in out and "(100.0%)" in out
    one, other = flat(load(before).params), flat(load(tmp_path / "run").params)
    assert max(np.abs(one[name] - other[name]).max() for name in one) < 1e-4
    assert read_bundle(tmp_path / "run/bundle").settings["init_from"] == str(before)
    shutil.rmtree(before)
    code, out, err = said(main.run, *command)
    assert code == 0 and "Begins with" not in out, err

"""The paper's data sets in small: columns and labels that the shipped hold-outs apply to, and one world for all."""

import ast
import dataclasses
import itertools
import json

import anndata
import numpy as np
import pytest

from perturbdiff_jax.data.conditions import CONTROL as CONTROL_GROUP
from perturbdiff_jax.data.conditions import TEST, TRAIN, VALIDATION
from perturbdiff_jax.data.prepare import PrepareOptions, prepare
from perturbdiff_jax.data.simulate import FORMS as NAMES
from perturbdiff_jax.data.simulate import SimulateOptions, write_simulated
from perturbdiff_jax.data.simulated import names
from perturbdiff_jax.data.simulated.forms import FORMS, keys_of, simulate_form, write_form, write_split
from perturbdiff_jax.data.simulated.sources import write_sources
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.released.hyper_parameters import CONTROLS

SMALL = SimulateOptions(
    cell_types=2,
    batches=3,
    perturbations=9,
    genes=120,
    cells_per_group=16,
    controls_per_context=24,
    form="sources",
)
SCREENS = [form for form, kind in FORMS.items() if kind.perturbation]
LEAST = dataclasses.replace(SMALL, batches=2, perturbations=3, cells_per_group=8)


@pytest.fixture(scope="module")
def drawn():
    return {form: simulate_form(SMALL, form) for form in FORMS}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_sources(SMALL, tmp_path_factory.mktemp("sources"))


def test_every_form_is_told_about():
    assert set(NAMES) == {"screen", "sources", *FORMS}


@pytest.mark.parametrize("form", SCREENS)
def test_columns_and_control_are_those_of_the_released_data(form, drawn):
    kind, (adata, _) = FORMS[form], drawn[form]
    columns = CONTROLS[kind.control]
    found = {"perturbation": kind.perturbation, "cell_type": kind.cell_type, "batch": kind.batch}
    assert found == columns and set(adata.obs) == set(columns.values())
    sizes = adata.obs.groupby(list(columns.values()), observed=False).size()
    assert (
        len(sizes) == 10 * 2 * 3 and sizes.min() >= 8
    )  # every context has the control and all perturbations
    assert (sizes.xs(kind.control, level=columns["perturbation"]) == 24).all()


@pytest.mark.parametrize("options", [SMALL, LEAST, SimulateOptions()], ids=["small", "least", "default"])
@pytest.mark.parametrize("form", SCREENS)
def test_the_shipped_hold_out_applies(form, options, tmp_path):
    """Each role has a perturbation, and held-out contexts have a training perturbation and others have all."""
    options = dataclasses.replace(options, genes=20)
    kind, content = FORMS[form], names.split_content(FORMS[form].source)
    split = write_split(names.split_path(kind.source), options, form, tmp_path / "split.json")
    path = write_form(dataclasses.replace(options, form=form), tmp_path / "cells.h5ad")
    store = prepare(
        [path], tmp_path / "store", PrepareOptions(**kind.keys, split=str(split), hvg=None, workers=1)
    )
    groups = store.groups
    held = np.isin(
        np.array(store.cell_types)[groups.cell_type], content["holdout_cell_types"] or store.cell_types
    )
    held &= np.isin(np.array(store.batches)[groups.batch], content["holdout_batches"] or store.batches)
    label = np.array(store.perturbations)[groups.perturbation]
    perturbed = groups.split != CONTROL_GROUP
    expected = np.full(len(held), TRAIN)
    for code, part in ((TEST, "test"), (VALIDATION, "validation")):
        expected[held & np.isin(label, content["holdout_perturbations"][part])] = code
    assert (groups.split == np.where(perturbed, expected, CONTROL_GROUP)).all()
    assert {TRAIN, VALIDATION, TEST} == set(groups.split[held & perturbed]) and (~held).any()
    assert len(set(label)) == options.perturbations + 1


def test_names_that_are_not_held_out_are_not_in_the_split_files():
    for source, free in names.FREE.items():
        content = names.split_content(source)
        held = {name for part in content["holdout_perturbations"].values() for name in part}
        assert len(set(free)) == len(free) and not held & {*free, content["control"]}
        assert not set(content["holdout_cell_types"]) & {*names.CANCER_LINES, *names.SCREENED_LINES}


def test_a_drug_does_more_at_a_higher_dose(drawn):
    labels = [ast.literal_eval(name)[0] for name in names.perturbations("tahoe100m", SMALL)]
    truth = drawn["drugs"][1]
    size = np.abs(truth.response).sum(axis=(0, 1, 3))
    several = 0
    for drug in {drug for drug, _, _ in labels}:
        own = sorted((dose, row) for row, (name, dose, _) in enumerate(labels) if name == drug)
        several += len(own) > 1
        assert all(size[low] < size[high] for (_, low), (_, high) in itertools.pairwise(own))
        driven = {tuple(np.flatnonzero(truth.drive[row])) for _, row in own}
        assert len(driven) == 1
    assert several >= 2


def test_counts_and_normalised_values(drawn):
    for form, (adata, _) in drawn.items():
        values = adata.X.data
        assert adata.X.format == "csr" and values.dtype == np.float32 and (values > 0).all()
        whole = (values == np.round(values)).all()
        assert whole != (form == "genes")
    totals = np.expm1(drawn["genes"][0].X.toarray().astype(np.float64)).sum(axis=1)
    np.testing.assert_allclose(totals, 1e4, rtol=1e-4)


def test_rna_has_the_cell_types_of_all_and_no_perturbation(drawn):
    adata, _ = drawn["rna"]
    assert list(adata.obs) == ["cell_type", "batch"] and keys_of("rna")["perturbation_key"] is None
    known = {name for form in SCREENS for name in drawn[form][0].obs[FORMS[form].cell_type]}
    assert len(known) == 6 and known < set(adata.obs["cell_type"])
    assert adata.obs["batch"].nunique() == 9  # many more than a screen's 3
    assert (adata.obs.groupby("batch", observed=True)["cell_type"].nunique() < 8).any()


def test_sources_measure_most_genes_each_lacking_some(drawn):
    genes = {form: set(adata.var_names) for form, (adata, _) in drawn.items()}
    everything = set().union(*genes.values())
    for own in genes.values():
        assert 0.8 * 120 < len(own) < 120 and everything - own
    assert len({frozenset(own) for own in genes.values()}) == len(genes)


def test_a_cell_type_is_the_same_in_every_source(drawn):
    """Mean control cells of one cell type in two data sets are alike, those of another are not."""

    def mean(form, name):
        adata = drawn[form][0]
        kind = FORMS[form]
        own = (adata.obs[kind.cell_type] == name).to_numpy()
        if kind.perturbation:
            own = own & (adata.obs[kind.perturbation] == kind.control).to_numpy()
        total = np.asarray(adata.X[own].sum(axis=0)).ravel() + 1.0
        shared = sorted(set(drawn["cytokines"][0].var_names) & set(drawn["rna"][0].var_names))
        return np.log(total / total.sum())[adata.var_names.get_indexer(shared)]

    one, other = names.BLOOD_CELLS[:2]
    apart = mean("cytokines", one) - mean("cytokines", other)
    there = mean("rna", one) - mean("rna", other)
    assert np.corrcoef(apart, there)[0, 1] > 0.9
    assert np.corrcoef(apart, mean("rna", one) - mean("rna", "fibroblast"))[0, 1] < 0.8


def test_programs_are_shared_and_batches_are_not(drawn):
    kept = [set(drawn[form][0].var_names) for form in ("cytokines", "drugs")]
    shared = sorted(kept[0] & kept[1])
    columns = [drawn[form][0].var_names.get_indexer(shared) for form in ("cytokines", "drugs")]
    loadings = [
        drawn[form][1].loading[:, own] for form, own in zip(("cytokines", "drugs"), columns, strict=True)
    ]
    np.testing.assert_array_equal(*loadings)
    # Between two batches of one cell type the control cells differ, and otherwise in another data set.
    rates = [
        drawn[form][1].rate[0, :, 0][:, own]
        for form, own in zip(("cytokines", "drugs"), columns, strict=True)
    ]
    moved = [np.log(rate[0] / rate[1]) for rate in rates]
    assert min(np.abs(change).mean() for change in moved) > 0.05 and abs(np.corrcoef(*moved)[0, 1]) < 0.3


def test_a_form_alone_is_the_source_of_the_same_name(drawn, written, tmp_path):
    assert [source.name for source in written] == ["pbmc", "tahoe100m", "replogle", "cellxgene"]
    for form, source in zip(FORMS, written, strict=True):
        alone = write_form(dataclasses.replace(SMALL, form=form), tmp_path / f"{form}.h5ad")
        one, other = anndata.read_h5ad(alone), anndata.read_h5ad(source.path)
        assert (one.X != other.X).nnz == 0 and one.obs.equals(other.obs)
        assert (source.perturbation_key, source.control) == (FORMS[form].perturbation, FORMS[form].control)
        assert {source.cell_type_key, source.batch_key} <= set(other.obs)
        assert (source.split is None) == (form == "rna")
    assert sorted(path.suffix for path in written[0].path.parent.iterdir()) == [".h5ad"] * 4 + [".json"] * 3


def test_another_seed_is_another_world(drawn):
    again = simulate_form(SMALL, "cytokines")[0]
    other = simulate_form(dataclasses.replace(SMALL, seed=1), "cytokines")[0]
    assert (again.X != drawn["cytokines"][0].X).nnz == 0 and again.obs.equals(drawn["cytokines"][0].obs)
    assert other.shape != again.shape or (other.X != again.X).nnz > 0


def test_the_screen_is_written_as_before(tmp_path):
    options = dataclasses.replace(SMALL, form="screen")
    one, other = (write(options, tmp_path / write.__name__) for write in (write_form, write_simulated))
    assert (anndata.read_h5ad(one).X != anndata.read_h5ad(other).X).nnz == 0
    assert keys_of("screen") == {"control": "control"}


def test_files_that_are_no_such_hold_out_are_left_to_their_reader(tmp_path):
    listed = tmp_path / "listed.json"
    listed.write_text(json.dumps({"columns": ["perturbation"], "test": [["IL-2"]]}))
    for path in (listed, tmp_path / "nowhere.toml"):
        assert write_split(path, SMALL, "cytokines", tmp_path / "out.json") == path
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("form", "changes", "said"),
    [
        ("cytokines", {"perturbations": 2}, "perturbations=2: .*form=cytokines has 3 to 90"),
        ("cytokines", {"batches": 1}, "batches=1: .* has 2 to 12"),
        ("cytokines", {"cell_types": 19}, "cell_types=19: .* has 1 to 18"),
        ("genes", {"cell_types": 5}, "cell_types=5: .* has 2 to 4"),
        ("drugs", {"batches": 15}, "batches=15: .* has 1 to 14"),
    ],
)
def test_sizes_that_a_form_has_no_names_for_are_refused(form, changes, said):
    with pytest.raises(RequestError, match=said):
        simulate_form(dataclasses.replace(SMALL, form=form, **changes))


def test_an_unknown_form_is_refused():
    with pytest.raises(RequestError, match=r"simulate\.form.*cytokines"):
        SimulateOptions(form="cytokine")


def test_all_names_can_be_used():
    most = dataclasses.replace(LEAST, genes=3, form="cytokines", perturbations=90, batches=12, cell_types=18)
    assert len(set(names.perturbations("pbmc", most))) == 90
    # Tahoe's test list has some labels several times.
    assert len(set(names.perturbations("tahoe100m", dataclasses.replace(most, perturbations=834)))) == 834
    assert (
        len(set(names.contexts("batches", ["Donor1", "Donor4", "Donor9", "Donor12"], names.DONORS, most)))
        == 12
    )

"""How a run tells its covariates: from files to facts, parameters and the bundle, and what is refused."""

import copy

import jax
import numpy as np
import pytest
from covariate_runs import NAMES, WHOLE, settled, vectors, write_table
from tiny_run import FLAGS, QUICKSTART, flags, said, tiny_config

from perturbdiff_jax import cli, main
from perturbdiff_jax.bundle import build_model, read_bundle
from perturbdiff_jax.covariate_setup import tell
from perturbdiff_jax.covariate_tables import stored_encoding
from perturbdiff_jax.data.conditions import TEST
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.optim import optimizer
from perturbdiff_jax.run_setup import describe
from perturbdiff_jax.run_store import open_store
from perturbdiff_jax.settings import from_config
from perturbdiff_jax.state import create_state, init_params


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return open_store(from_config(tiny_config(**WHOLE)), tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("table") / "mine.npz")


def test_held_out_perturbations_that_nothing_tells_apart_are_refused(store):
    with pytest.raises(
        RequestError, match=r"2 perturbation\(s\) of the test split .*: P02, P04\.\nGive config"
    ):
        tell(settled(store), store)
    tell(settled(store, covariates__allow_unknown=True), store)
    tell(settled(store, model__use_perturbation="no"), store)


def test_validation_conditions_have_to_be_told_too(tmp_path):
    """They are predicted after hours of training."""
    changes = {"holdout__batch": None, "holdout__fraction": 0.2, "holdout__validation_fraction": 0.2}
    store = open_store(from_config(tiny_config(**changes)), tmp_path)
    groups = store.groups
    tested = sorted(
        {store.perturbations[code] for code in groups.perturbation[groups.split == TEST].tolist()}
    )
    table = write_table(tmp_path / "tested.npz", tested, vectors()[: len(tested)])
    with pytest.raises(
        RequestError, match=r"perturbation\(s\) of the validation split have no training cell"
    ):
        tell(settled(store, **changes, covariates__perturbation=str(table)), store)


def test_what_a_run_notes_of_its_covariates(store, table):
    def noted(**changes):
        settings = settled(store, covariates__allow_unknown=True, **changes)
        return tell(settings, store).account(settings, store)

    plain = {"onehot": True, "tables": []}
    rest = {"batch": True, "combinations_as_sums": False, "doses": []}
    assert noted() == {"perturbation": plain, "cell_type": plain, **rest}
    mine = {"onehot": False, "tables": [{"name": "mine", "file": "mine.npz", "width": 5}]}
    told = noted(covariates__perturbation=f"mine={table}", model__use_cell_type="no", model__use_batch="no")
    assert told == {"perturbation": mine, "cell_type": None, **rest, "batch": False}
    assert noted(model__use_perturbation="no")["perturbation"] is None


@pytest.mark.parametrize(
    ("names", "changes", "wanted"),
    [
        (["control", "P01", "P01+P03"], {"combinations": "sum"}, (True, [])),
        (["control", "P01", "P01+P03"], {"combinations": "own"}, (False, [])),
        (["control", "P01", "P01+P03"], {"combinations": "own", "perturbation": "TABLE"}, (True, [])),
        (["control", "P01", "P03"], {"combinations": "sum", "perturbation": "TABLE"}, (False, [])),
        (["control", "P01 @ 0.5", "P01 @ 2"], {"perturbation": "TABLE"}, (False, [0.5, 2.0])),
        (["control", "P01 @ 0.5", "P01 @ 2"], {}, (False, [])),
    ],
)
def test_sums_and_doses_are_noted(store, table, names, changes, wanted):
    given = {f"covariates__{key}": str(table) if v == "TABLE" else v for key, v in changes.items()}
    settings = settled(store, covariates__allow_unknown=True, **given)
    other = copy.copy(store)
    # As many names as there are codes.
    other.__dict__["perturbations"] = [*names, *store.perturbations[len(names) :]]
    found = tell(settings, other).account(settings, other)
    assert (found["combinations_as_sums"], found["doses"]) == wanted


def test_names_that_a_table_lacks_are_said(store, table, tmp_path, capsys):
    told = tell(settled(store, covariates__perturbation=f"mine={table}"), store)
    assert (
        "warning: 1 perturbation(s) are not in the table mine and get a learned embedding: P05."
        in capsys.readouterr().out
    )
    assert told.rows["perturbation"].frozen.shape == (8, 5) and told.doses == {}
    shorter = write_table(tmp_path / "s.npz", NAMES[2:], vectors()[2:])
    with pytest.raises(RequestError, match=r"1 perturbation\(s\) of the test split .*: P02\.\n"):
        tell(settled(store, covariates__perturbation=str(shorter)), store)


def test_facts_build_the_network_and_vectors_reach_its_parameters(store, table, tmp_path):
    settings = settled(store, covariates__perturbation=f"onehot + mine={table}")
    told = tell(settings, store)
    bundle = describe(settings, store, told)
    assert describe(settings, store) == bundle
    facts = bundle.tables["perturbation"]
    assert (
        facts["name"] == "onehot + mine"
        and facts["shape"] == [8, 5]
        and set(bundle.tables) == {"perturbation"}
    )
    # none, control, P01, then P02 and P04 without a learned row
    assert facts["learned"] == [[0], [1], [2], [], [3], [], [4], [5]]
    model = build_model(bundle, settings.model)
    drawn = create_state(init_params(model, jax.random.key(0)), optimizer(settings.optim, 6))
    filled = told.put_into(drawn)
    rows = {name: 1 + store.perturbations.index(name) for name in ("P02", "P06")}
    for tree in (filled.params, filled.ema):
        frozen = np.asarray(tree["covariates"]["frozen_perturbation"])
        np.testing.assert_array_equal(frozen[rows["P02"]], vectors()[1])
        np.testing.assert_array_equal(frozen[rows["P06"]], vectors()[4])
        assert tree["covariates"]["perturbation"].shape == (6, 8)
    differ = jax.tree.map(lambda a, b: bool((a != b).any()), drawn.params, filled.params)
    assert [path[-1].key for path, changed in jax.tree.leaves_with_path(differ) if changed] == [
        "frozen_perturbation"
    ]
    told.write(tmp_path)
    found = stored_encoding(tmp_path, bundle, "perturbation")
    assert found.onehot and found.tables[0][0] == "mine" and list(found.tables[0][1].names) == NAMES
    np.testing.assert_array_equal(found.tables[0][1].vectors, vectors())


def test_a_table_of_cell_types(store, tmp_path):
    kinds = write_table(tmp_path / "kinds.npz", ["T1", "T2", "T9"], vectors()[:3])
    changes = {"covariates__cell_type": f"llm={kinds}", "covariates__allow_unknown": True}
    settings = settled(store, **changes, model__use_cell_type="auto")
    assert settings.model.use_cell_type == "yes"
    bundle = describe(settings, store)
    assert bundle.tables["cell_type"]["shape"] == [2, 5] and bundle.tables["cell_type"]["learned"] == []
    params = init_params(build_model(bundle, settings.model), jax.random.key(0))
    assert params["covariates"]["frozen_cell_type"].shape == (2, 5)


def test_a_cell_type_that_a_table_tells_need_not_be_read_off_its_control_cells(tmp_path):
    new = {"holdout__cell_type": "T2", "holdout__batch": None, "holdout__fraction": 1.0}
    new |= {"holdout__validation_fraction": 0.0, "model__use_cell_type": "auto"}
    store = open_store(from_config(tiny_config(**new)), tmp_path)
    assert settled(store, **new).model.use_cell_type == "no"
    kinds = write_table(tmp_path / "kinds.npz", ["T1", "T2"], vectors()[:2])
    told = settled(store, **new, covariates__cell_type=f"onehot + llm={kinds}")
    assert told.model.use_cell_type == "yes"
    # Control cells of T2 are no targets of training: nothing would train a learned part of its own.
    assert describe(told, store).tables["cell_type"]["learned"] == [[0], []]


def test_a_file_that_will_not_do_is_refused_before_a_store_is_made(tmp_path):
    for changes, message in (
        ({"covariates__perturbation": "mine=/nowhere.npz"}, "/nowhere.npz: no such file"),
        ({"init_from": "/nowhere"}, "/nowhere: not a checkpoint bundle"),
    ):
        code, _, err = said(
            main.run, f"--config={QUICKSTART}", f"--workdir={tmp_path / 'run'}", *flags(**changes)
        )
        assert code == 2 and message in err and len(err.splitlines()) <= 2
        assert not (tmp_path / "run").exists()


def relabelled(store, names, **changes):
    """The store with other names of perturbations, in the order of its own."""
    other = object.__new__(type(store))
    other.__dict__.update(store.__dict__)
    other.__dict__["manifest"] = {**store.manifest, "perturbations": names}
    other.__dict__["perturbations"] = names
    return other


def test_doses_are_learned_beside_a_table_of_drugs(store, tmp_path):
    names = ["control", "A @ 0.5", "A @ 10", "B @ 0.5", "B @ 10", "C @ 2", "C @ 10"]
    drugs = write_table(tmp_path / "drugs.npz", ["A", "B", "C"], vectors()[:3])
    dosed = relabelled(store, names)
    told = tell(settled(store, covariates__perturbation=str(drugs)), dosed)
    assert told.doses == {"values": [None, 0.5, 2.0, 10.0], "codes": [0, 1, 3, 1, 3, 2, 3]}
    assert tell(settled(store, covariates__perturbation=f"onehot + {drugs}"), dosed).doses == {}
    asked = {"covariates__perturbation": f"onehot + {drugs}", "covariates__dose": "yes"}
    assert tell(settled(store, **asked), dosed).doses == told.doses
    with pytest.raises(RequestError, match="nothing would tell them apart"):
        tell(settled(store, covariates__perturbation=str(drugs), covariates__dose="no"), dosed)
    with pytest.raises(RequestError, match=r"config\.covariates\.dose='yes': no perturbation .* has a dose"):
        tell(settled(store, covariates__dose="yes", covariates__allow_unknown=True), store)


def test_held_out_combinations_are_sums_of_trained_parts(store, capsys):
    held = sorted({int(code) for code in store.groups.perturbation[store.groups.split == TEST]})
    names = [*store.perturbations]
    names[held[0]], names[held[1]] = "P01+P03", "P05+P06"
    told = tell(settled(store), relabelled(store, names))
    assert told.added_up and "told as sums of their parts: P01+P03, P05+P06" in capsys.readouterr().out
    rows = dict(zip(names, told.rows["perturbation"].learned[1:]))
    assert rows["P01+P03"] == (*rows["P01"], *rows["P03"]) and len(rows["P05+P06"]) == 2
    with pytest.raises(RequestError, match=r"P01\+P03, P05\+P06"):
        tell(settled(store, covariates__combinations="own"), relabelled(store, names))
    names[held[1]] = "P05+P99"
    with pytest.raises(RequestError, match=r"1 perturbation\(s\) .*: P05\+P99\."):
        tell(settled(store), relabelled(store, names))


def test_a_run_is_told_by_a_table_from_the_command_line_to_a_new_name(tmp_path):
    """Trained, predicted, and resumed only with the same vectors."""
    mine = write_table(tmp_path / "mine.npz")
    changes = {
        "covariates__perturbation": f"mine={mine}",
        **{k: v for k, v in WHOLE.items() if v is not None},
    }
    command = [
        f"--config={QUICKSTART}",
        f"--workdir={tmp_path / 'run'}",
        *flags(**changes, holdout__batch=""),
    ]
    code, out, err = said(main.run, *command)
    assert code == 0, err
    frozen = np.load(tmp_path / "run/bundle/embeddings/perturbation-0.npz")
    np.testing.assert_array_equal(frozen["vectors"], vectors())
    bundle = read_bundle(tmp_path / "run/bundle")
    assert bundle.tables["perturbation"]["parts"][0]["name"] == "mine"
    asked = ("--checkpoint", tmp_path / "run", "--input", tmp_path / "run/simulated.h5ad", *FLAGS)
    code, out, err = said(
        cli.run, "predict", *asked, "--perturbations", "NEAR3", "--output", tmp_path / "p.h5ad"
    )
    assert code == 0 and "NEAR3 was never trained: told by its vector, nearest to P03" in out, err
    code, out, err = said(
        cli.run, "predict", *asked, "--perturbations", "P55", "--output", tmp_path / "q.h5ad"
    )
    assert code == 2 and "unknown perturbation 'P55'" in err and not (tmp_path / "q.h5ad").exists()
    write_table(mine, NAMES, vectors() + 1)
    code, out, err = said(main.run, *command)
    assert code == 2 and "this run began with other vectors of config.covariates.perturbation" in err

"""Before the first step: the store of a run, and what its cells decide about the settings."""

import numpy as np
import pytest
from tiny_run import tiny_config

from perturbdiff_jax.data.storage.measured import mask_of
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.run_setup import describe, settle
from perturbdiff_jax.run_store import open_store
from perturbdiff_jax.settings import from_config


def made(folder, **changes):
    """(store, settings) of a tiny simulated screen, covariates left to the cells."""
    auto = {"model__use_cell_type": "auto", "model__use_batch": "auto", "loader__train_on_controls": "auto"}
    settings = from_config(tiny_config(**auto | changes))
    return open_store(settings, folder), settings


def test_covariates_are_used_when_training_saw_them(tmp_path, capsys):
    store, settings = made(tmp_path)
    settled = settle(settings, store)
    assert (settled.model.use_cell_type, settled.model.use_batch) == ("yes", "yes")
    assert settled.loader.train_on_controls == "no" and "read off" not in capsys.readouterr().out


def test_a_context_that_was_never_perturbed_is_read_off_its_control_cells(tmp_path, capsys):
    store, settings = made(tmp_path, holdout__fraction=1.0, holdout__validation_fraction=0.0)
    settled = settle(settings, store)
    assert (settled.model.use_cell_type, settled.model.use_batch) == ("yes", "no")
    assert settled.loader.train_on_controls == "yes"
    assert "No perturbed cell of B2 in training" in capsys.readouterr().out
    seen = {tuple(triple) for triple in describe(settled, store).trained}
    assert ("control", "T1", "B2") in seen and not any(p != "control" and b == "B2" for p, _, b in seen)


def test_what_is_said_is_not_decided_again(tmp_path):
    store, settings = made(
        tmp_path,
        holdout__fraction=1.0,
        holdout__validation_fraction=0.0,
        model__use_batch="yes",
        loader__train_on_controls="no",
    )
    settled = settle(settings, store)
    assert settled.model.use_batch == "yes" and settled.loader.train_on_controls == "no"


def test_epochs_end_a_run_before_its_steps_do(tmp_path, capsys):
    store, settings = made(tmp_path, train__max_epochs=1.5)
    groups = store.groups
    sets = np.ceil(groups.size[groups.split == 0] / settings.loader.cells_per_set).sum()
    limit = int(np.ceil(1.5 * sets / settings.loader.sets_per_batch))
    assert limit < 100
    settled = settle(from_config(tiny_config(train__max_epochs=1.5, train__steps=100)), store)
    assert settled.train.steps == limit and f"Training takes {limit:,} steps" in capsys.readouterr().out
    assert settle(from_config(tiny_config(train__max_epochs=1000.0)), store).train.steps == 6


def test_a_bundle_knows_which_genes_training_measured(tmp_path):
    store, settings = made(tmp_path)
    assert "measured" not in describe(settle(settings, store), store).values
    genes = tmp_path / "genes.txt"
    genes.write_text("\n".join(["nowhere", *store.genes[:9]]))
    source, listed = (
        str(tmp_path / "simulated.h5ad"),
        {"data__genes": str(genes), "data__absent_genes": "zero"},
    )
    settings = from_config(tiny_config(data__input=source, data__control="control", **listed))
    store = open_store(settings, tmp_path / "own")
    found = describe(settle(settings, store), store)
    assert found.genes[0] == "nowhere" and mask_of(found.values["measured"], 10).tolist() == [
        False,
        *[True] * 9,
    ]


def test_the_store_of_a_run(tmp_path, capsys):
    store, settings = made(tmp_path / "run")
    assert "Simulating" in capsys.readouterr().out
    again = open_store(settings, tmp_path / "run")  # made once
    assert again.manifest == store.manifest and capsys.readouterr().out == ""
    named = open_store(from_config({"data": {"store": str(tmp_path / "run/store")}}), tmp_path / "other")
    assert isinstance(named, Store) and named.path == store.path and not (tmp_path / "other").exists()
    source = tmp_path / "run/simulated.h5ad"
    own = tiny_config(data__input=f"{source}, ", data__control="P01", data__hvg=7)
    other = open_store(from_config(own), tmp_path / "third")
    assert other.control == "P01" and 7 <= len(other.genes) < 10  # ties at the cut are kept
    with pytest.raises(RequestError, match="unknown obs column 'gene'"):
        open_store(
            from_config(tiny_config(data__input=str(source), data__perturbation_key="gene")), tmp_path / "x"
        )

"""Learned rows that are added up, with and without a frozen table, against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturbdiff_jax.models.covariates import CovariateEncoder

PERTURBATIONS, WIDTH, GENES = 3, 4, 7
ROWS = ((0,), (1,), (1, 2), ())


def encoded(codes, table=None, **changes):
    """(output, parameters as numpy) of an encoder on codes [B, 1]."""
    model = CovariateEncoder(
        perturbations=PERTURBATIONS, cell_types=2, batches=0, genes=GENES, width=WIDTH, **changes
    )
    codes = jnp.asarray(codes)[:, None]
    arguments = (codes, jnp.ones_like(codes), jnp.zeros_like(codes))
    params = model.init(jax.random.key(0), *arguments)["params"]
    if table is not None:
        params = {**params, "frozen_perturbation": jnp.asarray(table)}
    return np.asarray(model.apply({"params": params}, *arguments))[:, 0], jax.tree.map(np.asarray, params)


def mixed(params, perturbation):
    mix = params["mix"]["linear"]
    row = np.concatenate([perturbation, params["cell_type"][np.ones(len(perturbation), int)]], axis=-1)
    return row @ mix["kernel"] + mix["bias"]


def test_rows_are_added_up():
    out, params = encoded([-1, 0, 1, 2], perturbation_rows=ROWS)
    learned = params["perturbation"]
    assert learned.shape == (3, WIDTH)  # none, and two units
    wanted = [learned[0], learned[1], learned[1] + learned[2], np.zeros(WIDTH)]
    np.testing.assert_allclose(out, mixed(params, np.stack(wanted)), rtol=1e-5, atol=1e-5)


def test_rows_are_added_to_what_a_table_tells():
    table = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    out, params = encoded([-1, 0, 1, 2], table, perturbation_table=(4, 5), perturbation_rows=ROWS)
    learned, to = params["perturbation"], params["map_perturbation"]["linear"]
    wanted = np.stack([learned[0], learned[1], learned[1] + learned[2], np.zeros(WIDTH)])
    wanted = wanted + table @ to["kernel"] + to["bias"]
    np.testing.assert_allclose(out, mixed(params, wanted), rtol=1e-5, atol=1e-5)
    alone, params = encoded([1], table, perturbation_table=(4, 5))
    assert "perturbation" not in params
    to = params["map_perturbation"]["linear"]
    np.testing.assert_allclose(out.shape[1:], alone.shape[1:])
    np.testing.assert_allclose(
        alone, mixed(params, table[2:3] @ to["kernel"] + to["bias"]), rtol=1e-5, atol=1e-5
    )


def test_a_row_for_each_name_is_what_no_rows_mean():
    plain, params = encoded([-1, 0, 1, 2])
    rows, same = encoded([-1, 0, 1, 2], perturbation_rows=((0,), (1,), (2,), (3,)))
    np.testing.assert_array_equal(params["perturbation"], same["perturbation"])
    np.testing.assert_allclose(rows, plain, rtol=1e-6)


@pytest.mark.parametrize("rows", [((0,), (1,), (1, 2), ())])
def test_what_is_never_learned_gets_no_gradient_and_parts_get_each_theirs(rows):
    model = CovariateEncoder(
        perturbations=PERTURBATIONS, cell_types=2, batches=0, genes=GENES, width=WIDTH, perturbation_rows=rows
    )
    zero = jnp.zeros((1, 1), jnp.int32)
    params = model.init(jax.random.key(0), zero, zero, zero)["params"]

    def total(params, code):
        return model.apply({"params": params}, jnp.full((1, 1), code), zero, zero).sum()

    def touched(code):
        gradient = np.asarray(jax.grad(total)(params, code)["perturbation"])
        return np.flatnonzero(np.abs(gradient).sum(axis=1)).tolist()

    assert [touched(code) for code in (-1, 0, 1, 2)] == [[0], [1], [1, 2], []]


def test_cell_types_too():
    model = CovariateEncoder(
        perturbations=1,
        cell_types=2,
        batches=0,
        genes=GENES,
        width=WIDTH,
        cell_type_table=(2, 3),
        cell_type_rows=((), (0,)),
    )
    codes = jnp.asarray([[0], [1]])
    params = model.init(jax.random.key(1), codes * 0, codes, codes)["params"]
    assert params["cell_type"].shape == (1, WIDTH) and params["frozen_cell_type"].shape == (2, 3)
    out = np.asarray(model.apply({"params": params}, codes * 0, codes, codes))[:, 0]
    own = jax.tree.map(np.asarray, params)
    to, mix = own["map_cell_type"]["linear"], own["mix"]["linear"]
    told = (
        own["frozen_cell_type"] @ to["kernel"] + to["bias"] + np.stack([np.zeros(WIDTH), own["cell_type"][0]])
    )
    row = np.concatenate([own["perturbation"][[1, 1]], told], axis=-1)
    np.testing.assert_allclose(out, row @ mix["kernel"] + mix["bias"], rtol=1e-5, atol=1e-5)

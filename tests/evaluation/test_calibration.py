"""Calibration of draws, on populations whose spread between batches is known."""

import numpy as np
import pytest
import scipy.sparse as sp

from perturbdiff_jax.evaluation.calibration import COLUMNS, calibrate
from perturbdiff_jax.evaluation.contexts import Context
from perturbdiff_jax.evaluation.metrics import energy
from perturbdiff_jax.evaluation.spread import Error

GENES, CELLS, BATCHES, PERTURBATIONS, DRAWS = 300, 40, 4, 4, 6


def population(draw, centre, between):
    """Cells of a new batch: all shifted together, then each by itself."""
    moved = centre + between * draw.normal(size=GENES)
    return sp.csr_matrix(np.maximum(moved + 0.3 * (centre > 0) * draw.normal(size=(CELLS, GENES)), 0))


@pytest.fixture(scope="module")
def world():
    """(context, function that makes draws with a given share of the true spread between batches)."""
    draw = np.random.default_rng(0)
    base = draw.uniform(1.5, 3.0, GENES)
    base[-20:] = 0.0  # never expressed
    centres = {f"P{i}": base + (base > 0) * draw.normal(scale=0.5, size=GENES) for i in range(PERTURBATIONS)}
    steady = np.random.default_rng(1)
    control = {f"B{b}": sp.csr_matrix(np.tile(base, (CELLS, 1))) for b in range(BATCHES)}
    real = {
        (batch, name): population(steady, centre, 0.2 * (centre > 0))
        for batch in control
        for name, centre in centres.items()
    }
    for cells in real.values():
        cells.eliminate_zeros()
    context = Context("T", tuple(f"G{i}" for i in range(GENES)), control, real)

    def draws(share):
        return {
            k: {key: population(draw, centres[key[1]], share * 0.2 * (centres[key[1]] > 0)) for key in real}
            for k in range(DRAWS)
        }

    return context, draws


def test_draws_as_far_apart_as_batches_cover_what_they_say(world):
    context, draws = world
    found = calibrate(draws(1.0), context)
    assert tuple(found.columns) == COLUMNS and len(found) == BATCHES * PERTURBATIONS
    for name, level in (("coverage_50", 0.5), ("coverage_80", 0.8), ("coverage_95", 0.95)):
        assert found[name].mean() == pytest.approx(level, abs=0.02)
    assert found["energy_between_draws"].mean() == pytest.approx(
        found["energy_between_batches"].mean(), rel=0.05
    )
    assert found["energy_to_real"].mean() == pytest.approx(found["energy_between_batches"].mean(), rel=0.05)


def test_draws_that_are_too_alike_are_found_out_and_the_model_error_mends_it(world):
    context, draws = world
    sure = draws(0.3)
    found = calibrate(sure, context)
    assert found["coverage_80"].mean() < 0.6
    assert found["energy_between_draws"].mean() < 0.5 * found["energy_between_batches"].mean()
    assert (found["plain_80"] == found["coverage_80"]).all()
    wide = calibrate(sure, context, error=Error(0.4))
    assert (wide["coverage_80"] > found["coverage_80"]).all()
    assert (wide["half_width_80"] > found["half_width_80"]).all()
    np.testing.assert_array_equal(wide["plain_80"], found["plain_80"])


def test_one_condition_by_hand(world):
    context, draws = world
    three = {k: part for k, part in draws(1.0).items() if k < 3}
    row = calibrate(three, context).iloc[0]
    key = (row["batch"], row["perturbation"])
    cells, real = [part[key].toarray() for part in three.values()], context.real[key].toarray()
    base = context.control[key[0]].toarray().mean(axis=0)
    kept = np.maximum(base, real.mean(axis=0)) >= 0.05
    changes = np.stack([c.mean(axis=0) - base for c in cells])[:, kept]
    assert row["genes"] == kept.sum() == GENES - 20
    assert row["spread"] == pytest.approx(changes.std(axis=0, ddof=1).mean(), rel=1e-4)
    assert row["error"] == pytest.approx(
        np.abs(changes.mean(axis=0) - (real.mean(axis=0) - base)[kept]).mean(), rel=1e-4
    )
    pairs = [energy(cells[i], cells[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert row["energy_between_draws"] == pytest.approx(np.mean(pairs), rel=1e-5)


def test_conditions_with_one_draw_no_draw_or_one_batch(world):
    context, draws = world
    made = draws(1.0)
    once, never = ("B0", "P0"), ("B0", "P1")
    for k in range(DRAWS):
        left_out = (once, never) if k else (never,)
        made[k] = {key: cells for key, cells in made[k].items() if key not in left_out}
    found = calibrate(made, context).set_index(["batch", "perturbation"])
    assert never not in found.index and len(found) == BATCHES * PERTURBATIONS - 1
    alone = found.loc[once]
    assert alone["draws"] == 1 and alone[["coverage_80", "half_width_80", "energy_to_real"]].notna().all()
    assert alone[["spread", "energy_between_draws"]].isna().all()
    one_batch = Context("T", context.genes, context.control, {("B1", "P1"): context.real["B1", "P1"]})
    assert np.isnan(calibrate(made, one_batch)["energy_between_batches"]).all()

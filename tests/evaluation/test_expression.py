"""The table of differential expression against pdex itself, and which of the two is asked."""

import numpy as np
import pytest

pytest.importorskip("pdex")
from perturbdiff_jax.evaluation import celleval, expression
from perturbdiff_jax.evaluation.populations import Copies, Moved, as_cells

GENES = tuple(f"g{i:02}" for i in range(40))
EXACT = ("target_mean", "ref_mean", "target_membership", "ref_membership", "p_value", "statistic", "fdr")


def cells(seed, count):
    """log1p values of counts normalised to one total: ties, zeros, a gene that nobody has."""
    rng = np.random.default_rng(seed)
    x = rng.poisson(rng.gamma(0.4, 3.0, len(GENES)), (count, len(GENES))).astype(float)
    x[:, 5] = 0
    x[:, 6] = x[:, 6] if seed % 2 else 0  # on one side only: an infinite fold change
    return as_cells(np.log1p(1e3 * x / np.maximum(x.sum(axis=1, keepdims=True), 1)))


CONTROL = cells(0, 700)
GROUPS = {
    "P2": cells(1, 150),
    "P1": cells(2, 37),
    "copies": Copies(cells(3, 2), np.array([40, 3])),
    "moved": Moved(
        ((CONTROL, np.arange(90, 20, -1), np.linspace(-1, 1, 40)), (cells(5, 9), [3, 0], np.zeros(40)))
    ),
}


def tables(**options):
    given = (GROUPS, CONTROL, GENES, "control")
    with celleval.quiet():
        theirs = expression._by_pdex(*given, options.get("is_log1p", True))
        return expression.expression_table(*given, **options), theirs


@pytest.mark.parametrize("is_log1p", [True, False])
def test_it_is_the_table_of_pdex(is_log1p):
    ours, theirs = tables(is_log1p=is_log1p)
    assert ours.columns == theirs.columns and list(map(str, ours.dtypes)) == list(map(str, theirs.dtypes))
    for name in ("target", "feature", *EXACT):
        np.testing.assert_array_equal(ours[name].to_numpy(), theirs[name].to_numpy(), err_msg=name)
    fold, wanted = (table["log2_fold_change"].to_numpy() for table in (ours, theirs))
    np.testing.assert_array_equal(fold.astype(np.float32), wanted.astype(np.float32))  # as cell-eval reads it
    np.testing.assert_allclose(ours["percent_change"], theirs["percent_change"], rtol=1e-15)
    assert np.isinf(fold).any() and (fold == 0).any()


def test_another_pdex_is_asked_itself(monkeypatch):
    import pdex

    calls = []
    own = pdex.pdex
    monkeypatch.setattr(pdex, "pdex", lambda *given, **options: calls.append(1) or own(*given, **options))
    ours, theirs = tables()
    assert calls == [1] and "perturbdiff_jax" in expression.maker()
    monkeypatch.setattr(expression, "FOLLOWED", ("9.9",))
    again, _ = tables()
    assert calls == [1, 1, 1] and again.equals(theirs) and expression.maker().startswith("pdex ")
    assert ours.shape == again.shape

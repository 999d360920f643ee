"""perturbdiff_jax: diffusion over distributions of single cells, in JAX and Flax.

`load(path)` opens a checkpoint bundle for prediction, `gene_table` tells several draws gene by gene, `evaluate` scores
predictions; everything else has a room of its own.
"""

__version__ = "0.1.0"
__all__ = ["evaluate", "gene_table", "load"]


def load(path, *, which: str = "best"):
    """Opens a checkpoint bundle (see predict.load); jax is imported only then."""
    from perturbdiff_jax.predict import load as open_bundle

    return open_bundle(path, which=which)


def gene_table(predicted, *, calls: bool = True):
    """Yields a table of genes for each predicted condition (see prediction/gene_table.py)."""
    from perturbdiff_jax.prediction.gene_table import gene_table as tables

    return tables(predicted, calls=calls)


def evaluate(pred, real, output, **options):
    """Scores predictions against real cells, beside simple rivals (options: see evaluation/evaluate.py)."""
    from perturbdiff_jax.evaluation.evaluate import evaluate as score

    return score(pred, real, output, **options)

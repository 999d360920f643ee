"""perturbdiff_jax: diffusion over distributions of single cells, in JAX and Flax.

`load(path)` opens a checkpoint bundle for prediction, `gene_table` tells several draws gene by gene, `evaluate` scores
predictions, `energy_distance` and `energy_matrix` compare populations; everything else has a room of its own.
"""

__version__ = "0.1.0"
__all__ = ["energy_distance", "energy_matrix", "evaluate", "gene_table", "load"]


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


def energy_distance(x, y, **options):
    """Half energy distance of two populations of cells (options: see kernels/energy_distance.py)."""
    from perturbdiff_jax.kernels.energy_distance import energy_distance as distance

    return distance(x, y, **options)


def energy_matrix(x, codes_x, y=None, codes_y=None, **options):
    """Half energy distances between all populations of cells (see kernels/energy_matrix.py)."""
    from perturbdiff_jax.kernels.energy_matrix import energy_matrix as distances

    return distances(x, codes_x, y, codes_y, **options)

"""Zero-shot prediction: a network that was pretrained on marginals predicts the held-out conditions of a screen.

It knows cell types and batches and was told no perturbation (paper, Section 5 and App. C.5): all perturbations of a
context get the same population, that of the context as the network knows it.
"""

import dataclasses

from perturbdiff_jax.bundle import Bundle
from perturbdiff_jax.data.store import Store
from perturbdiff_jax.prediction.predictor import Predictor
from perturbdiff_jax.prediction.unseen import ignores_perturbations


def in_words_of(model: Predictor, store: Store) -> Predictor:
    """The model with a screen's names of perturbations, its control label and its obs columns.

    Models that were told perturbations are returned as they are: theirs are the names that count.
    """
    if not ignores_perturbations(model.bundle):
        return model
    return dataclasses.replace(model, bundle=_renamed(model.bundle, store))


def _renamed(bundle: Bundle, store: Store) -> Bundle:
    return dataclasses.replace(
        bundle,
        perturbations=store.perturbations,
        control=store.control,
        keys=store.manifest["keys"],
        trained=[[store.control, cell_type, batch] for _, cell_type, batch in bundle.trained],
    )

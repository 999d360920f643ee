"""The embedding file behind a released network's frozen table: kept in the bundle if training had the same vectors.

The checkpoint holds the vectors of its own vocabulary only. With the whole file, perturbations outside of it can be
predicted (prediction/unseen.py), and a finetuned run with the same file goes on with the same linear map.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from perturbdiff_jax.bundle import Bundle
from perturbdiff_jax.covariate_tables import parts_facts
from perturbdiff_jax.data.embeddings.labels import read_label
from perturbdiff_jax.data.embeddings.registry import Encoding, read_encoding
from perturbdiff_jax.data.embeddings.rows import vector_of
from perturbdiff_jax.errors import RequestError, shorten
from perturbdiff_jax.models.covariates import FROZEN

FLAG, ROLE = "--embeddings", "perturbation"
# Vectors may have been rounded to half precision since: of a value, and of the table's largest.
ROUNDING, LEAST = 1e-3, 1e-4


def read_asked(text: str) -> Encoding:
    """The table of "perturbation=NAME=FILE" (or FILE@NAMES), as data/embeddings/registry.py reads it.

    Raises:
      RequestError: another covariate, one-hot, several tables, a file that is no embedding file.
    """
    role, _, written = text.partition("=")
    if role.strip() != ROLE or not written:
        raise RequestError(f"{FLAG} {text!r}: must be {ROLE}=NAME=FILE, or {ROLE}=NAME=FILE@NAMES.")
    encoding = read_encoding(written, f"{FLAG} {ROLE}", ROLE)
    if encoding.onehot or len(encoding.tables) != 1:
        raise RequestError(f"{FLAG} {text!r}: a released network has one table; give that alone.")
    return encoding


def check_fits(encoding: Encoding, bundle: Bundle, *, where: str) -> None:
    """Refuses a table for a network that has none, or one of another width; looks at no number of either.

    Raises:
      RequestError: names what the network has.
    """
    ((_, vectors),) = encoding.tables
    shape = bundle.tables.get(ROLE, {}).get("shape")
    if shape is None:
        raise RequestError(
            f"{FLAG} {ROLE}: {where} tells perturbations apart by learned rows alone, so no vector says anything to it."
        )
    if vectors.width != shape[1]:
        raise RequestError(
            f"{vectors.path}: vectors are {vectors.width} wide, those of {where} {shape[1]} "
            f"({bundle.tables[ROLE]['name']})."
        )


def with_table(
    encoding: Encoding, bundle: Bundle, params: dict, echo: Callable[[str], None], *, where: str
) -> Bundle:
    """The bundle's facts with the table among them, if it agrees with the frozen rows of the names that both have.

    The control's row is no vector of a file (the released code fills it in), so it is not compared.

    Raises:
      RequestError: no name in common, or vectors that differ by more than rounding.
    """
    ((_, vectors),) = encoding.tables
    theirs = np.asarray(params["covariates"][FROZEN + ROLE], np.float32)
    allowed, whole = LEAST * np.abs(theirs).max(), set(vectors.names)
    asked = {
        name: read_label(name, bundle.control, whole)
        for name in bundle.perturbations
        if name != bundle.control
    }
    told = {name: vector_of(encoding, label) for name, label in asked.items()}
    rows = {name: theirs[1 + at] for at, name in enumerate(bundle.perturbations)}
    both = [name for name, vector in told.items() if vector is not None]
    if not both:
        raise RequestError(
            f"{vectors.path}: has none of the {len(asked)} perturbations of {where} ({shorten(asked, 3)}); its names "
            f"are {shorten(vectors.names, 3)}."
        )
    gaps = {name: np.abs(told[name] - rows[name]) for name in both}
    wrong = [name for name in both if (gaps[name] > allowed + ROUNDING * np.abs(rows[name])).any()]
    if wrong:
        worst = max(wrong, key=lambda name: gaps[name].max())
        raise RequestError(
            f"{vectors.path}: is not the table that {where} was trained with: {len(wrong)} of the {len(both)} "
            f"perturbations that both have differ, {worst} by {gaps[worst].max():.3g} (values are up to "
            f"{np.abs(theirs).max():.3g})."
        )
    lacking = [name for name in asked if name not in set(both)]
    labels = [*asked.values(), read_label(bundle.control, bundle.control, whole)]
    more = whole - {part for label in labels for part in label.parts}
    echo(
        f"{vectors.path}: agrees with the checkpoint for {len(both)} of {len(asked)} perturbations (largest difference "
        f"{max(gap.max() for gap in gaps.values()):.1g})"
        + (f" and lacks {shorten(lacking, 3)}" if lacking else "")
        + f"; names in it that can be predicted besides: {len(more)}."
    )
    facts = {**bundle.tables[ROLE], "onehot": False, "parts": parts_facts(encoding)}
    return dataclasses.replace(bundle, tables={**bundle.tables, ROLE: facts})

"""What a perturbation's label says: its parts ("KLF1+MAP2K6") and its dose ("Erlotinib @ 0.5", Tahoe's tuples)."""

import ast
import dataclasses
import math

from perturbdiff_jax.data.conditions import DOSE_MARK

COMBINED = "+"


@dataclasses.dataclass(frozen=True)
class Label:
    """One perturbation: the names whose embeddings are added up, and the dose if the label has one."""

    parts: tuple[str, ...]
    dose: float | None = None


def read_label(label: str, control: str, known: object = ()) -> Label:
    """Takes a label apart.

    Args:
      label: "KLF1", "KLF1+MAP2K6", "Erlotinib @ 0.5" (`prepare --dose-key`) or "[('Erlotinib', 0.5, 'uM')]".
      control: the control's label; it is no part of a combination ("control+KLF1" is KLF1).
      known: container of names that are taken whole even if they hold a plus sign ("IFN-lambda+" or "CD4+ T").
    """
    name, dose = _dosed(label)
    if name in known or COMBINED not in name:
        return Label((name,), dose)
    parts = tuple(part.strip() for part in name.split(COMBINED))
    if not all(parts):  # "NAD+" is a name
        return Label((name,), dose)
    told = tuple(part for part in parts if part != control)
    return Label(told or parts[:1], dose)


def _dosed(label: str) -> tuple[str, float | None]:
    """(name, dose) of a label."""
    if label.startswith("[("):
        try:
            ((name, dose, *_),) = ast.literal_eval(label)
            return str(name).strip(), float(dose)
        except (ValueError, SyntaxError, TypeError, OverflowError, MemoryError, RecursionError):
            return label, None
    name, mark, told = label.rpartition(DOSE_MARK)
    if mark:
        try:
            dose = float(told)
        except ValueError:
            return label, None
        if math.isfinite(dose):
            return name, dose
    return label, None

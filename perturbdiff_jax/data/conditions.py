"""The data's groups by name, as the split files speak of them, and the vocabulary of splits."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from perturbdiff_jax.errors import RequestError, unknown

SPLITS = ("train", "validation", "test", "control")
TRAIN, VALIDATION, TEST, CONTROL = range(4)
ROLES = ("perturbation", "cell_type", "batch")
DOSE_MARK = " @ "  # between a perturbation and its dose in a condition's label


@dataclasses.dataclass(frozen=True)
class Conditions:
    """Groups as parallel lists of names; `columns` says which obs column each role comes from (for
    messages)."""

    perturbation: Sequence[str]
    cell_type: Sequence[str]
    batch: Sequence[str]
    control: str
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.perturbation)

    @functools.cached_property
    def _vocabularies(self) -> dict[str, tuple[dict[str, int], np.ndarray]]:
        found = {}
        for role in ROLES:
            names: dict[str, int] = {}
            codes = np.array(
                [names.setdefault(name, len(names)) for name in getattr(self, role)], dtype=np.int64
            )
            found[role] = (names, codes)
        return found

    @functools.cached_property
    def _doses(self) -> dict[str, list[str]]:
        """Bare perturbation name -> its labels with a dose."""
        found: dict[str, list[str]] = {}
        for name in self._vocabularies["perturbation"][0]:
            if DOSE_MARK in name:
                found.setdefault(name.rsplit(DOSE_MARK, 1)[0], []).append(name)
        return found

    def values(self, role: str) -> list[str]:
        """The names of a role, in order of first appearance; perturbations without the control."""
        names = self._vocabularies[role][0]
        return [name for name in names if role != "perturbation" or name != self.control]

    def selects(self, role: str, names: Sequence[str], where: str) -> np.ndarray:
        """Mask [groups] of those whose `role` is in `names`; a bare perturbation selects all of its doses.

        Raises RequestError, which `where` begins, for a name that the data do not have and for the control.
        """
        known, codes = self._vocabularies[role]
        wanted = np.zeros(len(known), dtype=bool)
        for name in names:
            if role == "perturbation" and name == self.control:
                raise RequestError(
                    f"{where}: the control {name!r} cannot be held out; controls are in every split."
                )
            labels = [name] if name in known else self._doses.get(name, []) if role == "perturbation" else []
            if not labels:
                column = self.columns.get(role)
                kind = role.replace("_", " ") + (f" (column {column!r})" if column else "")
                raise unknown(kind, name, self.values(role), where)
            wanted[[known[label] for label in labels]] = True
        return wanted[codes]

"""What a finetuned run took from another network, for people and for the record."""

import dataclasses
import re
from typing import Any

from perturbdiff_jax.errors import shorten


@dataclasses.dataclass
class Account:
    """Counts parameters by where they came from; `where` names the other network."""

    where: str
    parts: dict[str, dict[str, list[int]]] = dataclasses.field(default_factory=dict)

    def taken(self, name: str, taken: int, size: int) -> None:
        """`taken` of the `size` numbers of an array come from there."""
        kind = "taken" if taken == size else "partly taken"
        self._add(kind, name, taken, size)
        self._add("all", name, taken, size)

    def drawn(self, name: str, size: int) -> None:
        """An array is new."""
        self._add("drawn anew", name, 0, size)
        self._add("all", name, 0, size)

    def kept(self, name: str, size: int, why: str) -> None:
        """An array is told by something else."""
        self._add(why, name, size, size)

    def dropped(self, name: str, size: int) -> None:
        """An array of the other network has no place here."""
        self._add("dropped", name, 0, size)

    def facts(self) -> dict[str, Any]:
        """For run.json."""
        return {
            "init_from": self.where,
            **{kind: dict(parts) for kind, parts in self.parts.items() if kind != "all"},
        }

    def lines(self) -> list[str]:
        """A headline, and a line for each kind of part."""
        whole = self.parts.get("all", {}).values()
        taken, size = (sum(numbers[place] for numbers in whole) for place in (0, 1))
        found = [
            f"Begins with the weights of {self.where}: {taken:,} of {size:,} parameters ({taken / size:.1%})."
        ]
        for kind, parts in self.parts.items():
            if kind == "all":
                continue
            shown = [
                f"{name} {part:,}/{all_:,}" if 0 < part < all_ else name
                for name, (part, all_) in parts.items()
            ]
            found.append(f"  {kind + ':':14s}{shorten(shown, 12)}")
        return found

    def _add(self, kind: str, name: str, taken: int, size: int) -> None:
        numbers = self.parts.setdefault(kind, {}).setdefault(_module(name), [0, 0])
        numbers[0] += taken
        numbers[1] += size


def _module(name: str) -> str:
    """An array's module as people call it: the trunk's many arrays are one."""
    name = re.sub(r"^(blocks|last_block)/.*", "trunk", name)
    return re.sub(r"/(linear/)?(kernel|bias)$", "", name)

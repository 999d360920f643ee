"""What a pickle that is read as data consists of, besides plain Python values: names, calls and records."""

import dataclasses
from typing import Any

import numpy as np

NESTING = 200  # levels of containers; checkpoints of training have about 20
KEY_PARTS = 100  # most values inside one dictionary key: hashing a tuple visits shared parts again and again


@dataclasses.dataclass(frozen=True, slots=True)
class Named:
    """Something that a file mentions by module and name; it is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        """module.name on one line, whatever the file wrote."""
        text = f"{self.module}.{self.name}"
        text = text if text.isprintable() else ascii(text)[1:-1]
        return text if len(text) <= 80 else text[:77] + "..."


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """A call that a file asks for."""

    named: Named
    args: tuple


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class Record:
    """An object of a class that a file names, as plain data: what it was made from and what was put in it."""

    named: Named
    args: tuple = ()
    state: Any = None  # attributes as a dict; what a class of its own making stored, where it is no dict
    items: dict | list | None = None  # of a dict-like (keys and values) or list-like class

    def __repr__(self) -> str:
        """Short: records refer to their parents."""
        return f"<Record {self.named}>"

    def set_state(self, state: Any) -> None:
        """Takes attributes: a dict, or (dict or None, dict of slots)."""
        if (
            type(state) is tuple
            and len(state) == 2
            and all(type(part) in (dict, type(None)) for part in state)
        ):
            state = {**(state[0] or {}), **(state[1] or {})}
        if self.state is not None:
            raise ValueError(f"{self.named} gets its attributes twice")
        self.state = state

    def set_items(self, values: dict | list) -> None:
        """Adds items of a dict-like or a list-like class."""
        if self.items is None:
            self.items = type(values)()
        if type(self.items) is not type(values):
            raise ValueError(f"{self.named} is filled both as a list and as a dictionary")
        (self.items.update if type(values) is dict else self.items.extend)(values)


def checked_key(value: Any) -> Any:
    """`value`, if it can be a dictionary key or member of a set. Raises ValueError."""
    if type(value) in (str, int):
        return value
    parts = [value]
    for count in range(KEY_PARTS):
        if not parts:
            return value
        part = parts.pop()
        if isinstance(part, (list, dict, set, bytearray, np.ndarray)):
            raise ValueError(f"a {type(part).__name__} as a dictionary key")
        if type(part) is tuple:
            parts.extend(part[: KEY_PARTS - count])
    raise ValueError(f"a dictionary key of more than {KEY_PARTS} parts")


CONTAINERS = (dict, list, tuple, set, frozenset, Record, np.ndarray)


def check_nesting(value: Any) -> None:
    """Raises ValueError where containers are nested so deep that whoever reads the value would stumble."""
    level, seen = [part for part in (value,) if type(part) in CONTAINERS], set()
    for _ in range(NESTING):
        inside = []
        for container in level:
            seen.add(id(container))
            if type(container) is dict:
                inside.extend(container.values())
                inside.extend(key for key in container if type(key) is not str)
            elif type(container) is Record:
                inside.extend((container.args, container.state, container.items))
            elif type(container) is not np.ndarray:
                inside.extend(container)
            elif container.dtype.hasobject:
                inside.extend(container.flat)
        level = list({id(part): part for part in inside if type(part) in CONTAINERS}.values())
        level = [part for part in level if id(part) not in seen]
        if not level:
            return
    raise ValueError(f"nested deeper than {NESTING} levels")

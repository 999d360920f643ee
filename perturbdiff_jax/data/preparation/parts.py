"""Rows on their way from the files to the store: parts of them, in memory or in spill files."""

import dataclasses
import json
import os
import pathlib
from typing import NamedTuple

import numpy as np


class Piece(NamedTuple):
    """Rows low..high-1 of a part, whose numbers begin at `start` and end before `stop`."""

    low: int
    high: int
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Part:
    """Some rows of the store, ascending."""

    rows: np.ndarray  # int64 [n], their places in the store
    nnz: np.ndarray  # int32 [n]
    scale: np.ndarray | None  # float32 [n], for counts
    data: np.ndarray  # [nnz]
    indices: np.ndarray  # [nnz]

    def head(self) -> "Part":
        """Itself, but it need not have its numbers."""
        return self

    def piece(self, wanted: Piece) -> "Part":
        """Some of its rows."""
        low, high, start, stop = wanted
        scale = None if self.scale is None else self.scale[low:high]
        return Part(
            self.rows[low:high], self.nnz[low:high], scale, self.data[start:stop], self.indices[start:stop]
        )


FIELDS = tuple(field.name for field in dataclasses.fields(Part))


@dataclasses.dataclass(frozen=True)
class PartFile:
    """A part in a file of its own: a line that says what is there, then one array after the other."""

    path: pathlib.Path

    @classmethod
    def write(cls, path: pathlib.Path, part: Part) -> None:
        """Makes the file; it appears complete or not at all."""
        arrays = {name: getattr(part, name) for name in FIELDS if getattr(part, name) is not None}
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        with open(fresh, "wb") as stream:
            about = {name: [values.dtype.str, len(values)] for name, values in arrays.items()}
            stream.write(json.dumps(about).encode() + b"\n")
            for values in arrays.values():
                stream.write(values.view(np.uint8))  # tofile would not say that the disk is full
        os.replace(fresh, path)

    def head(self) -> Part:
        """The part without its numbers."""
        with open(self.path, "rb") as stream:
            about = json.loads(stream.readline())
            found = {
                name: np.fromfile(stream, *about[name]) for name in ("rows", "nnz", "scale") if name in about
            }
        empty = np.zeros(0)
        return Part(**{"scale": None, "data": empty, "indices": empty, **found})

    def piece(self, wanted: Piece) -> Part:
        """As Part.piece; nothing else is read."""
        found: dict[str, np.ndarray | None] = {"scale": None}
        with open(self.path, "rb") as stream:
            about = json.loads(stream.readline())
            place = stream.tell()
            for name, (kind, length) in about.items():
                first, last = wanted[2:] if name in ("data", "indices") else wanted[:2]
                size = np.dtype(kind).itemsize
                stream.seek(place + first * size)
                found[name] = np.fromfile(stream, kind, last - first)
                place += length * size
        return Part(**found)

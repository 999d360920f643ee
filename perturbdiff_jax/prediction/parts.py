"""Finished parts of a prediction, kept beside the output until the last is there: PRED.h5ad.parts/.

    request.json         what is predicted, in words and fingerprints, and how it is cut into parts
    part-0000012.npz     cells of one part, bound by a fingerprint to the request and to their place

A part is written aside and renamed, so a process that is killed loses what it was about to finish and nothing else.
Parts of another request are never mixed in: the directory says whose they are, and so does every part by itself.
"""

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.prediction.set_plan import SetPlan
from perturbdiff_jax.run_lock import FILE as LOCK
from perturbdiff_jax.run_lock import RunLock
from perturbdiff_jax.run_record import write_json

SCHEMA = 1  # of the directory; parts of another are not read
RECORD = "request.json"
OURS = re.compile(rf"{re.escape(LOCK)}|{RECORD}(\.partial)?|part-\d+\.npz(\.partial)?")


class DamagedPart(ValueError):
    """A part that is not what was written; says why."""


class PartFolder:
    """The parts of one output, held by one process; a context manager.

    Entering it locks the directory, compares the request and makes the record. Leaving it with nothing done removes
    the directory again.

    Raises:
      RequestError: another process writes the same output, or its parts are those of another request.
    """

    def __init__(self, output: Path, request: dict[str, Any], *, sets_per_part: int, anew: bool = False):
        """`request`: JSON-like facts that decide the cells; `sets_per_part`: for a prediction that begins here.

        With `anew` parts of another request are removed, with a remark, instead of refused.
        """
        self.path = output.with_name(output.name + ".parts")
        self.sets_per_part = sets_per_part
        self._output, self._anew = output, anew
        self._request = {"schema": SCHEMA, **json.loads(json.dumps(request))}
        self._lock = RunLock(self.path, flag="--output", shown=output)
        text = json.dumps(self._request, sort_keys=True)
        self._digest = hashlib.sha256(text.encode()).digest()

    def __enter__(self) -> "PartFolder":
        self._check_ours()
        self._lock.__enter__()
        try:
            self._begin()
        except BaseException:
            self._lock.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if not any(self.path.glob("part-*")):
            self.remove()
        self._lock.__exit__()

    def file(self, number: int) -> Path:
        """Where a part lies."""
        return self.path / f"part-{number:07d}.npz"

    def write(self, number: int, cells: sp.csr_matrix) -> None:
        """Keeps the cells [n, G] CSR float32 of a part."""
        partial = self.file(number).with_name(self.file(number).name + ".partial")
        # Gene numbers of nearly all bundles fit 16 bits, which saves a quarter of the room.
        narrow = np.uint16 if cells.shape[1] <= 1 << 16 else np.int32
        arrays = {
            "data": cells.data.astype(np.float32),
            "indices": cells.indices.astype(narrow),
            "indptr": cells.indptr.astype(np.int64),
            "shape": np.array(cells.shape, np.int64),
        }
        with open(partial, "wb") as file:
            np.savez(file, **arrays, fingerprint=self._fingerprint(number, arrays))
        os.replace(partial, self.file(number))

    def read(self, number: int, shape: tuple[int, int]) -> sp.csr_matrix:
        """The cells of a part. DamagedPart when they are not those that were written for this request and place."""
        try:
            with np.load(self.file(number), allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            expected = arrays.pop("fingerprint")
            if expected.tobytes() != self._fingerprint(number, arrays).tobytes():
                raise DamagedPart("its fingerprint is another")
            if tuple(arrays["shape"]) != shape:
                raise DamagedPart(f"holds {arrays['shape'][0]:,} cells, {shape[0]:,} belong there")
            content = arrays["data"], arrays["indices"].astype(np.int32), arrays["indptr"]
            return sp.csr_matrix(content, shape=shape)
        except PermissionError as error:
            raise RequestError(f"{self.file(number)}: cannot be read ({error.strerror}).") from None
        except Exception as error:  # a damaged archive is told in many ways
            raise DamagedPart(str(error).splitlines()[0] if str(error) else type(error).__name__) from None

    def missing(self, plan: SetPlan, genes: int) -> list[int]:
        """Numbers of the parts that are not there yet; damaged ones, warned of, are among them."""
        found, damaged = [], {}
        for number in range(plan.parts):
            if not self.file(number).exists():
                found.append(number)
                continue
            try:
                self.read(number, (plan.cells_of(number), genes))
            except DamagedPart as error:
                damaged[number] = error
                found.append(number)
        for number in list(damaged)[:1]:
            several = f" and {len(damaged) - 1:,} more" if len(damaged) > 1 else ""
            print(
                f"warning: {self.file(number)}{several}: damaged ({damaged[number]}); computed again.",
                file=sys.stderr,
            )
        return found

    def remove(self) -> None:
        """Removes the parts and, last, the directory."""
        # The record goes after the parts: those that are left when this is cut short are still good.
        for file in sorted(self.path.glob("part-*")):
            file.unlink()
        for name in (RECORD + ".partial", RECORD, LOCK):
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something that is not ours has been put there meanwhile
            self.path.rmdir()

    def _check_ours(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise RequestError(f"{self.path}: is in the way; parts of the prediction are kept there.")
        strange = [file.name for file in self.path.glob("*") if not OURS.fullmatch(file.name)]
        if strange:
            raise RequestError(
                f"{self.path}: holds {strange[0]!r}, which is no part of a prediction.\n"
                "Move it away, or give another --output: parts are kept there."
            )

    def _begin(self) -> None:
        for left in self.path.glob("*.partial"):
            left.unlink()
        try:
            record = json.loads((self.path / RECORD).read_text())
            before, sets = record["request"], record["sets_per_part"]
            if not isinstance(before, dict) or not isinstance(sets, int) or sets < 1:
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError):
            before = None  # none yet, or damaged: the parts themselves know whose they are
        if before is not None and before != self._request:
            self._other(before)
        elif before is not None:
            self.sets_per_part = sets
            return
        write_json(self.path / RECORD, {"request": self._request, "sets_per_part": self.sets_per_part})

    def _other(self, before: dict[str, Any]) -> None:
        different = differences(before, self._request)
        count = len(list(self.path.glob("part-*")))
        what = f"{self.path}: holds {count:,} parts of another prediction: {'; '.join(different[:3])}."
        if not count:
            return
        if not self._anew:
            raise RequestError(
                f"{what}\nGive that command again to go on with it, remove that directory, or give another --output."
            )
        print(f"{what} They are removed.", flush=True)
        for file in self.path.glob("part-*"):
            file.unlink()

    def _fingerprint(self, number: int, arrays: dict[str, np.ndarray]) -> np.ndarray:
        digest = hashlib.sha256(self._digest + number.to_bytes(8, "little"))
        for name in sorted(arrays):
            digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
            digest.update(np.ascontiguousarray(arrays[name]))
        return np.frombuffer(digest.digest(), np.uint8)


def differences(before: dict[str, Any], now: dict[str, Any], path: str = "") -> Sequence[str]:
    """`name was A, is B` for everything that differs between two nested dicts."""
    found: list[str] = []
    for name in {**before, **now}:
        one, other = before.get(name), now.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            found += differences(one, other, f"{path}{name} ")
        elif one != other:
            found.append(f"{path}{name} was {one!r}, is {other!r}")
    return found

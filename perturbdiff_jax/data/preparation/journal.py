"""The working folder of a `prepare`: what a run that was killed has finished, kept for the next one.

It lies beside the output as `.NAME.partial` and holds a lock, plan.json (options, sources and order of cells), results
of the scan, spilled parts and the store that is being written. Results appear by renaming, complete or not at all, and
a store without a manifest is written again, so a killed run does no harm. Another plan empties the folder.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from perturbdiff_jax.data.preparation.checks import Findings
from perturbdiff_jax.data.storage.manifest import MANIFEST
from perturbdiff_jax.data.storage.writer import put_in_place
from perturbdiff_jax.errors import RequestError

LOCK, PLAN, STORE = "lock", "plan.json", "store"
PATIENCE = 60.0  # seconds to wait for the last workers of a killed run


class Workplace:
    """The locked working folder for the store `output`; a context manager, in which `finish` is the last step.

    After a RequestError the folder is removed; after anything else (an interruption, a fault of ours) it stays if
    another run can use it. A full disk becomes a RequestError that says how much is `needed`, bytes.
    Raises RequestError when the folder cannot be made or another prepare works on the same output.
    """

    def __init__(self, output: pathlib.Path, *, needed: int, echo: Callable[[str], None]):
        self.output, self.needed, self.echo = output.absolute(), needed, echo
        self.folder = self.output.parent / f".{self.output.name}.partial"
        began = time.monotonic()
        while not self._locked(began):
            time.sleep(0.05)
        os.ftruncate(self.lock, 0)
        os.pwrite(self.lock, str(os.getpid()).encode(), 0)

    def __enter__(self) -> "Workplace":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _) -> None:
        if isinstance(error, RequestError):
            self.remove()
        elif error is not None and _is_full(error):
            self.remove()
            gib = self.needed / 2**30 + 0.1
            raise RequestError(
                f"{self.output.parent}: the disk is full; about {gib:.1f} GiB are needed while the store is written.\n"
                "Make room, or choose another --output."
            ) from error
        elif error is not None:
            self._leave()

    def _locked(self, began: float) -> bool:
        import fcntl

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise RequestError(
                f"{self.output}: cannot be written ({error.strerror}). Choose another --output."
            ) from error
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have removed the folder with the lock in it.
            if os.path.samestat(os.fstat(self.lock), os.stat(self.folder / LOCK)):
                return True
        except FileNotFoundError:
            pass
        except OSError:
            owner = os.pread(self.lock, 32, 0).decode().strip()
            # The workers of a killed run hold the lock until they have noticed.
            if _alive(owner) or time.monotonic() - began > PATIENCE:
                os.close(self.lock)
                raise RequestError(
                    f"{self.output}: another prepare (process {owner}) is writing this store; wait for it, or "
                    "choose another --output."
                ) from None
        os.close(self.lock)
        return False

    def begin(self, plan: dict[str, Any]) -> None:
        """Keeps what is there if it was made by the same plan, otherwise empties the folder and says so."""
        text = json.dumps(plan, sort_keys=True)
        file = self.folder / PLAN
        with contextlib.suppress(OSError):
            if file.read_text() == text:
                if self.holds_results or self.is_written:
                    self.echo(f"{self.output}: going on where an earlier run was broken off ({self.folder}).")
                return
            self.echo(f"{self.output}: an earlier run had other inputs or options; it is started again.")
        for entry in self.folder.iterdir():
            if entry.name != LOCK:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        fresh = self.folder / f".{PLAN}"
        fresh.write_text(text)
        os.replace(fresh, file)

    @property
    def holds_results(self) -> bool:
        """Whether an earlier run has left anything worth taking."""
        return any(self.folder.glob("*.npz")) or any(self.folder.glob("part-*"))

    @property
    def is_written(self) -> bool:
        """Whether the store is complete and only has to be put in its place."""
        return (self.folder / STORE / MANIFEST).is_file()

    def new_store(self) -> pathlib.Path:
        """An empty folder for the store."""
        folder = self.folder / STORE
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def part(self, number: int) -> pathlib.Path:
        """Where the spilled rows of a task are, or will be."""
        return self.folder / f"part-{number:06}"

    def save(self, name: str, result: dict[str, Any]) -> None:
        """Keeps the result of a scan or a hash."""
        arrays, plain = {}, dict(result)
        if "findings" in plain:
            seen = plain.pop("findings")
            arrays["total"] = seen.total
            plain |= {"largest": seen.largest, "fraction": seen.fraction, "wrong": seen.wrong}
        if plain.get("moments") is not None:
            plain["moments"], arrays["moments"], arrays["squares"] = plain["moments"]
        fresh = self.folder / f".{name}"
        with open(fresh, "wb") as stream:
            np.savez(stream, plain=json.dumps(plain), **arrays)
        os.replace(fresh, self.folder / f"{name}.npz")

    def saved(self, name: str) -> dict[str, Any] | None:
        """What `save` kept under this name."""
        file = self.folder / f"{name}.npz"
        if not file.exists():
            return None
        with np.load(file) as arrays:
            result = json.loads(arrays["plain"].item())
            if "total" in arrays:
                kept = {key: result.pop(key) for key in ("largest", "fraction", "wrong")}
                result["findings"] = Findings(totals=[arrays["total"]], **kept)
            if "moments" in arrays:
                result["moments"] = (result["moments"], arrays["moments"], arrays["squares"])
        return result

    def finish(self, *, overwrite: bool) -> None:
        """Puts the finished store in its place and removes the folder."""
        for entry in [*self.folder.glob("part-*"), *self.folder.glob("*.npz")]:
            entry.unlink()  # what takes long comes first: broken off from here on, little is left to do
        put_in_place(self.folder / STORE, self.output, overwrite=overwrite)
        self.remove()

    def _leave(self) -> None:
        if not (self.holds_results or self.is_written):
            self.remove()
            return
        if not self.is_written:
            shutil.rmtree(self.folder / STORE, ignore_errors=True)
        self.echo(f"{self.output}: broken off; the same command goes on from {self.folder}.")
        os.close(self.lock)

    def remove(self) -> None:
        """Takes everything away."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self.lock)


def fingerprint(path: str | pathlib.Path) -> dict[str, Any]:
    """What tells a file from a changed one without reading it whole: size, time, first and last MiB."""
    file = pathlib.Path(path)
    state = file.stat()
    with open(file, "rb") as stream:
        digest = hashlib.sha256(stream.read(2**20))
        stream.seek(max(0, state.st_size - 2**20))
        digest.update(stream.read(2**20))
    return {
        "path": str(file.resolve()),
        "bytes": state.st_size,
        "mtime_ns": state.st_mtime_ns,
        "ends": digest.hexdigest(),
    }


def _alive(owner: str) -> bool:
    try:
        os.kill(int(owner), 0)
    except PermissionError:
        return True
    except (ValueError, ProcessLookupError, OverflowError):
        return False
    return True


def _is_full(error: BaseException) -> bool:
    # tensorstore has its own words for it.
    return getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error)

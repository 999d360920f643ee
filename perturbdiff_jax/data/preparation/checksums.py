"""Checksums of source files, begun early: one process reads who the cells are, and a second CPU has nothing to do."""

import contextlib
import threading
from collections.abc import Sequence

from perturbdiff_jax.data.preparation.tasks import hash_file


class EarlyChecksums:
    """Hashes files one after another in a thread: hashing leaves the interpreter to others."""

    def __init__(self, files: Sequence[str]):
        self._files, self._begun, self._enough = list(files), 0, False
        self._found: dict[int, dict] = {}
        self._turn = threading.Lock()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        for number, path in enumerate(self._files):
            with self._turn:
                if self._enough:
                    return
                self._begun = number + 1
            with contextlib.suppress(OSError):  # whoever reads the cells says what is wrong with the file
                self._found[number] = hash_file({"path": path})

    def stop(self) -> int:
        """Begins no other file; returns how many were begun, the first ones."""
        with self._turn:
            self._enough = True
            return self._begun

    def results(self) -> dict[int, dict]:
        """File number -> result of the task "hash", of the files that were begun; waits for the last one.

        Raises OSError for one that cannot be read.
        """
        self._thread.join()
        return {n: self._found.get(n) or hash_file({"path": self._files[n]}) for n in range(self._begun)}

"""One run, one work directory: a lock that goes with the process that holds it, however that ends."""

import fcntl
import os
import socket
import sys
import time
from pathlib import Path

from perturbdiff_jax.errors import RequestError

FILE = ".lock"


class RunLock:
    """An exclusive lock on a work directory; a context manager.

    The file stays behind and says who held it last; what counts is the system's lock on it, which ends with the
    process. Reading the directory (predict, report) needs none.

    Raises:
      RequestError: another run holds it (names its process and host), or the directory cannot be written.
    """

    def __init__(self, workdir: Path, *, flag: str = "--workdir", shown: Path | None = None):
        """`flag`, `shown`: how messages call what is locked, where the directory only stands for it."""
        self._workdir, self._file = workdir, workdir / FILE
        self._flag, self._name = flag, f"{flag} {shown or workdir}"
        self._handle: int | None = None

    def __enter__(self) -> "RunLock":
        if self._workdir.exists() and not self._workdir.is_dir():
            raise RequestError(f"{self._name}: is a file; give a directory.")
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise RequestError(f"{self._name}: cannot be written ({error.strerror}).") from None
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._handle, 1000, 0).decode(errors="replace").strip()
            self._close()
            raise RequestError(
                f"{self._name}: another run is writing it ({holder or 'it does not say which'}).\n"
                f"Wait until it is done or stop it, or give another {self._flag}."
            ) from None
        except OSError as error:  # some network file systems know no locks
            print(f"warning: {self._workdir} cannot be locked ({error.strerror}).", file=sys.stderr)
            return self
        if not self._is_there():  # whoever held it has removed the directory meanwhile, and is done
            self._close()
            return self.__enter__()
        text = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M')}\n"
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, text.encode(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._handle), os.stat(self._file))
        except FileNotFoundError:
            return False

    def _close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

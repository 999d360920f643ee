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

    def __init__(self, workdir: Path):
        self._workdir, self._file = workdir, workdir / FILE
        self._handle: int | None = None

    def __enter__(self) -> "RunLock":
        if self._workdir.exists() and not self._workdir.is_dir():
            raise RequestError(f"--workdir {self._workdir}: is a file; give a directory.")
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise RequestError(f"--workdir {self._workdir}: cannot be written ({error.strerror}).") from None
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._handle, 1000, 0).decode(errors="replace").strip()
            self._close()
            raise RequestError(
                f"--workdir {self._workdir}: another run is writing it ({holder or 'it does not say which'}).\n"
                "Wait until it is done or stop it, or give another --workdir."
            ) from None
        except OSError as error:  # some network file systems know no locks
            print(f"warning: {self._workdir} cannot be locked ({error.strerror}).", file=sys.stderr)
            return self
        text = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M')}\n"
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, text.encode(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

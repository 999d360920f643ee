"""The processes of one run: how they find each other, who leads, and how the others wait for it.

A run on several hosts is the same command started on each of them. Steps are computed by all together; what is not a
program over all devices (preparing cells, sampled validation, evaluation, files) process 0 does alone. Meanwhile the
others ask JAX's coordination service whether it is done: no device waits, so no collective runs out of time, and the
lead may use its own devices as it likes. Nothing in here touches a device, `agreed` excepted.
"""

import io
import itertools
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.process_environment import GIVEN, TIMEOUT, arguments, cluster_size, whole_number

T = TypeVar("T")
SHUTDOWN = 3600  # seconds that a process which is done waits for the others
ASKING, LEAVING = (
    2_000,
    10_000,
)  # milliseconds: between two looks for the lead's answer; for company when failing

_jobs = itertools.count()


class LeadFailed(Exception):
    """Process 0 ended while the others waited for it. `code` is the exit code of all."""

    def __init__(self, code: int, message: str = "ends because process 0 does; it says why."):
        super().__init__(message)
        self.code = code


def start(environ: Mapping[str, str] = os.environ) -> None:
    """Joins the other processes of this run, if it has any; to be called before anything is computed.

    They are told of by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID (launch/local.sh), or found by
    JAX itself: SLURM, Open MPI, Cloud TPU, GKE, indexed jobs of Kubernetes. Only process 0 speaks afterwards; what the
    others have to say goes to stderr behind their number.

    Raises:
      RequestError: variables that make no sense.
      SystemExit: the others cannot be reached (code 1, one line on stderr).
    """
    given = arguments(environ)
    timeout = whole_number(environ, TIMEOUT, 300, least=1)
    if (given["num_processes"] if given else cluster_size(environ)) == 1:
        if not given and environ.get(GIVEN[0]):
            raise RequestError(f"{GIVEN[0]}={environ[GIVEN[0]]}: needs {' and '.join(GIVEN[1:])} as well.")
        return
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    where = given["coordinator_address"] if given else "the cluster's coordinator"
    lost = f"error: not all processes of this run met at {where} within {timeout} s ({TIMEOUT})."
    # JAX aborts the process with a page of addresses when its own time is up, so ours is up first.
    alarm = threading.Timer(timeout, _give_up, [lost])
    alarm.daemon = True
    alarm.start()
    try:
        jax.distributed.initialize(
            **given,
            cluster_detection_method="deactivate" if given else None,
            initialization_timeout=timeout + 60,
            shutdown_timeout_seconds=SHUTDOWN,
        )
        me = jax.process_index()  # brings up the devices, for which all have to be there as well
    except (RuntimeError, OSError) as error:
        print(f"error: cannot join the other processes: {str(error).splitlines()[0]}", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        alarm.cancel()
    if me:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print below Python is meant as well
        sys.stderr = _Numbered(sys.stderr, me)


def number() -> int:
    """Number of this process, 0 in a run of one."""
    return 0 if _client() is None else sys.modules["jax"].process_index()


def count() -> int:
    """Number of processes of this run."""
    return 1 if _client() is None else sys.modules["jax"].process_count()


def leads() -> bool:
    """Whether this is process 0."""
    return number() == 0


def lead(job: Callable[[], T]) -> T | None:
    """Process 0 does the job, in this thread; the others wait for its end, however long it takes, and get None.

    All processes have to call this, in the same order. Raises what the job raises, and LeadFailed elsewhere.
    """
    return _led(job, tell=False)


def told(job: Callable[[], T]) -> T:
    """As `lead`, and all get what the job returns: numbers, text, lists and dicts of them."""
    return _led(job, tell=True)


def agreed(flag: bool) -> bool:
    """Whether any process says yes. A program over all devices: for the main thread, at the same point of each."""
    if count() == 1:
        return bool(flag)
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def exit_code(error: BaseException) -> int:
    """What a command line returns for an error that ended it."""
    if isinstance(error, RequestError):
        return 2
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def finish(code: int) -> int:
    """Hands back the exit code of this process; one that failed alone ends here and now.

    Otherwise it would wait at the exit for the others, who wait for it in the middle of a step.
    """
    if code and count() > 1:
        try:
            _client().wait_at_barrier("perturbdiff/failed", LEAVING)
        except Exception:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return code


def _led(job: Callable[[], T], *, tell: bool) -> T | None:
    if count() == 1:
        return job()
    key = f"perturbdiff/lead/{next(_jobs)}"
    if not leads():
        code, result = json.loads(_asked(key))
        if code is not None:
            raise LeadFailed(code)
        return result
    try:
        result = job()
        answer = json.dumps([None, result if tell else None])
        result = json.loads(answer)[1] if tell else result  # what the others get, to the last bit and tuple
    except BaseException as error:
        _client().key_value_set(key, json.dumps([exit_code(error), None]))
        raise
    _client().key_value_set(key, answer)
    return result


def _asked(key: str) -> str:
    """The lead's answer, once it is there. Asked for again and again, so that Ctrl-C is heard in between."""
    from jax.errors import JaxRuntimeError

    while True:
        try:
            return _client().blocking_key_value_get(key, ASKING)
        except JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise LeadFailed(1, "ends because process 0 cannot be reached any more.") from None


def _client() -> Any:
    """The coordination service's client, None in a run of one process; JAX has no public name for it."""
    distributed = sys.modules.get("jax._src.distributed")
    return distributed and distributed.global_state.client


def _give_up(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
    os._exit(1)


class _Numbered(io.TextIOBase):
    """A stream that puts the number of the process before every line."""

    def __init__(self, stream: Any, process: int):
        self._stream, self._prefix, self._fresh = stream, f"process {process}: ", True

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            self._stream.write(self._prefix * self._fresh + line)
            self._fresh = line.endswith("\n")
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

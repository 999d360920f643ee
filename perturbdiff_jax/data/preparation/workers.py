"""Who does the pieces of work of `prepare`: this process, or several others that it starts.

The others run nothing but preparation/tasks.py and talk through pipes, so a caller's script is never imported again and
no threads are forked. They end when their input ends, so also when this process is killed.
"""

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from typing import Any

from perturbdiff_jax.errors import RequestError

Work = tuple[
    Any, str, dict[str, Any]
]  # a name for the caller, which function of prepare_tasks.WORK, its task
START = "from perturbdiff_jax.data.preparation.workers import serve; serve()"


class Workers:
    """Does pieces of work in `processes` other processes, or in this one if that is 1; a context manager.

    `lock` is a file descriptor that the processes keep open as long as they live.
    """

    def __init__(self, processes: int, *, lock: int | None = None):
        self.workers = [_start(lock) for _ in range(processes)] if processes > 1 else []

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_) -> None:
        """Ends the processes, also in the middle of their work."""
        for worker in self.workers:
            worker.kill()
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def do(self, works: Iterable[Work]) -> Iterator[tuple[Any, Any]]:
        """Yields (name, result) of every piece of work as it is done; without other processes in order.

        Raises the RequestError or OSError that a piece of work raises; RuntimeError with its traceback for any other
        fault. No more work can be done after a fault.
        """
        if not self.workers:
            from perturbdiff_jax.data.preparation.tasks import WORK

            for name, kind, task in works:
                yield name, WORK[kind](task)
            return
        left, feeding = iter(works), threading.Lock()
        done: queue.Queue = queue.Queue()

        def feed(worker: subprocess.Popen) -> None:
            try:
                while True:
                    with feeding:
                        work = next(left, None)
                    if work is None:
                        done.put(None)
                        return
                    name, kind, task = work
                    pickle.dump((kind, task), worker.stdin, protocol=5)
                    worker.stdin.flush()
                    done.put((name, *pickle.load(worker.stdout)))
            except BaseException as error:  # the worker died, or the next task could not be made
                done.put((None, "broken", error))

        for worker in self.workers:
            threading.Thread(target=feed, args=(worker,), daemon=True).start()
        working = len(self.workers)
        while working:
            answer = done.get()
            if answer is None:
                working -= 1
                continue
            name, how, result = answer
            if how != "done":
                raise _fault(how, result)
            yield name, result


def _start(lock: int | None) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", START],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=() if lock is None else (lock,),
        # One thread each: the numbers are in numpy's plain loops, and a pool of threads costs memory.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
    )


def _fault(how: str, result: Any) -> Exception:
    if how == "refused":
        return RequestError(result)
    if how == "system":
        return OSError(*result)
    if how == "broken":
        return (
            result
            if isinstance(result, RequestError)
            else RuntimeError(f"a worker process died ({result!r})")
        )
    return RuntimeError(f"a worker process failed:\n{result}")


def serve() -> None:
    """The life of a worker process: tasks come pickled on stdin, answers go to stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends this process
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints goes to stderr
    from perturbdiff_jax.data.preparation.tasks import WORK

    while True:
        try:
            kind, task = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = ("done", WORK[kind](task))
        except RequestError as error:
            answer = ("refused", str(error))
        except OSError as error:
            answer = ("system", (error.errno, error.strerror, error.filename))
        except BaseException:
            answer = ("failed", traceback.format_exc())
        try:
            pickle.dump(answer, answers, protocol=5)
            answers.flush()
        except BrokenPipeError:
            os._exit(0)  # nobody listens any more

"""What ends a command other than its success: a wrong request, a run that cannot go on, a signal.

Command lines turn these into one or two lines and an exit code; anything else is a fault of ours (a traceback, 1).
"""

import contextlib
import difflib
import errno
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

FULL = {errno.ENOSPC, errno.EDQUOT}
FULL_TEXTS = ("No space left on device", "Disk quota exceeded")


class RequestError(ValueError):
    """Wrong request or input. The message names file, column and value, and what is allowed (1-2 lines). Code 2."""


class RunError(RuntimeError):
    """A run that cannot go on although nothing in its request is wrong; says what is safe (1-2 lines). Code 1."""


class Stopped(SystemExit):
    """A run that ended early because it was asked to; says how to go on. Code 0."""

    def __init__(self, message: str):
        super().__init__(0)
        self.message = message

    def __str__(self) -> str:
        return self.message


@contextlib.contextmanager
def full_disk_told(where: str | Path, safe: Callable[[], str]) -> Iterator[None]:
    """Turns the many errors that a full disk gives rise to into a RunError; `safe` says what is safe."""
    try:
        yield
    except Exception as error:
        if not is_full_disk(error):
            raise
        raise RunError(
            f"{where}: no space is left on the disk.\n{safe()}; make room and give the same command again."
        ) from error


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or what it comes from, is a disk (or a quota) that is full, in whoever's words."""
    while error is not None:
        if getattr(error, "errno", None) in FULL or any(text in str(error) for text in FULL_TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False


def shorten(names: Iterable[object], most: int = 12) -> str:
    """Lists `names` for a message, cut after `most` of them with the count of the rest."""
    names = [str(name) for name in names]
    shown = ", ".join(names[:most])
    return shown + (f", ... ({len(names) - most} more)" if len(names) > most else "")


def unknown(kind: str, value: object, allowed: Iterable[object], where: str = "") -> RequestError:
    """Error for a name that is not in a vocabulary: gives the closest names first, then the allowed ones."""
    allowed = [str(name) for name in allowed]
    close = _closest(str(value), allowed)
    hint = f" Did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
    place = f"{where}: " if where else ""
    return RequestError(f"{place}unknown {kind} {str(value)!r}.{hint}\nAllowed: {shorten(allowed)}.")


def _closest(value: str, allowed: list[str], most: int = 3) -> list[str]:
    """Names that are spelt like `value`, best without regard to case, or else contain it."""
    plain = {name.strip().casefold(): name for name in reversed(allowed)}
    asked = value.strip().casefold()
    if asked in plain:
        return [plain[asked]]
    return (
        difflib.get_close_matches(value, allowed, n=most, cutoff=0.6)
        or [plain[name] for name in difflib.get_close_matches(asked, plain, n=most, cutoff=0.6)]
        or [name for name in allowed if len(asked) > 2 and asked in name.casefold()][:most]
    )

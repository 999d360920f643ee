"""The one error that means "the request or the input is wrong", as against a fault of ours.

Command lines turn it into one or two lines on stderr and exit code 2; anything else is a fault (exit code 1).
"""

import difflib
from collections.abc import Iterable


class RequestError(ValueError):
    """Wrong request or input. The message names file, column and value, and what is allowed (1-2 lines)."""


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

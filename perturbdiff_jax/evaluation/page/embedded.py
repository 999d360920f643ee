"""Data for the page's scripts, inside the page: JSON in a script element that no name in it can end."""

import json
import math

_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def text_of(value: object) -> str:
    """Compact JSON of `value` that is safe inside HTML: "<", ">", "&" and line separators are escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for mark, safe in _UNSAFE.items():
        text = text.replace(mark, safe)
    return text


def element(name: str, value: object) -> str:
    """The element with id `name` that holds `value` for the scripts."""
    return f'<script type="application/json" id="{name}">{text_of(value)}</script>'


def rounded(value: float, digits: int) -> float | int | None:
    """`value` with so many meaningful digits; None for NaN and infinity, whole numbers without a point."""
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short == int(short) and abs(short) < 1e15 else short

"""Which calls of a pickle are understood: those that only spell data. Everything else is refused by its name.

Three kinds: data (an OrderedDict, a numpy string) becomes a plain value; a constructor that training
checkpoints are known to hold (a logger, a path, an enum) becomes an inert `Record`; any other call is an error.
Nothing is imported or called by a name that the file gives.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.pickles.values import Call, Named, Record, checked_key

# --- data ---------------------------------------------------------------------------------------------------


def _sequence(args: tuple) -> list:
    """Values given to list(), set() and their like: none, or one container."""
    if not args:
        return []
    (values,) = args
    if not isinstance(values, (list, tuple, set, frozenset, dict)):
        raise ValueError(f"a list is needed, found {type(values).__name__}")
    return list(values)


def _set(args: tuple) -> list:
    return [checked_key(value) for value in _sequence(args)]


def _mapping(args: tuple) -> dict:
    """dict(): nothing, a dictionary, or pairs."""
    if args and isinstance(args[0], dict) and len(args) == 1:
        return dict(args[0])
    return {checked_key(key): value for key, value in _sequence(args)}


def _bytes(args: tuple) -> bytes:
    """bytes() of protocol 2: nothing, text with its coding, or numbers below 256 (never a length)."""
    if not args:
        return b""
    value, *coding = args
    if isinstance(value, str):
        if [str(name).lower().replace("-", "").replace("_", "") for name in coding] not in (
            ["latin1"],
            ["ascii"],
        ):
            raise ValueError("bytes in an unknown coding")
        return value.encode("latin-1")
    if coding or not isinstance(value, (bytes, bytearray, list)):
        raise ValueError(f"bytes out of {type(value).__name__}")
    return bytes(value)


def _complex(args: tuple) -> complex:
    if not all(isinstance(part, (int, float)) for part in args):
        raise ValueError("a complex number out of something else")
    return complex(*args)


def _dtype(record: Any) -> np.dtype:
    """numpy's dtype out of its record: numbers, booleans, text, bytes and object."""
    if not isinstance(record, Record) or record.named != Named("numpy", "dtype"):
        raise ValueError("a numpy array without its type")
    code = record.args[0] if record.args else None
    if not isinstance(code, str) or not re.fullmatch(r"b1|[iu][1248]|f[248]|c8|c16|O8?|[SU]\d{1,8}", code):
        raise ValueError(f"a numpy array of type {str(code)[:20]!r}; allowed are numbers, text and booleans")
    order = record.state[1] if isinstance(record.state, tuple) and len(record.state) > 1 else "="
    return np.dtype((order if order in ("<", ">") else "=") + code)


def _raw(data: Any) -> bytes:
    if isinstance(data, str):  # bytes of Python 2
        return data.encode("latin-1")
    if not isinstance(data, (bytes, bytearray)):
        raise ValueError(f"numbers of a numpy array as {type(data).__name__}")
    return bytes(data)


def _filled(kind: np.dtype, shape: Any, data: Any, order: str) -> np.ndarray:
    """An array of `shape` out of its bytes (or, for objects, its list), checked against each other."""
    if not isinstance(shape, tuple) or not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError("a numpy array without its shape")
    count = int(np.prod(np.array(shape, dtype=object))) if shape else 1
    if kind.hasobject:
        if not isinstance(data, list) or len(data) != count:
            raise ValueError("a numpy array whose shape and values disagree")
        values = np.empty(count, dtype=object)
        for position, value in enumerate(data):  # one by one: numpy would take inner lists apart
            values[position] = value
        return values.reshape(shape, order=order)
    data = _raw(data)
    if len(data) != count * kind.itemsize:
        raise ValueError("a numpy array whose shape and values disagree")
    values = np.frombuffer(data, kind).copy() if count else np.empty(0, kind)
    if kind.kind == "U" and count and (values.view(kind.byteorder + "u4") > 0x10FFFF).any():
        raise ValueError("a numpy array of text with characters that do not exist")
    return values.reshape(shape, order=order)


def _scalar(args: tuple) -> Any:
    """numpy's scalar: a plain Python value."""
    kind, data = args
    kind = _dtype(kind)
    if kind.hasobject:
        return data
    if kind.itemsize == 0:
        return "" if kind.kind == "U" else b""
    return _filled(kind, (), data, "C").item()


def _from_buffer(args: tuple) -> np.ndarray:
    """numpy's array of protocol 5."""
    data, kind, shape, order, *axes = args
    if any(axis is not None for axis in axes):
        raise ValueError("a numpy array with its axes in another order")
    return _filled(_dtype(kind), shape, data, "F" if order == "F" else "C")


DATA: dict[Named, Callable[[tuple], Any]] = {
    Named("collections", "OrderedDict"): _mapping,
    Named("collections", "Counter"): _mapping,
    Named("collections", "defaultdict"): lambda args: {},  # its argument is what would make missing values
    Named("collections", "deque"): lambda args: _sequence(args[:1]),
    Named("builtins", "dict"): _mapping,
    Named("builtins", "list"): _sequence,
    Named("builtins", "tuple"): lambda args: tuple(_sequence(args)),
    Named("builtins", "set"): lambda args: set(_set(args)),
    Named("builtins", "frozenset"): lambda args: frozenset(_set(args)),
    Named("builtins", "bytes"): _bytes,
    Named("builtins", "bytearray"): lambda args: bytearray(_bytes(args)),
    Named("builtins", "complex"): _complex,
    Named("_codecs", "encode"): _bytes,
}
for _core in ("numpy.core", "numpy._core"):  # before numpy 2 and since
    DATA[Named(f"{_core}.multiarray", "scalar")] = _scalar
    DATA[Named(f"{_core}.numeric", "_frombuffer")] = _from_buffer

# --- records ------------------------------------------------------------------------------------------------

ARRAYS = {Named(f"{core}.multiarray", "_reconstruct") for core in ("numpy.core", "numpy._core")}
PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
HARMLESS = {
    *ARRAYS,
    Named("numpy", "dtype"),
    Named("logging", "getLogger"),
    Named("torch", "device"),
    Named("torch", "Size"),
    Named("argparse", "Namespace"),
    Named("types", "SimpleNamespace"),
    Named("types", "GenericAlias"),
    Named("uuid", "UUID"),
    Named("decimal", "Decimal"),
    Named("fractions", "Fraction"),
    Named("builtins", "range"),
    Named("builtins", "slice"),
    Named("builtins", "object"),
    *(Named("datetime", name) for name in ("date", "time", "datetime", "timedelta", "timezone")),
    *(Named(module, name) for module in ("pathlib", "pathlib._local") for name in PATHS),
}
CONFIG_MODULES = {"omegaconf.base", "omegaconf.dictconfig", "omegaconf.listconfig", "omegaconf.nodes"}
ENUM_PACKAGES = {"torch", "lightning", "pytorch_lightning", "lightning_fabric", "omegaconf"}


def _is_class_of(named: Named, packages: set[str]) -> bool:
    return named.module.split(".")[0] in packages and named.name.rpartition(".")[2][:1].isupper()


def _harmless(call: Call) -> Record | None:
    """The record of a constructor that training checkpoints hold, or None for any other call."""
    named, args = call.named, call.args
    if named in HARMLESS or named.module == "typing":
        return Record(named, args)
    if named.module in CONFIG_MODULES and named.name[:1].isupper():
        return Record(named, args)
    if _is_class_of(named, ENUM_PACKAGES) and len(args) == 1 and type(args[0]) in (str, int):
        return Record(named, args)
    if named == Named("builtins", "type") and args == (None,):  # how NoneType is spelt
        return Record(named, args)
    first = args[0] if args and isinstance(args[0], Named) else None
    if named.module == "copyreg" and first:
        if named.name == "_reconstructor":  # (class, base, state of the base): protocols 0 and 1
            return Record(first, tuple(part for part in args[2:] if part is not None))
        if named.name in ("__newobj__", "__newobj_ex__"):
            return Record(first, args[1:])
    if first and len(args) == 2:
        if named == Named("builtins", "getattr") and _is_class_of(
            first, ENUM_PACKAGES
        ):  # enums of Python 3.11
            return Record(first, args[1:])
        if named.name == "getitem" and named.module in ("operator", "_operator") and first.module == "typing":
            return Record(first, args[1:])
    return None


def understand(call: Call, where: str) -> Any:
    """The plain value or record that `call` stands for.

    Raises RequestError naming the call when it is none that is understood, ValueError (or TypeError) when it is
    but does not hold together.
    """
    if call.named in DATA:
        return DATA[call.named](call.args)
    record = _harmless(call)
    if record is None:
        raise RequestError(f"{where}: asks to call {call.named}; nothing that a file contains is executed.")
    return record


def numpy_array(state: Any) -> np.ndarray:
    """The array out of what numpy stores: (version, shape, type, is it Fortran's order, values)."""
    if not isinstance(state, tuple) or len(state) not in (4, 5):
        raise ValueError("a numpy array without its values")
    shape, kind, fortran, data = state[-4:]
    return _filled(_dtype(kind), shape, data, "F" if fortran else "C")

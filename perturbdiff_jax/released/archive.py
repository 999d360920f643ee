"""Opens a checkpoint that PyTorch saved, without PyTorch and without executing anything it contains.

Such a file is a zip of uncompressed members: `<root>/data.pkl` describes everything and refers to tensors by the
key of their storage; the numbers of one storage are the member `<root>/data/<key>`. Tensors stay in the file until
they are read: the moments of an optimizer are usually never wanted.
"""

import dataclasses
import math
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.pickles import Call, Named, Record, read_pickle

STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
REBUILD = {
    "_rebuild_tensor": 4,
    "_rebuild_tensor_v2": 6,
}  # fewest arguments: storage, offset, shape, stride, ...
DIMENSIONS, MOST = 32, 2**40  # of a tensor that can be read; numbers in it, empty dimensions aside
# How files begin that somebody might take for such a checkpoint.
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"  # torch.save before version 1.6
# What zipfile raises for a damaged or an exotic zip.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    NotImplementedError,
    RuntimeError,
    OSError,
    EOFError,
    KeyError,
    IndexError,
    ValueError,
    OverflowError,
    struct.error,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
    """A run of numbers in the file, shared by the tensors that view it."""

    load: Callable[[], bytes] = dataclasses.field(repr=False)
    dtype: np.dtype
    length: int


@dataclasses.dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor that is still in its file."""

    shape: tuple[int, ...]
    dtype: np.dtype
    storage: Storage = dataclasses.field(repr=False)
    offset: int = dataclasses.field(repr=False)  # numbers, not bytes
    stride: tuple[int, ...] = dataclasses.field(repr=False)  # likewise

    def read(self) -> np.ndarray:
        """The numbers, in an array of their own. Raises RequestError when the file is damaged there."""
        values = np.frombuffer(self.storage.load(), np.uint8 if self.dtype == bool else self.dtype)
        steps = tuple(step * values.itemsize for step in self.stride)
        view = np.lib.stride_tricks.as_strided(values[self.offset :], self.shape, steps, writeable=False)
        return np.asarray(view != 0) if self.dtype == bool else view.copy(order="C")


def open_checkpoint(path: str | Path) -> dict[Any, Any]:
    """The dictionary that a checkpoint holds; every tensor in it is a `StoredTensor`.

    Raises RequestError in one line, naming the file, when it is no such checkpoint, is damaged, or asks for a
    function to be called.
    """
    path = Path(path)
    _check_beginning(path)
    archive = _Archive(path)
    content = read_pickle(
        archive.member("data.pkl"), where=str(path), persistent=archive.storage, build=archive.tensor
    )
    if not isinstance(content, dict):
        kind = content.named if isinstance(content, Record) else type(content).__name__
        raise RequestError(f"{path}: holds a {kind}, not the dictionary of a checkpoint.")
    return content


def _check_beginning(path: Path) -> None:
    """Names the files that are taken for a checkpoint of today's PyTorch most often."""
    if not path.is_file():
        raise RequestError(f"{path}: {'a directory, not a file' if path.is_dir() else 'no such file'}.")
    try:
        with path.open("rb") as file:
            beginning = file.read(16)
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror}).") from error
    if not beginning:
        raise RequestError(f"{path}: the file is empty (0 bytes).")
    if beginning.startswith(LEGACY):
        raise RequestError(
            f"{path}: was saved in PyTorch's form before version 1.6; load and save it again with today's PyTorch."
        )
    if beginning[8:10] == b'{"' and int.from_bytes(beginning[:8], "little") < path.stat().st_size:
        raise RequestError(f"{path}: a safetensors file (bare tensors); a Lightning .ckpt is needed.")
    if not beginning.startswith(b"PK"):
        raise RequestError(f"{path}: not a checkpoint of PyTorch (those are zip files).")


class _Archive:
    """The zip of one checkpoint and the storages in it."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.zip = zipfile.ZipFile(path)
        except ZIP_ERRORS as error:
            raise RequestError(f"{path}: a truncated or damaged zip file ({_said(error)}).") from error
        roots = [name.removesuffix("/data.pkl") for name in self.zip.namelist() if name.endswith("/data.pkl")]
        roots = [root for root in roots if "/" not in root]
        if len(roots) != 1:
            raise RequestError(f"{path}: a zip with {len(roots)} members data.pkl; a checkpoint has one.")
        self.root = roots[0]
        if f"{self.root}/constants.pkl" in self.zip.NameToInfo:
            raise RequestError(f"{path}: a TorchScript program, not a checkpoint.")
        order = self.member("byteorder") if f"{self.root}/byteorder" in self.zip.NameToInfo else b"little"
        if order.strip() != b"little":
            raise RequestError(f"{path}: its byte order is {ascii(order[:20])[1:]}; known is 'little' only.")
        self.storages: dict[str, Storage] = {}

    def size(self, name: str) -> int:
        """Bytes of the member `<root>/<name>`; refuses one that is missing, packed or longer than the file."""
        info = self.zip.NameToInfo.get(f"{self.root}/{name}")
        if info is None:
            raise RequestError(f"{self.path}: has no member {self._name(name)}; the file is not whole.")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise RequestError(
                f"{self.path}: its member {self._name(name)} is packed or encrypted; PyTorch's are not."
            )
        if (
            info.header_offset + info.file_size > self.path.stat().st_size
            or info.compress_size != info.file_size
        ):
            raise RequestError(f"{self.path}: its member {self._name(name)} is longer than the file.")
        return info.file_size

    def member(self, name: str) -> bytes:
        """Bytes of the member `<root>/<name>`, checked against its CRC."""
        size = self.size(name)
        try:
            data = self.zip.read(f"{self.root}/{name}")
        except ZIP_ERRORS as error:
            raise RequestError(
                f"{self.path}: member {self._name(name)} is damaged ({_said(error)})."
            ) from error
        if len(data) != size:
            raise RequestError(f"{self.path}: member {self._name(name)} is damaged (too short).")
        return data

    def _name(self, name: str) -> str:
        return ascii(f"{self.root}/{name}"[:80])[1:-1]

    def storage(self, reference: Any) -> Storage:
        """The storage of a reference ("storage", type, key, device, length)."""
        if not isinstance(reference, tuple) or len(reference) != 5 or reference[0] != "storage":
            raise RequestError(f"{self.path}: refers to something outside the file that is no tensor.")
        _, kind, key, _, length = reference
        if not isinstance(kind, Named) or not isinstance(key, str) or type(length) is not int or length < 0:
            raise RequestError(f"{self.path}: a damaged reference to a tensor.")
        dtype = STORAGES.get(kind.name) if kind.module == "torch" else None
        if kind == Named("torch.storage", "UntypedStorage"):
            dtype = np.dtype("u1")
        if dtype is None:
            raise RequestError(
                f"{self.path}: holds a tensor of type {kind}; known are {', '.join(STORAGES)}."
            )
        known = self.storages.get(key)
        if known and (known.dtype, known.length) == (dtype, length):
            return known
        size, needed = self.size(f"data/{key}"), length * dtype.itemsize
        if size != needed:
            raise RequestError(
                f"{self.path}: member {self._name(f'data/{key}')} has {size} bytes; "
                f"{length} numbers of {kind} take {needed}."
            )
        self.storages[key] = Storage(lambda: self.member(f"data/{key}"), dtype, length)
        return self.storages[key]

    def tensor(self, call: Call) -> Any:
        """The tensor that a call of PyTorch's stands for; NotImplemented for any other call."""
        if call.named.module != "torch._utils":
            return NotImplemented
        if call.named.name == "_rebuild_parameter":
            if not call.args or not isinstance(call.args[0], StoredTensor):
                raise RequestError(f"{self.path}: a damaged parameter.")
            return call.args[0]
        if call.named.name not in REBUILD:
            return NotImplemented
        storage, offset, shape, stride = (*call.args, None, None, None, None)[:4]
        if len(call.args) < REBUILD[call.named.name] or not isinstance(storage, Storage):
            raise RequestError(f"{self.path}: a damaged tensor (its parts are not a storage and a shape).")
        numbers = [offset, *shape, *stride] if type(shape) is type(stride) is tuple else [None]
        whole = all(type(number) is int and 0 <= number <= MOST for number in numbers)
        if not whole or not len(shape) == len(stride) <= DIMENSIONS:
            raise RequestError(f"{self.path}: a damaged tensor (its shape and stride are not counts).")
        reach = [(length - 1) * step for length, step in zip(shape, stride, strict=True)]
        inside = math.prod(shape) <= storage.length and (0 in shape or offset + sum(reach) < storage.length)
        if not inside or math.prod(max(length, 1) for length in shape) > MOST:
            raise RequestError(
                f"{self.path}: a tensor that does not fit its storage of {storage.length} numbers "
                f"(shape {shape}, stride {stride}, offset {offset})."
            )
        return StoredTensor(shape, storage.dtype, storage, offset, stride)


def _said(error: Exception) -> str:
    """What an error of zipfile says, on one short line."""
    return ascii(" ".join(str(error).split())[:100])[1:-1] or type(error).__name__

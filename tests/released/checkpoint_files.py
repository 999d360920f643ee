"""Writes checkpoints in the released form (PyTorch's zip, Lightning's keys, OmegaConf's nesting) and hostile ones.

Neither PyTorch nor OmegaConf is used: a writer of pickles of protocol 2 spells what theirs write.
"""

import dataclasses
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


@dataclasses.dataclass(frozen=True)
class Global:
    """A name that the file mentions."""

    module: str
    name: str


@dataclasses.dataclass(eq=False)
class Made:
    """An object made by a call (REDUCE) or, with `new`, by its class alone (NEWOBJ); `state` is set by BUILD."""

    by: Global
    args: tuple = ()
    state: Any = None
    new: bool = False


@dataclasses.dataclass(eq=False)
class Tensor:
    """A view of a storage, for tests of views; plain arrays are written as they are."""

    storage: np.ndarray  # one-dimensional
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


ANY, DICT, LIST, INT = (
    Global("typing", "Any"),
    Global("__builtin__", "dict"),
    Global("__builtin__", "list"),
    Global("__builtin__", "long"),
)
REBUILD = Global("torch._utils", "_rebuild_tensor_v2")


class Writer:
    """Spells values in protocol 2, each object once; collects the storages of tensors on the way."""

    def __init__(self):
        self.out = bytearray(b"\x80\x02")
        self.memo: dict[Any, int] = {}
        self.kept: list = []  # so that no id in the memo is given to another object
        self.storages: list[np.ndarray] = []
        self.keys: dict[int, str] = {}

    def done(self, value: Any) -> bytes:
        self.save(value)
        return bytes(self.out) + b"."

    def known(self, key: Any, value: Any) -> bool:
        if key in self.memo:
            number = self.memo[key]
            self.out += b"h" + bytes([number]) if number < 256 else b"j" + struct.pack("<I", number)
            return True
        self.kept.append(value)
        return False

    def remember(self, key: Any) -> None:
        number = self.memo[key] = len(self.memo)
        self.out += b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number)

    def save(self, value: Any) -> None:
        if value is None or isinstance(value, bool):
            self.out += {None: b"N", True: b"\x88", False: b"\x89"}[value]
        elif isinstance(value, int):
            self.out += b"I%d\n" % value if abs(value) >= 2**31 else b"J" + struct.pack("<i", value)
        elif isinstance(value, float):
            self.out += b"G" + struct.pack(">d", value)
        elif type(value) is str:
            self.save_text(value)
        elif isinstance(value, Global):
            if not self.known(value, value):
                self.out += f"c{value.module}\n{value.name}\n".encode()
                self.remember(value)
        elif not self.known(id(value), value):
            self.save_object(value)

    def save_text(self, value: str) -> None:
        if not self.known(value, value):
            data = value.encode()
            self.out += b"X" + struct.pack("<I", len(data)) + data
            self.remember(value)

    def save_object(self, value: Any) -> None:
        if isinstance(value, dict):
            self.out += b"}"
            self.remember(id(value))
            self.out += b"("
            for key, item in value.items():
                self.save(key)
                self.save(item)
            self.out += b"u"
        elif isinstance(value, list):
            self.out += b"]"
            self.remember(id(value))
            self.fill(value, b"e")
        elif isinstance(value, tuple):
            self.fill(value, b"t")
        elif isinstance(value, Made):
            self.save(value.by)
            self.fill(value.args, b"t")
            self.out += b"\x81" if value.new else b"R"
            self.remember(id(value))  # before its state, which may refer to it
            if value.state is not None:
                self.save(value.state)
                self.out += b"b"
        elif isinstance(value, np.str_):
            self.kept.append(numpy_text(value))
            self.save_object(self.kept[-1])
        elif isinstance(value, np.ndarray):
            stride = tuple(step // value.itemsize for step in np.empty(value.shape, value.dtype).strides)
            self.save_tensor(Tensor(np.ascontiguousarray(value).reshape(-1), 0, value.shape, stride))
        elif isinstance(value, Tensor):
            self.save_tensor(value)
        else:
            raise TypeError(type(value))

    def fill(self, values: Any, end: bytes) -> None:
        self.out += b"("
        for item in values:
            self.save(item)
        self.out += end

    def save_tensor(self, tensor: Tensor) -> None:
        self.save(REBUILD)
        self.out += b"("
        key = self.keys.get(id(tensor.storage))
        if key is None:
            key = self.keys[id(tensor.storage)] = str(len(self.storages))
            self.storages.append(tensor.storage)
        kind = Global("torch", STORAGES[tensor.storage.dtype.name])
        self.fill(("storage", kind, key, "cpu", tensor.storage.size), b"t")
        self.out += b"Q"
        rest = (tensor.offset, tensor.shape, tensor.stride, False, Made(Global("collections", "OrderedDict")))
        for part in rest:
            self.save(part)
        self.out += b"tR"


def numpy_text(value: str) -> Made:
    """numpy's string scalar, as numpy 2 pickles it."""
    length = len(value)
    kind = Made(
        Global("numpy", "dtype"),
        (f"U{length}", False, True),
        (3, "<", None, None, None, 4 * length, 4, 8),
    )
    raw = value.encode("utf-32-le").decode("latin1")
    data = Made(Global("_codecs", "encode"), (raw, "latin1"))
    return Made(Global("numpy._core.multiarray", "scalar"), (kind, data))


def omegaconf(value: Any, key: Any = None, parent: Made | None = None) -> Made:
    """`value` as OmegaConf's containers pickle it: every node has metadata and refers to its parent."""
    container = {dict: ("dictconfig", "DictConfig"), list: ("listconfig", "ListConfig")}.get(type(value))
    node = Made(
        Global(*(f"omegaconf.{container[0]}", container[1]) if container else ("omegaconf.nodes", "AnyNode"))
    )
    node.new = True
    kind = Global("omegaconf.base", "ContainerMetadata" if container else "Metadata")
    metadata = {
        "ref_type": ANY,
        "object_type": {dict: DICT, list: LIST}.get(type(value)),
        "optional": True,
        "key": key,
        "flags": {},
        "flags_root": False,
        "resolver_cache": Made(Global("collections", "defaultdict"), (DICT,)),
    }
    if container:
        metadata |= {"key_type": INT if isinstance(value, list) else ANY, "element_type": ANY}
    if isinstance(value, dict):
        content = {name: omegaconf(item, name, node) for name, item in value.items()}
    elif isinstance(value, list):
        content = [omegaconf(item, position, node) for position, item in enumerate(value)]
    else:
        content = value
    node.state = {
        "_metadata": Made(kind, (), metadata, new=True),
        "_parent": parent,
        "_content" if container else "_val": content,
    }
    return node


def write_archive(
    path: Path,
    content: Any,
    *,
    root: str = "archive",
    byteorder: bytes | None = b"little",
    leave_out: tuple[str, ...] = (),
    instead: dict[str, bytes] | None = None,
) -> Path:
    """Writes `content` as PyTorch does; `leave_out` and `instead` (by member name without root) damage it."""
    writer = Writer()
    members = {"data.pkl": content if isinstance(content, bytes) else writer.done(content)}
    if byteorder is not None:
        members["byteorder"] = byteorder
    members |= {f"data/{key}": array.tobytes() for key, array in enumerate(writer.storages)}
    members["version"] = b"3\n"
    members |= instead or {}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            if name not in leave_out:
                archive.writestr(f"{root}/{name}", data)
    return Path(path)


def write_checkpoint(
    path: Path,
    tensors: dict[str, np.ndarray],
    hyper_parameters: dict,
    *,
    live: dict[str, np.ndarray] | None = None,
    root: str = "archive",
    step: int = 12,
    **top: Any,
) -> Path:
    """Writes a checkpoint in the released form.

    tensors: the state_dict. hyper_parameters: plain dicts and lists by section; a logger is added to them.
    live: the weights that are not averaged. top: further or other top-level values.
    """
    some = next(iter(tensors.values()), np.zeros(2, np.float32)).astype(np.float32)
    moments = {"step": np.array(step, np.float32), "exp_avg": some * 0.5, "exp_avg_sq": some**2}
    group = {"lr": 1e-3, "betas": [0.9, 0.98], "eps": 1e-8, "weight_decay": 0.01, "params": [0]}
    facts = {
        name: omegaconf(value, name) if isinstance(value, dict | list) else value
        for name, value in hyper_parameters.items()
    }
    facts.setdefault("py_logger", Made(Global("logging", "getLogger"), ("src.common.utils",)))
    content = {
        "epoch": 0,
        "global_step": step,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": tensors,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1, "completed": 0}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"kth_value": np.array(np.inf, np.float32)}},
        "optimizer_states": [{"state": {0: moments}, "param_groups": [group]}],
        "lr_schedulers": [{"base_lrs": [1e-3], "last_epoch": step, "lr_lambdas": [None]}],
        "hparams_name": "kwargs",
        "hyper_parameters": facts,
    }
    if live is not None:
        content["callbacks"]["EMAWeightAveraging"] = {"latest_update_step": step - 1}
        content |= {"current_model_state": live, "averaging_state": {"n_averaged": np.array(2, np.int64)}}
    return write_archive(path, content | top, root=root)


def pickle_calling(module: str, name: str, *args: Any, how: str = "reduce") -> bytes:
    """A pickle that calls `module`.`name`(*args) when Python loads it.

    how: the instruction that asks for the call: reduce, stack_global (reduce, of protocol 4), inst or obj.
    """
    given = b"".join(pickle.dumps(arg, protocol=1)[:-1] for arg in args)
    if how == "inst":
        return b"(" + given + f"i{module}\n{name}\n.".encode()
    if how == "obj":
        return b"(" + f"c{module}\n{name}\n".encode() + given + b"o."
    if how == "stack_global":
        named = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name)) + b"\x93"
        return b"\x80\x04" + named + b"(" + given + b"tR."
    return f"c{module}\n{name}\n(".encode() + given + b"tR."


def write_pickle_calling(path: Path, module: str, name: str, *args: Any, how: str = "reduce") -> Path:
    """Writes such a pickle: bare, or as the data.pkl of a checkpoint where `path` ends in .ckpt."""
    data = pickle_calling(module, name, *args, how=how)
    if Path(path).suffix == ".ckpt":
        return write_archive(path, data)
    Path(path).write_bytes(data)
    return Path(path)

"""Reads Python pickles as data: a small stack machine that never calls, imports or builds what a file names.

`pickletools.genops` of the standard library splits the bytes into instructions; the machine here carries out
those that make containers and scalars. Names become `Named`, objects become `Record`, and the few calls that
only spell data are understood (see pickle_calls); any other is refused by name.
"""

import pickletools
import struct
from collections.abc import Callable
from typing import Any

from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.pickle_calls import ARRAYS, numpy_array, understand
from perturbdiff_jax.pickle_values import Call, Named, Record, check_nesting, checked_key

__all__ = ["Call", "Named", "Record", "read_pickle"]

NEWEST = 5  # protocol
PYTHON2 = {  # what protocols 0 to 2 write, whichever Python made them
    Named("__builtin__", "long"): Named("builtins", "int"),
    Named("__builtin__", "unicode"): Named("builtins", "str"),
    Named("__builtin__", "xrange"): Named("builtins", "range"),
}
SIZED = (str, bytes, bytearray, dict, list, tuple, set, frozenset)
PYTHON2_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
# What damaged bytes can bring about in the machine, in genops and in numpy; everything else is a fault of ours.
DAMAGE = (ValueError, IndexError, TypeError, OverflowError, RecursionError, MemoryError, struct.error)


def read_pickle(
    data: bytes,
    *,
    where: str,
    persistent: Callable[[Any], Any] | None = None,
    build: Callable[[Call], Any] | None = None,
) -> Any:
    """The first pickle in `data` as plain Python containers, scalars, numpy arrays, `Named` and `Record`.

    where: file name for messages.
    persistent: gives the value of a reference to something outside the pickle; None: they are refused.
    build: asked first for every call; gives its value, or NotImplemented to leave the call to this module.

    Raises RequestError in one line: a call that is not data (named), a damaged file, absurd nesting.
    """
    if not data:
        raise RequestError(f"{where}: the file is empty (0 bytes).")
    try:
        value = _Machine(where, persistent, build).run(data)
        check_nesting(value)
    except RequestError:
        raise
    except DAMAGE as error:
        empty = type(error) is IndexError  # of the stack or of the marks
        text = "takes more from its stack than there is" if empty else " ".join(str(error).split())
        raise RequestError(f"{where}: damaged, or not a pickle ({ascii(text[:120])[1:-1]}).") from error
    return value


class _Machine:
    """Stack, marks and memo of one pickle."""

    def __init__(self, where: str, persistent: Callable | None, build: Callable | None):
        self.where, self.persistent, self.build = where, persistent, build
        self.stack: list = []  # above the last mark
        self.below: list[list] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}
        self.copies = self.most_copies = 0
        self.unfilled: dict[int, list[int]] = {}  # memo entries of a numpy array whose values are yet to come

    def run(self, data: bytes) -> Any:
        self.most_copies = 1_000_000 + 16 * len(data)
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in CONSTANTS:
                self.stack.append(argument)
            else:
                HANDLERS[opcode.name](self, argument)
        # genops ends at STOP, or raises where the bytes end before it
        if len(self.stack) != 1 or self.below:
            raise ValueError("ends with other than one value")
        return self.stack[0]

    def refuse(self, what: str) -> RequestError:
        return RequestError(f"{self.where}: {what}; nothing that a file contains is executed.")

    def spend(self, parts: Any) -> None:
        """Counts what is about to be copied: a part that is copied over and over would fill the memory."""
        self.copies += sum(len(part) for part in parts if isinstance(part, SIZED))
        if self.copies > self.most_copies:
            raise ValueError("copies its parts over and over")

    def to_mark(self) -> list:
        """Values above the last mark, which goes."""
        values, self.stack = self.stack, self.below.pop()
        return values

    def call(self, named: Any, args: Any) -> None:
        if type(named) is not Named:
            named = named.named if type(named) is Record else type(named).__name__
            raise self.refuse(f"asks to call a value that it made ({named})")
        self.spend(args)
        call = Call(named, tuple(args))
        value = self.build(call) if self.build else NotImplemented
        self.stack.append(understand(call, self.where) if value is NotImplemented else value)

    # Marks and the stack itself

    def mark(self, _: None) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop(self, _: None) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.stack = self.below.pop()

    def proto(self, version: int) -> None:
        if version > NEWEST:
            raise ValueError(f"protocol {version}; known are 0 to {NEWEST}")

    # Memo

    def put(self, key: int | None) -> None:
        value = self.stack[-1]
        key = len(self.memo) if key is None else key
        self.memo[key] = value
        if type(value) is Record and value.named in ARRAYS:
            self.unfilled.setdefault(id(value), []).append(key)

    def get(self, key: int) -> None:
        if key not in self.memo:
            raise ValueError(f"refers to entry {key} of its memo, which was never written")
        self.stack.append(self.memo[key])

    # Containers

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def join(self, kind: type) -> None:
        values = self.to_mark()
        self.stack.append(kind(values))

    def append_all(self, values: list) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(values)
        elif type(target) is Record:
            target.set_items(values)
        else:
            raise self.wrong_target("list", target)

    def add_items(self, _: None) -> None:
        values, target = self.to_mark(), self.stack[-1]
        if type(target) is set:
            target.update(checked_key(value) for value in values)
        elif type(target) is Record:
            target.set_items(values)
        else:
            raise self.wrong_target("set", target)

    def frozen_set(self, _: None) -> None:
        values = frozenset(checked_key(value) for value in self.to_mark())
        self.stack.append(values)

    def new_dict(self, _: None) -> None:
        values = self.to_mark()
        self.stack.append({})
        self.set_all(values)

    def set_one(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_all([key, value])

    def set_all(self, values: list) -> None:
        if len(values) % 2:
            raise ValueError("a dictionary key without its value")
        keys = values[::2]
        for key in keys:
            if type(key) is not str:
                checked_key(key)
        target, pairs = self.stack[-1], zip(keys, values[1::2], strict=True)
        if type(target) is dict:
            target.update(pairs)
        elif type(target) is Record:
            target.set_items(dict(pairs))
        else:
            raise self.wrong_target("dictionary", target)

    def wrong_target(self, kind: str, target: Any) -> Exception:
        if type(target) is Named:
            return self.refuse(f"asks to change {target}")
        return ValueError(f"fills a {type(target).__name__} as a {kind}")

    # Names, objects, calls

    def name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise ValueError("a name that is not text")
        named = Named(module, name)
        named = PYTHON2.get(named) or Named(PYTHON2_MODULES.get(module, module), name)
        self.stack.append(named)

    def stack_name(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(module, name)

    def reduce(self, _: None) -> None:
        args, named = self.stack.pop(), self.stack.pop()
        if type(args) is not tuple:
            raise ValueError("a call without its arguments")
        self.call(named, args)

    def inst(self, names: str) -> None:
        args = self.to_mark()
        self.name(*names.split(" ", 1))
        self.call(self.stack.pop(), args)

    def obj(self, _: None) -> None:
        named, *args = self.to_mark()
        self.call(named, args)

    def new(self, extended: bool) -> None:
        keywords = self.stack.pop() if extended else {}
        args, named = self.stack.pop(), self.stack.pop()
        if type(args) is not tuple or type(keywords) is not dict:
            raise ValueError("an object without its arguments")
        if type(named) is not Named:
            raise ValueError(f"an object of a class that is a {type(named).__name__}")
        self.stack.append(Record(named, (*args, keywords) if keywords else args))

    def set_state(self, _: None) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        self.spend(state if type(state) is tuple else ())
        if type(target) is Record and target.named in ARRAYS:
            array = self.stack[-1] = numpy_array(state)
            for key in self.unfilled.pop(id(target), ()):
                if self.memo[key] is target:
                    self.memo[key] = array
        elif type(target) is Record:
            target.set_state(state)
        elif type(target) is not dict:  # attributes that torch hangs on an OrderedDict are no data
            raise self.wrong_target("object", target)

    def outside(self, reference: Any) -> None:
        if self.persistent is None:
            raise RequestError(f"{self.where}: refers to data outside the file.")
        self.stack.append(self.persistent(reference))

    def registry(self, code: int) -> None:
        raise self.refuse(f"asks for entry {code} of Python's extension registry")

    def buffer(self, _: None) -> None:
        raise RequestError(f"{self.where}: refers to a buffer outside the file.")


CONSTANTS = {  # instructions that push their own argument: numbers, text, bytes
    opcode.name
    for opcode in pickletools.opcodes
    if opcode.arg and not opcode.stack_before and opcode.stack_after not in ([], [pickletools.anyobject])
}
HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.proto,
    "FRAME": lambda machine, _: None,
    "STOP": lambda machine, _: None,
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": lambda machine, _: machine.to_mark(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "TUPLE": lambda machine, _: machine.join(tuple),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "LIST": lambda machine, _: machine.join(list),
    "APPEND": lambda machine, _: machine.append_all([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append_all(machine.to_mark()),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "DICT": _Machine.new_dict,
    "SETITEM": _Machine.set_one,
    "SETITEMS": lambda machine, _: machine.set_all(machine.to_mark()),
    "EMPTY_SET": lambda machine, _: machine.stack.append(set()),
    "ADDITEMS": _Machine.add_items,
    "FROZENSET": _Machine.frozen_set,
    "GLOBAL": lambda machine, names: machine.name(*names.split(" ", 1)),
    "STACK_GLOBAL": _Machine.stack_name,
    "REDUCE": _Machine.reduce,
    "INST": _Machine.inst,
    "OBJ": _Machine.obj,
    "NEWOBJ": lambda machine, _: machine.new(False),
    "NEWOBJ_EX": lambda machine, _: machine.new(True),
    "BUILD": _Machine.set_state,
    "PERSID": _Machine.outside,
    "BINPERSID": lambda machine, _: machine.outside(machine.stack.pop()),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), _Machine.registry),
    "NEXT_BUFFER": _Machine.buffer,
    "READONLY_BUFFER": _Machine.buffer,
}

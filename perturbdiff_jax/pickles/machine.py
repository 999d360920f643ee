"""The stack machine that carries out a pickle's instructions on plain values; it calls, imports and builds nothing.

Names become `Named`, objects become `Record`, and the few calls that only spell data are understood (see calls.py); any
other is refused by name.
"""

from collections.abc import Callable
from typing import Any

from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.pickles.calls import ARRAYS, numpy_array, understand
from perturbdiff_jax.pickles.values import Call, Named, Record, checked_key

NEWEST = 5  # protocol
PYTHON2 = {  # what protocols 0 to 2 write, whichever Python made them
    Named("__builtin__", "long"): Named("builtins", "int"),
    Named("__builtin__", "unicode"): Named("builtins", "str"),
    Named("__builtin__", "xrange"): Named("builtins", "range"),
}
SIZED = (str, bytes, bytearray, dict, list, tuple, set, frozenset)
PYTHON2_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class Machine:
    """Stack, marks and memo of one pickle."""

    def __init__(self, where: str, persistent: Callable | None, build: Callable | None, most_copies: int):
        self.where, self.persistent, self.build = where, persistent, build
        self.stack: list = []  # above the last mark
        self.below: list[list] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}
        self.copies, self.most_copies = 0, most_copies
        self.unfilled: dict[int, list[int]] = {}  # memo entries of a numpy array whose values are yet to come

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

"""Reads Python pickles as data: `pickletools.genops` of the standard library splits the bytes into instructions.

The machine (machine.py) carries out those that make containers and scalars; no instruction reaches anything outside it.
"""

import pickletools
import struct
from collections.abc import Callable
from typing import Any

from perturbdiff_jax.errors import RequestError
from perturbdiff_jax.pickles.machine import Machine
from perturbdiff_jax.pickles.values import Call, check_nesting

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
        # A part that is copied over and over would fill the memory: copies are counted against the file's length.
        value = _run(Machine(where, persistent, build, 1_000_000 + 16 * len(data)), data)
        check_nesting(value)
    except RequestError:
        raise
    except DAMAGE as error:
        empty = type(error) is IndexError  # of the stack or of the marks
        text = "takes more from its stack than there is" if empty else " ".join(str(error).split())
        raise RequestError(f"{where}: damaged, or not a pickle ({ascii(text[:120])[1:-1]}).") from error
    return value


def _run(machine: Machine, data: bytes) -> Any:
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in CONSTANTS:
            machine.stack.append(argument)
        else:
            HANDLERS[opcode.name](machine, argument)
    # genops ends at STOP, or raises where the bytes end before it
    if len(machine.stack) != 1 or machine.below:
        raise ValueError("ends with other than one value")
    return machine.stack[0]


CONSTANTS = {  # instructions that push their own argument: numbers, text, bytes
    opcode.name
    for opcode in pickletools.opcodes
    if opcode.arg and not opcode.stack_before and opcode.stack_after not in ([], [pickletools.anyobject])
}
HANDLERS: dict[str, Callable[[Machine, Any], None]] = {
    "PROTO": Machine.proto,
    "FRAME": lambda machine, _: None,
    "STOP": lambda machine, _: None,
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "MARK": Machine.mark,
    "POP": Machine.pop,
    "POP_MARK": lambda machine, _: machine.to_mark(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Machine.get),
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
    "DICT": Machine.new_dict,
    "SETITEM": Machine.set_one,
    "SETITEMS": lambda machine, _: machine.set_all(machine.to_mark()),
    "EMPTY_SET": lambda machine, _: machine.stack.append(set()),
    "ADDITEMS": Machine.add_items,
    "FROZENSET": Machine.frozen_set,
    "GLOBAL": lambda machine, names: machine.name(*names.split(" ", 1)),
    "STACK_GLOBAL": Machine.stack_name,
    "REDUCE": Machine.reduce,
    "INST": Machine.inst,
    "OBJ": Machine.obj,
    "NEWOBJ": lambda machine, _: machine.new(False),
    "NEWOBJ_EX": lambda machine, _: machine.new(True),
    "BUILD": Machine.set_state,
    "PERSID": Machine.outside,
    "BINPERSID": lambda machine, _: machine.outside(machine.stack.pop()),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), Machine.registry),
    "NEXT_BUFFER": Machine.buffer,
    "READONLY_BUFFER": Machine.buffer,
}

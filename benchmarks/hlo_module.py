"""A compiled module read from its text: instructions, their shapes, and how often each of them runs.

`parse(compiled.as_text())` gives a Module, `walk(module)` every instruction that runs, with the product of the trip
counts of the loops around it. What an instruction moves or computes is told by hlo_collectives.py and hlo_cost.py.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

ARRAY = re.compile(r"\b([a-z]+[0-9][a-z0-9]*|pred)\[([0-9,]*)\](\{[^}]*\})?")
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# Attributes that name computations which the instruction runs, by kind of instruction. A reduction's `to_apply` works
# on scalars and is left out.
CALLED = {
    "while": ("body",),
    "conditional": ("branch_computations", "true_computation", "false_computation"),
    "fusion": ("calls",),
    "call": ("to_apply",),
    "async-start": ("calls",),
}


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: its dtype as XLA writes it, its dimensions, its memory space (0 = the device's main memory)."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Size in bytes, without padding; values narrower than a byte are packed."""
        bits = 8 if self.dtype == "pred" else int(re.search(r"\d+", self.dtype)[0])
        return -(-self.size * bits // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation; `shapes` are those of its result, a tuple's one after the other."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    root: bool

    def called(self) -> list[str]:
        """Names of the computations that it runs; the branches of a conditional are alternatives."""
        names = []
        for attribute in CALLED.get(self.opcode, ()):
            for found in re.findall(rf"\b{attribute}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes):
                names += [name.strip().lstrip("%") for name in found.strip("{}").split(",")]
        return names

    @property
    def op_name(self) -> str:
        """Where in the program it comes from, as traced."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Module:
    """Computations by name, each a dict of instructions by name, in order; `entry` is where it starts."""

    computations: dict[str, dict[str, Instruction]]
    entry: str


@dataclasses.dataclass(frozen=True)
class Visit:
    """An instruction that runs.

    Attributes:
      computation: name of the one that it stands in.
      times: runs in one run of the module, if every conditional on the way takes this branch.
      loops: loops around it; `counted` is False when the trip count of one of them is not known (taken as 1).
      branches: for every conditional on the way, how many branches it has.
      fused: part of a fusion, so that its operands and result need no memory.
    """

    instruction: Instruction
    computation: str
    times: int = 1
    loops: int = 0
    counted: bool = True
    branches: tuple[int, ...] = ()
    fused: bool = False

    @property
    def mean_times(self) -> float:
        """`times`, if every branch of a conditional is equally likely."""
        return self.times / math.prod(self.branches)


def shapes_in(text: str) -> tuple[Shape, ...]:
    """Every array type in a piece of text."""
    found = []
    for dtype, dims, layout in ARRAY.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(size) for size in dims.split(",") if size)
        found.append(Shape(dtype, sizes, int(space[1]) if space else 0))
    return tuple(found)


def parse(text: str) -> Module:
    """Reads the text of a module (`compiled.as_text()`). ValueError when it has no entry."""
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        header = HEADER.match(line)
        if header:
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and " = " in line:
            instruction = _instruction(line)
            current[instruction.name] = instruction
    if entry is None:
        raise ValueError("text of a compiled module: no ENTRY computation in it")
    return Module(computations, entry)


def _instruction(line: str) -> Instruction:
    left, _, right = line.strip().partition(" = ")
    end = _closing(right, 0) if right.startswith("(") else right.index(" ")
    result, rest = right[:end], right[end:].strip()
    start = rest.index("(")
    stop = _closing(rest, start)
    inside = re.sub(r"/\*.*?\*/", "", rest[start + 1 : stop - 1])
    operands = tuple(re.findall(r"%([\w.\-]+)", inside)) or tuple(filter(None, [inside.strip()]))
    name = left.removeprefix("ROOT ").lstrip("%")
    return Instruction(name, rest[:start], shapes_in(result), operands, rest[stop:], left.startswith("ROOT "))


def _closing(text: str, start: int) -> int:
    """The place behind the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place + 1
    raise ValueError(f"text of a compiled module: no closing bracket in {text[:80]!r}")


def trip_count(module: Module, loop: Instruction) -> int | None:
    """How often a while loop runs; None = not known.

    As the compiler noted it, or read off the condition `counter < limit` and the body's `counter + step`. The start is
    taken to be 0, as that of every loop that JAX and the partitioner write.
    """
    noted = TRIPS.search(loop.attributes)
    if noted:
        return int(noted[1])
    condition, body = (_named(module, loop, attribute) for attribute in ("condition", "body"))
    test, after = (next(one for one in part.values() if one.root) for part in (condition, body))
    if test.opcode != "compare" or "direction=LT" not in test.attributes or after.opcode != "tuple":
        return None
    counter, limit = (condition[name] for name in test.operands)
    index = re.search(r"index=(\d+)", counter.attributes)
    if index is None or _constant(limit) is None:
        return None
    change = body[after.operands[int(index[1])]]
    steps = [_constant(body[name]) for name in change.operands] if change.opcode == "add" else []
    step = next(filter(None, steps), None)
    return None if step is None else -(-_constant(limit) // step)


def _named(module: Module, loop: Instruction, attribute: str) -> dict[str, Instruction]:
    return module.computations[re.search(rf"\b{attribute}=%?([\w.\-]+)", loop.attributes)[1]]


def _constant(instruction: Instruction) -> int | None:
    """The value of an integer constant, None for anything else."""
    if instruction.opcode != "constant" or not instruction.operands[0].isdigit():
        return None
    return int(instruction.operands[0])


def walk(module: Module) -> Iterator[Visit]:
    """Every instruction that runs, in textual order, called computations behind the instruction that calls them."""
    yield from _walk(module, Visit(None, module.entry))


def _walk(module: Module, place: Visit) -> Iterator[Visit]:
    for instruction in module.computations[place.computation].values():
        here = dataclasses.replace(place, instruction=instruction)
        yield here
        called = instruction.called()
        if instruction.opcode == "while":
            trips = trip_count(module, instruction)
            here = dataclasses.replace(
                here,
                times=here.times * (1 if trips is None else trips),
                loops=here.loops + 1,
                counted=here.counted and trips is not None,
            )
        elif instruction.opcode == "conditional":
            here = dataclasses.replace(here, branches=(*here.branches, len(called)))
        elif instruction.opcode == "fusion":
            here = dataclasses.replace(here, fused=True)
        for name in called:
            yield from _walk(module, dataclasses.replace(here, computation=name))

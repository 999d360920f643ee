"""Which collectives a compiled step runs, and what each of them moves: read from the compiled module's text.

Bytes are those of the whole array that the members of a group end up with or start from, on one device: the result
of an all-gather, the operand of a reduce-scatter, either of the others (they are equal). What a device must send
follows: `Collective.sent`.
"""

import dataclasses
import math
import re
from collections.abc import Iterable

import hlo_module
from hlo_module import Instruction, Module, Visit

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# A TPU writes a reduce-scatter as a fusion of an all-reduce with the slice that is kept.
FUSED_SCATTER = "all-reduce-scatter"


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a module.

    Attributes:
      kind: one of KINDS.
      dtypes: element types, each once.
      largest: bytes of its largest array.
      bytes: of all its arrays (several may be combined), once.
      group: members of a group.
      times: runs in one step, inside loops more than once; if every conditional takes the branch with it.
      loops: loops around it.
      branch: stands in a branch of a conditional.
      overlaps: started at one place and waited for at another, so that something can be computed in between.
      op_name: where in the program it comes from.
    """

    kind: str
    dtypes: tuple[str, ...]
    largest: int
    bytes: int
    group: int
    times: int
    loops: int
    branch: bool
    overlaps: bool
    op_name: str

    @property
    def moved(self) -> int:
        """Bytes of one step: `bytes` times `times`."""
        return self.bytes * self.times

    @property
    def sent(self) -> float:
        """Bytes that one device must send in a step, at the least (a ring does it with that)."""
        share = (self.group - 1) / self.group
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0, "collective-broadcast": 1.0}
        return self.moved * factor.get(self.kind, share)


def collectives(text: str, devices: int) -> list[Collective]:
    """Every collective that the module of `text` runs on so many devices, largest first.

    Those of groups of one (which do nothing) are left out. ValueError for replica groups of an unknown form.
    """
    module, found, seen = hlo_module.parse(text), [], set()
    for visit in hlo_module.walk(module):
        one = _collective(module, visit, devices)
        if one is None or one.group == 1:
            continue
        if visit.fused:  # the start, the middle and the end of an asynchronous one are three fusions on a TPU
            channel = (one.kind, one.op_name, re.search(r"channel_id=\d+", visit.instruction.attributes)[0])
            if channel in seen:
                continue
            seen.add(channel)
        found.append(one)
    return sorted(found, key=lambda one: -one.moved)


def _collective(module: Module, visit: Visit, devices: int) -> Collective | None:
    instruction = visit.instruction
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    group = group_size(instruction.attributes, devices)
    shapes = _whole(module, visit, kind)
    sizes = [shape.bytes for shape in shapes]
    if kind == "reduce-scatter":
        sizes = [size * group for size in sizes]
    if kind == "all-reduce" and visit.computation.startswith(FUSED_SCATTER):
        kind = "reduce-scatter"
    return Collective(
        kind=kind,
        dtypes=tuple(sorted({shape.dtype for shape in shapes})),
        # The operands of an all-to-all in tuple form are the parts of one array, one for each member.
        largest=sum(sizes) if kind == "all-to-all" and len(sizes) == group else max(sizes, default=0),
        bytes=sum(sizes),
        group=group,
        times=visit.times,
        loops=visit.loops,
        branch=bool(visit.branches),
        overlaps=instruction.opcode.endswith("-start") or _begins(module, visit),
        op_name=instruction.op_name,
    )


def _begins(module: Module, visit: Visit) -> bool:
    """In the first of the three fusions that a TPU makes of an asynchronous collective."""
    inside = module.computations[visit.computation].values()
    return visit.fused and any("AsyncCollectiveStart" in one.attributes for one in inside)


def _whole(module: Module, visit: Visit, kind: str) -> tuple:
    """The shapes of the result; the start of an asynchronous form returns its operands and contexts as well."""
    instruction = visit.instruction
    shapes = instruction.shapes
    if not instruction.opcode.endswith("-start") or kind == "all-reduce":
        return shapes
    operands = _count(module, visit.computation, instruction)
    return shapes[operands : 2 * operands]


def _count(module: Module, computation: str, instruction: Instruction) -> int:
    """How many arrays the operands are."""
    inside = module.computations[computation]
    return sum(len(inside[name].shapes) for name in instruction.operands)


def group_size(attributes: str, devices: int) -> int:
    """Members of a replica group, from an instruction's attributes in any of XLA's notations."""
    if "source_target_pairs=" in attributes:
        pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", attributes)[1]
        pairs = re.findall(r"(\d+),(\d+)", pairs)
        return 2 if any(a != b for a, b in pairs) else 1
    text = attributes.partition("replica_groups=")[2]
    if text.startswith("mesh["):  # mesh['data'=4,'fsdp'=2] {'fsdp'}; of 'data':(1)2 a part of the axis
        axes = re.match(r"mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text)
        sizes = {name.strip("'\" "): int(size) for name, size in re.findall(r"([^,=]+)=(\d+)", axes[1])}
        used = re.findall(r"'?(\w+)'?(?::\(\d+\)(\d+))?", re.sub(r"(\w)'?:\(", r"\1':(", axes[2]))
        return math.prod(int(part) if part else sizes[name] for name, part in used)
    iota = re.match(r"\[(\d+),(\d+)\]<=", text)
    if iota:
        return int(iota[2])
    if text.startswith("{}"):
        return devices
    listed = re.match(r"\{\{([\d,]*)\}", text)
    if listed:
        return len(listed[1].split(","))
    raise ValueError(f"replica groups of an unknown form: {text[:80]!r}")


def table(found: Iterable[Collective]) -> list[dict]:
    """A summary by kind, element type, size of group and place: how many, bytes of a step, the largest array."""
    rows = {}
    for one in found:
        key = (one.kind, "+".join(one.dtypes), one.group, one.loops > 0, one.branch, one.overlaps)
        row = rows.setdefault(key, {"count": 0, "runs": 0, "bytes": 0, "sent": 0.0, "largest": 0})
        row["count"] += 1
        row["runs"] += one.times
        row["bytes"] += one.moved
        row["sent"] += one.sent
        row["largest"] = max(row["largest"], one.largest)
    names = ("kind", "dtypes", "group", "in_loop", "in_branch", "overlaps")
    return [dict(zip(names, key)) | row for key, row in rows.items()]

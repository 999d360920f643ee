"""What a compiled step computes and reads on one device: read from the compiled module's text.

The compiler's own `cost_analysis()` counts the body of a loop once; here it counts as often as it runs. Of conditionals
the mean over the branches is taken, which for the first pass of self-conditioning (probability 1/2) is the mean step.

    flops   2 x multiply-adds of matrix products
    bytes   of the operands and results that live in main memory, of every instruction that is not part of a fusion
    cycles  the compiler's estimate, where it made one (fusions; no collectives, no copies)
"""

import math
import re

import hlo_module
from hlo_module import Instruction, Module, Shape, Visit

CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# These name memory or run other instructions, and move nothing themselves.
IDLE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "replica-id",
    "iota",
}
IDLE_CALLS = re.compile(r'custom_call_target="(AllocateBuffer|ConcatBitcast|AssumeGatherIndicesInBound)"')


def cost(text: str) -> dict[str, float]:
    """`flops`, `bytes` and `cycles` of one run of the module of `text` on one device."""
    module = hlo_module.parse(text)
    total = {"flops": 0.0, "bytes": 0.0, "cycles": 0.0}
    for visit in hlo_module.walk(module):
        total["flops"] += visit.mean_times * product_flops(module, visit)
        if not visit.fused:
            total["bytes"] += visit.mean_times * main_memory_bytes(module, visit)
            estimated = CYCLES.search(visit.instruction.attributes)
            total["cycles"] += visit.mean_times * (int(estimated[1]) if estimated else 0)
    return total


def product_flops(module: Module, visit: Visit) -> float:
    """Of a `dot` or `convolution`, 0 for any other instruction. Zeros of padding and dilation are not counted."""
    instruction = visit.instruction
    if instruction.opcode not in ("dot", "convolution"):
        return 0.0
    inside = module.computations[visit.computation]
    left, right = (inside[name].shapes[0] for name in instruction.operands)
    (out,) = instruction.shapes
    if instruction.opcode == "dot":
        dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)[1]
        return 2.0 * out.size * math.prod(left.dims[int(dim)] for dim in dims.split(",") if dim)
    return 2.0 * _multiply_adds(instruction.attributes, left, right, out)


def _multiply_adds(attributes: str, left: Shape, right: Shape, out: Shape) -> int:
    """Multiply-adds of a convolution whose operands are both inside the array."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes).groups()
    sizes = [dict(zip(label, shape.dims, strict=True)) for label, shape in zip(labels, (left, right, out))]
    window = re.search(r"window=\{([^}]*)\}", attributes)
    options = dict(re.findall(r"(\w+)=([\w\-]+)", window[1])) if window else {}
    pairs = sizes[2]["b"] * sizes[2]["f"] * sizes[1]["i"]
    for name in filter(str.isdigit, labels[0]):  # spatial dimension 0, 1, ... of the window
        given = {key: text.split("x")[int(name)] for key, text in options.items()}
        low = int(given.get("pad", "0").split("_")[0])
        stride, inner, outer = (int(given.get(key, 1)) for key in ("stride", "lhs_dilate", "rhs_dilate"))
        places = (
            place * stride + tap * outer - low
            for place in range(sizes[2][name])
            for tap in range(sizes[1][name])
        )
        pairs *= sum(0 <= place < sizes[0][name] * inner and place % inner == 0 for place in places)
    return pairs


def main_memory_bytes(module: Module, visit: Visit) -> int:
    """Bytes that an instruction reads from and writes to main memory."""
    instruction = visit.instruction
    opcode = instruction.opcode
    if opcode in IDLE or opcode.endswith(("-done", "-update")) or IDLE_CALLS.search(instruction.attributes):
        return 0
    inside = module.computations[visit.computation]
    operands = [inside[name] for name in instruction.operands]
    if opcode == "fusion":
        return _fusion_bytes(module, instruction, operands)
    results = instruction.shapes
    if opcode == "copy-start":  # (the array in its new place, the old one, a context)
        results = results[:1]
    elif opcode.endswith("-start") and len(results) > len(operands):  # (the operands, the results, contexts)
        results = results[len(operands) : 2 * len(operands)]
    if opcode == "dynamic-update-slice":
        return 2 * _held(operands[1].shapes)
    if opcode.removesuffix("-start") in ("dynamic-slice", "slice", "gather"):
        part = sum(shape.bytes for shape in results)  # of an operand as much is read as the result is large
        return _held(results) + min(part, _held(operands[0].shapes))
    return _held(results) + sum(_held(one.shapes) for one in operands)


def _held(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.bytes for shape in shapes if shape.space == 0)


def _fusion_bytes(module: Module, fusion: Instruction, operands: list[Instruction]) -> int:
    """A fusion reads of an operand only what it slices out of it, and writes of a result only what it updates."""
    (name,) = fusion.called()
    inside = module.computations[name]
    total = 0
    for one in inside.values():
        if one.opcode == "parameter":
            shapes = operands[int(one.operands[0])].shapes
            part = _part_read(inside, one.name)
            total += _held(shapes) if part is None else min(part, _held(shapes))
    root = next(one for one in inside.values() if one.root)
    results = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for shape, made in zip(fusion.shapes, results):
        while made.opcode in ("bitcast", "convert", "copy"):
            made = inside[made.operands[0]]
        updates = made.opcode == "dynamic-update-slice"
        written = inside[made.operands[1]].shapes[0].size if updates else shape.size
        total += _held((shape,)) * written // max(shape.size, 1)
    return total


def _part_read(inside: dict[str, Instruction], name: str) -> int | None:
    """Bytes that a fusion's instructions take of the operand `name`; None = all of it."""
    total = 0
    for user in inside.values():
        if name not in user.operands:
            continue
        if user.opcode == "dynamic-slice" and user.operands[0] == name:
            total += sum(shape.bytes for shape in user.shapes)
        elif user.opcode in ("bitcast", "convert"):
            part = _part_read(inside, user.name)
            if part is None:
                return None
            total += part
        elif not (user.opcode == "dynamic-update-slice" and user.operands[0] == name):
            return None
    return total

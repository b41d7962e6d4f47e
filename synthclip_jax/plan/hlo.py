"""HLO text, as `jax.stages.Compiled.as_text()` gives it, read into computations and instructions."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

_ITEM_BITS = {"pred": 8, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array as it lies in memory: `size` in bytes counts the padding of its tiles, `data` does not."""

    size: int
    data: int
    space: int  # 0: the chip's memory (HBM); others are on the chip
    kind: str = ""  # such as bf16
    dims: tuple[int, ...] = ()

    @classmethod
    def parse(cls, kind: str, shape: str, layout: str | None) -> "Array":
        bits = _ITEM_BITS.get(kind) or int((re.search(r"\d+", kind) or ["0"])[0])
        dims = [int(size.lstrip("<=")) for size in shape.split(",") if size]
        order, _, rest = (layout or "").partition(":")
        physical = [dims[int(axis)] for axis in order.split(",") if axis] if order else dims[::-1]
        tile = re.match(r"T\(([\d,]+)\)", rest)
        if tile and physical:  # minor dimension first, as tiles are aligned to it
            for i, size in enumerate(reversed([int(size) for size in tile[1].split(",")])):
                if i < len(physical):
                    physical[i] = -(-physical[i] // size) * size
        space = re.search(r"S\((\d+)\)", rest)
        size, data = (math.prod(counts) * bits // 8 for counts in (physical, dims))
        return cls(size, data, int(space[1]) if space else 0, kind, tuple(dims))


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line; of constants and parameters, `attributes` is the value or the number."""

    name: str
    arrays: tuple[Array, ...]  # the parts of its result
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    def called(self, attribute: str) -> str:
        """The computation that an attribute such as `body` or `calls` names; empty if there is none."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else ""

    def branches(self) -> list[str]:
        """The computations of which a conditional runs one."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        if listed:
            return _NAME.findall(listed[1])
        return [name for key in ("true_computation", "false_computation") if (name := self.called(key))]


@dataclasses.dataclass
class Computation:
    """Instructions by name, in their order."""

    name: str
    instructions: dict[str, Instruction] = dataclasses.field(default_factory=dict)
    root: str = ""

    def arrays(self, name: str) -> tuple[Array, ...]:
        """The parts of the result of an instruction; none if it is not here."""
        instruction = self.instructions.get(name)
        return instruction.arrays if instruction else ()

    @functools.cached_property
    def parameters(self) -> list[str]:
        """Names, in the order of the caller's operands."""
        found = [x for x in self.instructions.values() if x.opcode == "parameter"]
        return [x.name for x in sorted(found, key=lambda x: int(x.attributes))]

    @functools.cached_property
    def users(self) -> Mapping[str, list[Instruction]]:
        """The instructions that take a result as an operand."""
        users: dict[str, list[Instruction]] = {}
        for instruction in self.instructions.values():
            for operand in instruction.operands:
                users.setdefault(operand, []).append(instruction)
        return users


class Program:
    """The computations of a program, by name.

    Attributes:
      entry: name of the computation that runs.
      devices: on how many devices it runs.
    """

    def __init__(self, text: str):
        header = re.search(r"num_partitions=(\d+)", text)
        self.devices = int(header[1]) if header else 1
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        current = None
        for line in text.splitlines():
            if found := _COMPUTATION.match(line):
                current = self.computations[found[2]] = Computation(found[2])
                self.entry = found[2] if found[1] else self.entry
            elif current is not None and (found := _INSTRUCTION.match(line)):
                instruction = _parse(found[2], found[3])
                current.instructions[instruction.name] = instruction
                current.root = instruction.name if found[1] else current.root

    def rounds(self, loop: Instruction) -> int | None:
        """How often a loop runs its body, or None where the text does not tell."""
        known = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes)
        if known:
            return int(known[1])
        computation = self.computations[loop.called("condition")]
        compare, bounds = computation.instructions[computation.root], []
        if compare.opcode == "fusion":
            bounds += [_constant(computation, operand) for operand in compare.operands]
            computation = self.computations[compare.called("calls")]
            compare = computation.instructions[computation.root]
        bounds += [_constant(computation, operand) for operand in compare.operands]
        found = [bound for bound in bounds if bound is not None]
        # What jax.lax.scan and fori_loop become: counting up from 0.
        return found[0] if compare.opcode == "compare" and "direction=LT" in compare.attributes and found else None


def _constant(computation: Computation, name: str) -> int | None:
    instruction = computation.instructions.get(name)
    if instruction is None or instruction.opcode != "constant" or not instruction.attributes.isdigit():
        return None
    return int(instruction.attributes)


def _parse(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside, attributes = rest[opening + 1 : closing], rest[closing + 1 :]
    opcode = rest[:opening]
    arrays = tuple(Array.parse(*found) for found in _ARRAY.findall(shape))
    if opcode in ("parameter", "constant"):  # not operands but a number
        return Instruction(name, arrays, opcode, (), inside)
    return Instruction(name, arrays, opcode, tuple(_NAME.findall(inside)), attributes)


def _closing(text: str, opening: int) -> int:
    """Where the bracket at `opening` is closed."""
    depth = 0
    for i in range(opening, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if not depth:
            return i
    return len(text)

"""What a compiled program moves: collectives, and bytes to and from the chip's memory.

XLA's own cost analysis counts the body of a loop once. Here it counts as often as it runs, where the text tells; of a
conditional, the branch that moves most counts.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

from synthclip_jax.plan.hlo import Array, Computation, Instruction, Program

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

# What moves nothing itself: names for parts of other results, and containers whose contents are counted. Neither do the
# ends of what started earlier, which are called -done.
_CALLS = ("call", "call-start", "async-start")
_FREE = (
    *_CALLS,
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "async-update"),
    *("after-all", "partition-id", "replica-id", "domain", "opt-barrier"),
)
_CHAIN = "chain"


@dataclasses.dataclass(frozen=True)
class Collective:
    """All runs of one collective in one run of the program, on one device.

    Attributes:
      kind: one of COLLECTIVES.
      count: how often it runs.
      payload: bytes of its result at each run (of its operand for reduce-scatter).
      wire: bytes that a device must send at each run, by the best algorithm on a ring.
    """

    kind: str
    count: int
    payload: int
    wire: float


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one device does in one run of the program: bytes to and from its memory, and collectives.

    `loops_unknown` counts loops whose number of rounds is not known; they count as one round.
    """

    memory: float
    collectives: tuple[Collective, ...]
    loops_unknown: int = 0

    @property
    def wire(self) -> float:
        """Bytes that a device sends."""
        return sum(collective.count * collective.wire for collective in self.collectives)


def traffic(text: str) -> Traffic:
    """Reads `jax.stages.Compiled.as_text()` of a program for TPUs or CPUs."""
    return count(Program(text))


def count(program: Program) -> Traffic:
    """What a program moves that has been read."""
    totals = _Count(program).totals(program.entry)
    collectives = sorted(totals.collectives.values(), key=lambda c: -c.count * c.wire)
    return Traffic(totals.memory, tuple(collectives), totals.loops_unknown)


@dataclasses.dataclass
class _Totals:
    memory: float = 0.0
    collectives: dict[str, Collective] = dataclasses.field(default_factory=dict)
    loops_unknown: int = 0

    def add(self, other: "_Totals", times: int = 1) -> None:
        self.memory += times * other.memory
        self.loops_unknown += other.loops_unknown
        for key, collective in other.collectives.items():
            count, so_far = times * collective.count, self.collectives.get(key)
            if so_far:
                # One that runs beside other work (a chain) is written into each of the fusions, or rounds of a loop,
                # that it runs beside. Where it starts it is written once.
                count = min(count, so_far.count) if key.startswith(_CHAIN) else count + so_far.count
            self.collectives[key] = dataclasses.replace(collective, count=count)


class _Count:
    def __init__(self, program: Program):
        self.program = program
        self._totals: dict[str, _Totals] = {}

    def totals(self, name: str) -> _Totals:
        """Of one run of a computation, with all that it calls."""
        if name not in self._totals:
            totals = self._totals[name] = _Totals()
            computation = self.program.computations[name]
            for instruction in computation.instructions.values():
                totals.memory += self._memory(computation, instruction)
                if _kind(instruction):
                    totals.add(self._collective(computation, instruction))
                for called, times in self._calls(instruction, totals):
                    totals.add(called, times)
        return self._totals[name]

    def _calls(self, instruction: Instruction, totals: _Totals) -> Iterator[tuple[_Totals, int]]:
        if instruction.opcode == "while":
            rounds = self.program.rounds(instruction)
            totals.loops_unknown += rounds is None
            yield self.totals(instruction.called("body")), 1 if rounds is None else rounds
        elif instruction.opcode == "conditional":
            yield max((self.totals(name) for name in instruction.branches()), key=lambda branch: branch.memory), 1
        elif instruction.opcode in _CALLS:
            yield self.totals(instruction.called("calls") or instruction.called("to_apply")), 1
        elif instruction.opcode == "fusion":  # its memory is counted where it is called
            yield dataclasses.replace(self.totals(instruction.called("calls")), memory=0.0), 1

    def _collective(self, computation: Computation, instruction: Instruction) -> _Totals:
        kind = _kind(instruction)
        operands = sum(array.data for name in instruction.operands for array in computation.arrays(name))
        if kind in ("reduce-scatter", "collective-permute"):
            payload = operands
        else:  # what starts an all-gather returns its operands as well
            gathers = instruction.opcode == "all-gather-start"
            payload = sum(array.data for array in instruction.arrays) - (operands if gathers else 0)
        # TPU: a reduce-scatter is a fusion of this name, of an all-reduce and a slice.
        if kind == "all-reduce" and "all-reduce-scatter" in f"{computation.name} {instruction.name}":
            kind = "reduce-scatter"
        n = _group_size(instruction.attributes, self.program.devices)
        share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}.get(kind, (n - 1) / n)
        chain = re.search(r'chain_id="(\d+)"', instruction.attributes)
        channel = re.search(r"channel_id=(\d+)", instruction.attributes)
        # Names are unique in a program; the collectives of a chain are copies of one.
        key = f"{_CHAIN} {chain[1]}, {kind} {channel[1]}" if chain and channel else instruction.name
        return _Totals(0.0, {key: Collective(kind, 1, payload, payload * share)})

    # ---- Memory ---------------------------------------------------------------------------------------------------

    def _memory(self, computation: Computation, instruction: Instruction) -> float:
        """Bytes to and from the chip's memory by one instruction of a computation that is not fused."""
        free = instruction.opcode in _FREE or instruction.opcode.endswith("-done")
        if free or "AllocateBuffer" in instruction.attributes:
            return 0
        written = _in_memory(instruction.arrays)
        operands = [_in_memory(computation.arrays(name)) for name in instruction.operands]
        match instruction.opcode:
            case "dynamic-slice" | "slice" | "gather":
                return 2 * written
            case "dynamic-update-slice":
                return 2 * operands[1]
            case "copy-start":  # its result is the copy and the original
                return operands[0] + _in_memory(instruction.arrays[:1])
            case "slice-start" | "dynamic-slice-start":  # the original and the slice
                return min(operands[0], instruction.arrays[1].size) + _in_memory(instruction.arrays[1:2])
            case "fusion":
                inner = self.program.computations[instruction.called("calls")]
                sizes = zip(operands, inner.parameters, strict=True)
                reads = sum(min(size, self._read(inner, parameter)) for size, parameter in sizes)
                return reads + self._written(inner, inner.root, instruction.arrays)
        return written + sum(operands)

    def _read(self, computation: Computation, name: str) -> float:
        """Bytes that a fused computation reads of what is called `name` in it."""
        whole = sum(array.size for array in computation.arrays(name))
        total = 0.0
        for user in computation.users.get(name, ()):
            match user.opcode:
                case "dynamic-slice" | "slice" | "gather" if user.operands[0] == name:
                    total += sum(array.size for array in user.arrays)
                case "dynamic-update-slice" if user.operands[0] == name:
                    pass  # written in place
                case "bitcast":
                    total += self._read(computation, user.name)
                case "fusion":
                    inner = self.program.computations[user.called("calls")]
                    pairs = zip(user.operands, inner.parameters, strict=True)
                    total += sum(self._read(inner, parameter) for operand, parameter in pairs if operand == name)
                case "tuple" | "custom-call":
                    pass  # passed on
                case _ if not _kind(user):
                    total += whole
        return min(total, whole)

    def _written(self, computation: Computation, name: str, arrays: Sequence[Array]) -> float:
        """Bytes that a fused computation writes as its result called `name`, which lies in `arrays` outside of it."""
        result = computation.instructions[name]
        size = _in_memory(arrays)
        match result.opcode:
            case "tuple" if len(result.operands) == len(arrays):
                parts = zip(result.operands, arrays, strict=True)
                return sum(self._written(computation, part, [array]) for part, array in parts)
            case "parameter" | "custom-call":
                return 0
            case "bitcast":
                return min(size, self._written(computation, result.operands[0], arrays))
            case "fusion":
                inner = self.program.computations[result.called("calls")]
                return min(size, self._written(inner, inner.root, arrays))
            case "dynamic-update-slice":
                return min(size, sum(array.size for array in computation.arrays(result.operands[1])))
        return 0 if _kind(result) else size


def _kind(instruction: Instruction) -> str:
    """Of a collective; empty for other instructions."""
    kind = instruction.opcode.removesuffix("-start")
    return kind if kind in COLLECTIVES else ""


def _in_memory(arrays: Sequence[Array]) -> int:
    return sum(array.size for array in arrays if array.space == 0)


def _group_size(attributes: str, devices: int) -> int:
    """How many devices take part in one group of a collective."""
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return found[1].count(",") + 1
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(found[1])
    if found := re.search(r"replica_groups=@?mesh\w*\[([^\]]*)\]\s*\{([^}]*)\}", attributes):
        sizes = {axis: int(size) for axis, size in re.findall(r"'?(\w+)'?=(\d+)", found[1])}
        chosen = re.findall(r"'?(\w+)'?(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part) if part else sizes.get(axis, 1) for axis, part in chosen)
    return devices

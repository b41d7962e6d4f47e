"""Matrix products in a compiled program, counted as often as they run."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from synthclip_jax.plan.hlo import Computation, Instruction, Program

EIGHT_BITS = ("s8", "f8e4m3fn", "f8e5m2")  # XLA's names of types
_CALLS = ("fusion", "call", "call-start", "async-start")


class Products(NamedTuple):
    """Matrix products of one device in one run of the program.

    Attributes:
      eight: FLOPs of factors with 8 bits.
      half: FLOPs of factors with 16 bits, or of float32 factors that a TPU rounds to them.
      tf32: FLOPs of float32 factors that a GPU may round (half as fast as `half`).
      float32: FLOPs of float32 factors in full precision.
      attention_forward, attention_backward: how often a kernel of attention runs. Its FLOPs are in the others.
    """

    eight: float = 0.0
    half: float = 0.0
    tf32: float = 0.0
    float32: float = 0.0
    attention_forward: int = 0
    attention_backward: int = 0

    @property
    def flops(self) -> float:
        return self.eight + self.half + self.tf32 + self.float32

    def seconds(self, peak: float, float32_cost: float, eight_bits_gain: float = 2.0) -> float:
        """Time of them at full speed, on a device with so many dense bf16 FLOP/s."""
        return (self.eight / eight_bits_gain + self.half + 2 * self.tf32 + float32_cost * self.float32) / peak


def count(program: Program, of_instruction: Callable[[Computation, Instruction], Mapping[str, float]]) -> Products:
    """The sum of what `of_instruction` says, by the names of `Products`."""
    return Products(**_Sum(program, of_instruction).of(program.entry))


class _Sum:
    def __init__(self, program: Program, of_instruction: Callable[[Computation, Instruction], Mapping[str, float]]):
        self._program, self._of_instruction = program, of_instruction
        self._found: dict[str, Counter[str]] = {}

    def of(self, name: str) -> Counter[str]:
        """In one run of a computation, with all that it calls."""
        if name not in self._found:
            found = self._found[name] = Counter()
            computation = self._program.computations[name]
            for instruction in computation.instructions.values():
                found.update(self._of_instruction(computation, instruction))
                for called, times in self._calls(instruction):
                    found.update({kind: times * value for kind, value in self.of(called).items()})
        return self._found[name]

    def _calls(self, instruction: Instruction) -> Iterator[tuple[str, int]]:
        if instruction.opcode == "while":
            yield instruction.called("body"), self._program.rounds(instruction) or 1
        elif instruction.opcode == "conditional":
            yield max(instruction.branches(), key=lambda name: sum(self.of(name).values())), 1
        elif instruction.opcode in _CALLS:
            yield instruction.called("calls") or instruction.called("to_apply"), 1

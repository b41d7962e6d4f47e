"""A program that was compiled for NVIDIA GPUs: what it moves, and the products in it.

XLA writes such programs otherwise than those for TPUs. Products are fusions in Triton's language (`kind=kCustom`) or
calls of cuBLAS; attention is a call of cuDNN, which writes no scores to memory; what runs on another stream is a
`fusion-start`, whose result holds its operands as well. They are read here into the words that
`synthclip_jax.plan.traffic` counts.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from synthclip_jax.plan.hlo import Array, Computation, Instruction, Program
from synthclip_jax.plan.traffic import Traffic, count

_LIBRARIES = re.compile(r'custom_call_target="__(cublas|cudnn)\$')
_ATTENTION = re.compile(r'custom_call_target="__cudnn\$fmha\w*?(Backward)?(?:\$f8)?"')
_CALLS = ("fusion", "call", "call-start", "async-start")
# Space 1 is memory of the card as well, which NCCL has registered; host memory is 5.
_CARD = (0, 1)
FORWARD, BACKWARD = 2, 5  # products in attention: scores and sums; backward the scores once more, and four gradients


class Products(NamedTuple):
    """Matrix products of one device in one run of the program.

    Attributes:
      half: FLOPs of factors with 16 bits.
      tf32: FLOPs of float32 factors that the card may round (half as fast as `half`).
      float32: FLOPs of float32 factors in full precision.
      attention_forward, attention_backward: how often cuDNN's fused attention runs. Its FLOPs are in the others.
    """

    half: float = 0.0
    tf32: float = 0.0
    float32: float = 0.0
    attention_forward: int = 0
    attention_backward: int = 0

    @property
    def flops(self) -> float:
        return self.half + self.tf32 + self.float32

    def seconds(self, peak: float, float32_cost: float) -> float:
        """Time of them at full speed, on a device with so many dense bf16 FLOP/s."""
        return (self.half + 2 * self.tf32 + float32_cost * self.float32) / peak


def read(text: str) -> tuple[Traffic, Products]:
    """Reads `jax.stages.Compiled.as_text()` of a program for GPUs."""
    program = Program(text)
    for computation in program.computations.values():
        for instruction in list(computation.instructions.values()):
            computation.instructions[instruction.name] = _in_common_words(computation, instruction)
    return count(program), Products(**_Products(program).of(program.entry))


def _in_common_words(computation: Computation, instruction: Instruction) -> Instruction:
    opcode, arrays, attributes = instruction.opcode, instruction.arrays, instruction.attributes
    given = sum(len(computation.arrays(name)) for name in instruction.operands)
    if opcode == "fusion-start":  # its result: operands, results, a number
        opcode, arrays = "fusion", arrays[given:-1]
    elif opcode in ("all-gather-start", "collective-permute-start"):  # operands, results
        opcode, arrays = opcode.removesuffix("-start"), arrays[given : 2 * given]
    elif opcode == "custom-call" and len(arrays) > 1 and _LIBRARIES.search(attributes):
        # Scratch space comes last. How much of it is used is not known.
        arrays = arrays[:-1] if arrays[-1].kind in ("s8", "u8") else arrays
    arrays = tuple(dataclasses.replace(array, space=0) if array.space in _CARD else array for array in arrays)
    return dataclasses.replace(instruction, opcode=opcode, arrays=arrays)


class _Products:
    """Sums up products by the names of `Products`."""

    def __init__(self, program: Program):
        self.program = program
        self._found: dict[str, Counter[str]] = {}

    def of(self, name: str) -> Counter[str]:
        """In one run of a computation, with all that it calls."""
        if name not in self._found:
            found = self._found[name] = Counter()
            computation = self.program.computations[name]
            for instruction in computation.instructions.values():
                found.update(_products(computation, instruction))
                for called, times in self._calls(instruction):
                    found.update({kind: times * value for kind, value in self.of(called).items()})
        return self._found[name]

    def _calls(self, instruction: Instruction) -> Iterator[tuple[str, int]]:
        if instruction.opcode == "while":
            yield instruction.called("body"), self.program.rounds(instruction) or 1
        elif instruction.opcode == "conditional":
            yield max(instruction.branches(), key=lambda name: sum(self.of(name).values())), 1
        elif instruction.opcode in _CALLS:
            yield instruction.called("calls") or instruction.called("to_apply"), 1


def _products(computation: Computation, instruction: Instruction) -> dict[str, float]:
    attributes = instruction.attributes
    if instruction.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", attributes)
    elif instruction.opcode != "custom-call":
        return {}
    elif fused := _ATTENTION.search(attributes):
        return _attention(computation, instruction, backward=bool(fused[1]))
    elif '"__cublas$' in attributes:
        contracted = re.search(r'"lhs_contracting_dimensions":\s*\[([^\]]*)\]', attributes)
    else:
        return {}
    left = computation.arrays(instruction.operands[0])[0]
    inner = math.prod(left.dims[int(axis)] for axis in re.findall(r"\d+", contracted[1] if contracted else ""))
    return {_precision(left, attributes): 2.0 * math.prod(instruction.arrays[0].dims) * inner}


def _precision(factor: Array, attributes: str) -> str:
    if factor.kind not in ("f32", "f64"):
        return "half"
    return "float32" if re.search(r"operand_precision\W+highest", attributes, re.IGNORECASE) else "tf32"


def _attention(computation: Computation, instruction: Instruction, backward: bool) -> dict[str, float]:
    scores = re.search(r'"intermediate_tensor_shape":.*?"dimensions":\s*\[([^\]]*)\]', instruction.attributes)
    elements = math.prod(int(size) for size in re.findall(r"\d+", scores[1])) if scores else 0
    size = computation.arrays(instruction.operands[0])[0].dims[-1]  # of a head
    half = 0.5 if re.search(r'"mask_type":\s*"(PADDING_)?CAUSAL', instruction.attributes) else 1.0
    flops = 2.0 * (BACKWARD if backward else FORWARD) * elements * size * half
    return {"half": flops, "attention_backward" if backward else "attention_forward": 1}

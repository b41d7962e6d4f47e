"""A program that was compiled for NVIDIA GPUs: what it moves, and the products in it.

XLA writes such programs otherwise than those for TPUs. Products are fusions in Triton's language (`kind=kCustom`) or
calls of cuBLAS; attention is a call of cuDNN, which writes no scores to memory; what runs on another stream is a
`fusion-start`, whose result holds its operands as well. They are read here into the words that
`synthclip_jax.plan.traffic` counts.
"""

import dataclasses
import math
import re

from synthclip_jax.plan import products
from synthclip_jax.plan.hlo import Array, Computation, Instruction, Program
from synthclip_jax.plan.traffic import Traffic, count

_LIBRARIES = re.compile(r'custom_call_target="__(cublas|cudnn)\$')
_ATTENTION = re.compile(r'custom_call_target="__cudnn\$fmha\w*?(Backward)?(?:\$f8)?"')
# Space 1 is memory of the card as well, which NCCL has registered; host memory is 5.
_CARD = (0, 1)
FORWARD, BACKWARD = 2, 5  # products in attention: scores and sums; backward the scores once more, and four gradients


def read(text: str) -> tuple[Traffic, products.Products]:
    """Reads `jax.stages.Compiled.as_text()` of a program for GPUs."""
    program = Program(text)
    for computation in program.computations.values():
        for instruction in list(computation.instructions.values()):
            computation.instructions[instruction.name] = _in_common_words(computation, instruction)
    return count(program), products.count(program, _products)


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
    if factor.kind in products.EIGHT_BITS:
        return "eight"
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

"""A program that was compiled for TPUs: what it moves, and the products in it.

XLA writes products as convolutions, those of many matrices over dimensions that look like an image's. Kernels in Pallas
are calls that say themselves what they compute (`synthclip_jax.model.short_attention`).
"""

import re

from synthclip_jax.plan import products
from synthclip_jax.plan.hlo import Computation, Instruction, Program
from synthclip_jax.plan.traffic import Traffic, count

_KERNEL = re.compile(r'"cost_estimate":\{"flops":"(\d+)"')


def read(text: str) -> tuple[Traffic, products.Products]:
    """Reads `jax.stages.Compiled.as_text()` of a program for TPUs."""
    program = Program(text)
    return count(program), products.count(program, _products)


def _products(computation: Computation, instruction: Instruction) -> dict[str, float]:
    attributes = instruction.attributes
    if instruction.opcode == "custom-call" and (kernel := _KERNEL.search(attributes)):
        found = {_precision(computation, instruction, exact=True): float(kernel[1])}
        if attention := re.search(r"\battention_(forward|backward)\b", attributes):
            found[attention[0]] = 1
        return found
    if instruction.opcode != "convolution":
        return {}
    exact = re.search(r"operand_precision=\{\w*highest", attributes) is not None
    return {_precision(computation, instruction, exact): 2.0 * _multiplications(computation, instruction)}


def _precision(computation: Computation, instruction: Instruction, exact: bool) -> str:
    kind = computation.arrays(instruction.operands[0])[0].kind
    if kind in products.EIGHT_BITS:
        return "eight"
    return "float32" if exact and kind == "f32" else "half"


def _multiplications(computation: Computation, instruction: Instruction) -> int:
    """Of numbers that are there: padding, and what fills gaps of a dilated input, is none."""
    image, kernel = (computation.arrays(name)[0].dims for name in instruction.operands[:2])
    result, attributes = instruction.arrays[0].dims, instruction.attributes
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    if not labels:
        return 0
    of_image, of_kernel, of_result = labels.groups()
    grouped = re.search(r"batch_group_count=(\d+)", attributes)
    batch = image[of_image.index("b")] // (int(grouped[1]) if grouped else 1)
    channels = kernel[of_kernel.index("i")] * kernel[of_kernel.index("o")]
    window = re.search(r"window=\{([^}]*)\}", attributes)
    settings = dict(part.split("=") for part in window[1].split()) if window else {}
    along = 1
    for dim in re.findall(r"\d", of_result):
        size, reach = image[of_image.index(dim)], kernel[of_kernel.index(dim)]
        place = {key: value.split("x")[int(dim)] for key, value in settings.items()}
        along *= _pairs(size, reach, result[of_result.index(dim)], place)
    return batch * channels * along


def _pairs(size: int, window: int, results: int, settings: dict[str, str]) -> int:
    """Along one dimension: how many pairs of a number of the input and one of the kernel meet in all results."""
    stride, spread, step = (int(settings.get(key, 1)) for key in ("stride", "lhs_dilate", "rhs_dilate"))
    before = int(settings.get("pad", "0_0").split("_")[0])
    places = (i * stride + j * step - before for i in range(results) for j in range(window))
    return sum(0 <= place <= (size - 1) * spread and place % spread == 0 for place in places)

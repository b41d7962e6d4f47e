"""Matrix products of a function, counted from its trace: as they are written, and as a matrix unit computes them."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# What JAX calls the parts of an equation that run as often as it does.
_CALLED = ("jaxpr", "call_jaxpr", "fun_jaxpr", "body_jaxpr")


class TiledProducts(NamedTuple):
    """FLOPs; a multiply and an add are 2.

    Attributes:
      written: of all products, by their shapes.
      tiled: of those that a unit takes as they are, with columns and depth filled up to its side.
      tiled_float32: the same of products of float32 in full precision, which take several of them.
    """

    written: float = 0.0
    tiled: float = 0.0
    tiled_float32: float = 0.0

    def plus(self, other: "TiledProducts", times: float = 1) -> "TiledProducts":
        """The sum, the other one so many times."""
        return TiledProducts(*(one + times * two for one, two in zip(self, other, strict=True)))


def tiled_products(jaxpr: Any, tile: int) -> TiledProducts:
    """Those of one run of what `jax.make_jaxpr` gives.

    A loop whose rounds are known counts as many times, another one once; of branches the one with most products; a
    kernel (Pallas, cuDNN) not at all: trace for a device that has none.

    Args:
      jaxpr: the trace.
      tile: side of the matrix unit; 1: nothing is filled up.
    """
    total = TiledProducts()
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, given = equation.primitive.name, equation.params
        if name in ("dot_general", "conv_general_dilated"):
            total = total.plus(_product(equation, tile))
        elif name == "cond":
            total = total.plus(
                max((tiled_products(branch, tile) for branch in given["branches"]), key=lambda p: p.written)
            )
        elif name != "pallas_call":
            rounds = given["length"] if name == "scan" else 1
            for inner in _inner(given):
                total = total.plus(tiled_products(inner, tile), rounds)
    return total


def _inner(given: dict[str, Any]) -> Iterator[Any]:
    for key in _CALLED:
        if key in given and hasattr(getattr(given[key], "jaxpr", given[key]), "eqns"):
            yield given[key]


def _product(equation: Any, tile: int) -> TiledProducts:
    left, right = (variable.aval for variable in equation.invars[:2])
    outputs = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "dot_general":
        (depths, _), (batches, _) = equation.params["dimension_numbers"]
        depth = math.prod(left.shape[axis] for axis in depths)
        rest = depth * math.prod(left.shape[axis] for axis in batches)
        outer = [math.prod(factor.shape) // rest for factor in (left, right)]
        window = 1
    else:  # the window is one product for each of its places
        kernel = [right.shape[axis] for axis in equation.params["dimension_numbers"].rhs_spec]
        outer, depth, window = kernel[:1], kernel[1], math.prod(kernel[2:])
    written = 2.0 * outputs * depth * window
    tiled = written * max(_filled(size, tile) for size in outer) * _filled(depth, tile)
    if left.dtype == jnp.float32 and equation.params["precision"] in (jax.lax.Precision.HIGHEST, _HIGHEST_TWICE):
        return TiledProducts(written, 0.0, tiled)
    return TiledProducts(written, tiled)


_HIGHEST_TWICE = (jax.lax.Precision.HIGHEST,) * 2


def _filled(size: int, tile: int) -> float:
    """How many times as large a size is when it is filled up."""
    return -(-size // tile) * tile / size

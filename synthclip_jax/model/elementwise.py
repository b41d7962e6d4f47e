"""Norm and activation, with gradients that keep little and are computed in one go with what stands around them.

What JAX's own differentiation keeps of them are several arrays, some of float32, which a scan over layers must store.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalise(
    x: Float[Array, "*b width"], scale: Float[Array, " width"], bias: Float[Array, " width"], eps: float, dtype: Any
) -> Float[Array, "*b width"]:
    """LayerNorm over the last axis, computed in float32, given in `dtype`."""
    return _normalise_forward(x, scale, bias, eps, dtype)[0]


def _normalise_forward(x, scale, bias, eps, dtype):
    y = x.astype(jnp.float32)
    mean = y.mean(-1, keepdims=True)
    y = y - mean
    factor = jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    y = y * factor * _row(scale, y) + _row(bias, y)
    return y.astype(dtype), (x, scale, mean, factor)


def _normalise_backward(eps, dtype, kept, gradient):
    """From `x` and two numbers a row. Left to itself JAX keeps arrays of float32, and XLA writes one more to sum it."""
    x, scale, mean, factor = kept
    gradient = gradient.astype(jnp.float32)
    y = (x.astype(jnp.float32) - mean) * factor
    rows = tuple(range(x.ndim - 1))
    d_scale, d_bias = (gradient * y).sum(rows), gradient.sum(rows)
    gradient = gradient * _row(scale, y)
    along = (gradient * y).mean(-1, keepdims=True)
    d_x = factor * (gradient - gradient.mean(-1, keepdims=True) - y * along)
    return d_x.astype(x.dtype), d_scale, d_bias


normalise.defvjp(_normalise_forward, _normalise_backward)


def gelu(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """`x` times the normal distribution's share below it (torch's exact GELU).

    In bfloat16 that share is right to 3e-7 by Abramowitz and Stegun's formula 7.1.26 and not by `erfc`, which takes
    twice the time of reading and writing the numbers on a GPU.
    """
    return _fast_gelu(x) if x.dtype == jnp.bfloat16 else jax.nn.gelu(x, approximate=False)


@jax.custom_vjp
def _fast_gelu(x):
    y = x.astype(jnp.float32)
    return (y * _share_below(y, jnp.exp(-0.5 * y * y))).astype(x.dtype)


def _fast_gelu_backward(x, gradient):
    y = x.astype(jnp.float32)
    bell = jnp.exp(-0.5 * y * y)
    slope = _share_below(y, bell) + y * bell * (2 * math.pi) ** -0.5
    return ((gradient.astype(jnp.float32) * slope).astype(x.dtype),)


_fast_gelu.defvjp(lambda x: (_fast_gelu(x), x), _fast_gelu_backward)


def _share_below(y, bell):
    t = 1 / (1 + 0.3275911 * 2**-0.5 * jnp.abs(y))
    series = 0.0
    for factor in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = (series + factor) * t
    tail = 0.5 * series * bell
    return jnp.where(y < 0, tail, 1 - tail)


def _row(parameter, x):
    """With leading axes of length 1 (ranks are never promoted silently)."""
    return jax.lax.expand_dims(parameter, range(x.ndim - 1))

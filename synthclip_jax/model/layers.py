"""What blocks and towers are made of: norms, activations, products with weights; their gradients read little memory."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from synthclip_jax.model import eight_bits
from synthclip_jax.model.init import Initializer


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalise(
    x: Float[Array, "*b width"], scale: Float[Array, " width"], bias: Float[Array, " width"], eps: float, dtype: Any
) -> Float[Array, "*b width"]:
    """LayerNorm over the last axis, computed in float32, given in `dtype`."""
    return _normalise_forward(x, scale, bias, eps, dtype)[0]


def _normalise_forward(x, scale, bias, eps, dtype):
    y, mean, factor = _standard(x, eps)
    y = y * _broadcast(scale, y) + _broadcast(bias, y)
    return y.astype(dtype), (x, scale, mean, factor)


def _normalise_backward(eps, dtype, kept, gradient):
    """From `x` and two numbers a row. Left to itself JAX keeps arrays of float32, and XLA writes one more to sum it."""
    x, scale, mean, factor = kept
    gradient = gradient.astype(jnp.float32)
    y = (x.astype(jnp.float32) - mean) * factor
    rows = tuple(range(x.ndim - 1))
    d_scale, d_bias = (gradient * y).sum(rows), gradient.sum(rows)
    d_x = _along_rows(gradient * _broadcast(scale, y), y, factor)
    return d_x.astype(x.dtype), d_scale, d_bias


normalise.defvjp(_normalise_forward, _normalise_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def standardise(x: Float[Array, "*b width"], eps: float, dtype: Any) -> Float[Array, "*b width"]:
    """LayerNorm over the last axis without scale and bias, computed in float32, given in `dtype`."""
    return _standardise_forward(x, eps, dtype)[0]


def _standardise_forward(x, eps, dtype):
    y, mean, factor = _standard(x, eps)
    return y.astype(dtype), (x, mean, factor)


def _standardise_backward(eps, dtype, kept, gradient):
    """From `x` and two numbers a row. Left to itself JAX keeps arrays of float32."""
    x, mean, factor = kept
    y = (x.astype(jnp.float32) - mean) * factor
    return (_along_rows(gradient.astype(jnp.float32), y, factor).astype(x.dtype),)


standardise.defvjp(_standardise_forward, _standardise_backward)


def _standard(x, eps):
    """Each row with mean 0 and variance 1, in float32; its mean and what it was multiplied by."""
    y = x.astype(jnp.float32)
    mean = y.mean(-1, keepdims=True)
    y = y - mean
    factor = jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    return y * factor, mean, factor


def _along_rows(gradient, y, factor):
    """The gradient of `x` from that of `y`, which is what `_standard` makes of it."""
    along = (gradient * y).mean(-1, keepdims=True)
    return factor * (gradient - gradient.mean(-1, keepdims=True) - y * along)


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
    # On GPUs XLA sees that the forward pass had the same exponential, and keeps it in float32: not behind a barrier.
    x = jax.lax.platform_dependent(x, cuda=jax.lax.optimization_barrier, default=lambda x: x)
    y = x.astype(jnp.float32)
    bell = jnp.exp(-0.5 * y * y)
    slope = _share_below(y, bell) + y * bell * (2 * math.pi) ** -0.5
    return ((gradient.astype(jnp.float32) * slope).astype(x.dtype),)


_fast_gelu.defvjp(lambda x: (_fast_gelu(x), x), _fast_gelu_backward)


def _share_below(y, bell):
    # 1 / z as a squared reciprocal root: GPUs have an instruction for the root, and divide with twenty.
    t = jnp.square(jax.lax.rsqrt(1 + 0.3275911 * 2**-0.5 * jnp.abs(y)))
    series = 0.0
    for factor in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = (series + factor) * t
    tail = 0.5 * series * bell
    return jnp.where(y < 0, tail, 1 - tail)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


class Norm(nnx.Module):
    """LayerNorm over the last axis, computed in float32 whatever the compute type is."""

    def __init__(self, width: int, eps: float, dtype: Any, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.eps, self.dtype = eps, dtype

    def __call__(self, x: Float[Array, "*b width"]) -> Float[Array, "*b width"]:
        return normalise(x, self.scale[...], self.bias[...], self.eps, self.dtype)

    def without_scale_and_bias(self, x: Float[Array, "*b width"]) -> Float[Array, "*b width"]:
        """The first half of the norm; `fold` gives the other one to the layer that comes next."""
        return standardise(x, self.eps, self.dtype)


class Linear(nnx.Module):
    """`x @ kernel + bias` over the last `len(inputs)` axes of x; the kernel has the shape [*inputs, *outputs]."""

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        dtype: Any,
        rngs: nnx.Rngs,
        init: Initializer,
        bias_init: Initializer | None = None,
        products: str = "full",
    ):
        # Drawn as a matrix: the more axes a random draw has, the longer it takes to compile.
        matrix = init(rngs.params(), (math.prod(inputs), math.prod(outputs)), jnp.float32)
        self.kernel = nnx.Param(matrix.reshape(inputs + outputs))
        self.bias = nnx.data(None)
        if bias_init is not None:
            self.bias = nnx.Param(bias_init(rngs.params(), outputs, jnp.float32))
        self.contracted, self.dtype, self.products = len(inputs), dtype, products

    def __call__(
        self, x: Float[Array, "*b_inputs"], part: int | None = None, biased: bool = True
    ) -> Float[Array, "*b_outputs"]:
        """All outputs, or only those of one index along their first axis, these as one axis."""
        kernel, bias = self.kernel[...], self.bias[...] if biased and self.bias is not None else None
        if part is not None:
            # One axis, because XLA makes an array as large as the product of a bias that has two, and adds that.
            kernel = jax.lax.index_in_dim(kernel, part, self.contracted, keepdims=False).reshape(len(kernel), -1)
            bias = None if bias is None else bias[part].reshape(-1)
        y = multiply(x.astype(self.dtype), kernel.astype(self.dtype), self.contracted, self.products)
        return y if bias is None else y + _broadcast(bias.astype(self.dtype), y)


def multiply(x: Float[Array, "*b_inputs"], kernel: Float[Array, "*inputs_outputs"], axes: int, products: str) -> Array:
    """The last axes of `x` with the first ones of a kernel, so many of each; `products` as in `config.train`."""
    if products == "full":
        return jnp.tensordot(x, kernel, axes)
    inputs = math.prod(kernel.shape[:axes])
    y = eight_bits.product(x.reshape(*x.shape[: x.ndim - axes], inputs), kernel.reshape(inputs, -1))
    # By this name what may be kept for the backward pass is known: this, and not its sums, which may be twice as large.
    return checkpoint_name(y.reshape(*y.shape[:-1], *kernel.shape[axes:]), "product")


def fold(norm: Norm, linear: Linear) -> None:
    """Puts scale and bias of a norm into the layer that follows it; both are stacks, with layers as the first axis.

    (scale y + bias) @ kernel = y @ (scale kernel) + bias @ kernel. The gradients of the norm's scale and bias then come
    from those of the kernel, and not from another pass over all tokens, which would take longer than the norm.
    """
    kernel = linear.kernel[...]
    scale, shift = (jnp.expand_dims(x[...], range(2, kernel.ndim)) for x in (norm.scale, norm.bias))
    linear.bias[...] += (shift * kernel).sum(1)
    linear.kernel[...] = (scale * kernel).astype(linear.dtype)


def _broadcast(parameter: Array, x: Array) -> Array:
    """A parameter of the last axes of x, with leading axes of length 1 (ranks are never promoted silently)."""
    return jax.lax.expand_dims(parameter, range(x.ndim - parameter.ndim))

"""Layers that U-Net and autoencoder share, named as diffusers names them. Images are NHWC."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gen.engines.stable_diffusion.attention import attention
from synthclip_jax.model.layers import normalise


def zeros(*shape: int, dtype: str) -> nnx.Param:
    """A weight of this shape; all weights are read, none is drawn."""
    return nnx.Param(jnp.zeros(shape, dtype))


class Linear(nnx.Module):
    """A linear layer, or a convolution of one pixel: in NHWC they are one."""

    def __init__(self, inputs: int, outputs: int, dtype: str, bias: bool = True):
        self.kernel = zeros(inputs, outputs, dtype=dtype)
        self.bias = zeros(outputs, dtype=dtype) if bias else None

    def __call__(self, x: Float[Array, "*axes inputs"]) -> Float[Array, "*axes outputs"]:
        return plus(x @ self.kernel[...], self.bias)


class Conv(nnx.Module):
    """A convolution; `padding` pixels on each side."""

    def __init__(
        self, inputs: int, outputs: int, dtype: str, side: int = 3, stride: int = 1, padding: int = 1, bias: bool = True
    ):
        self.kernel = zeros(side, side, inputs, outputs, dtype=dtype)
        self.bias = zeros(outputs, dtype=dtype) if bias else None
        self.stride, self.padding = stride, padding

    def __call__(self, x: Float[Array, "batch height width inputs"]) -> Float[Array, "batch rows columns outputs"]:
        padding = [(self.padding, self.padding)] * 2
        strides = (self.stride, self.stride)
        layout = ("NHWC", "HWIO", "NHWC")
        mixed = jax.lax.conv_general_dilated(x, self.kernel[...], strides, padding, dimension_numbers=layout)
        return plus(mixed, self.bias)


def plus(x: Array, bias: nnx.Param | None) -> Array:
    """Adds the bias, if there is one, to the last axis."""
    return x if bias is None else x + bias[...].reshape((1,) * (x.ndim - 1) + (-1,))


class LayerNorm(nnx.Module):
    """Normalises the last axis, with its statistics in float32."""

    def __init__(self, width: int, dtype: str, epsilon: float = 1e-5):
        self.scale, self.bias = zeros(width, dtype=dtype), zeros(width, dtype=dtype)
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        scale, bias = (weight[...].astype(jnp.float32) for weight in (self.scale, self.bias))
        return normalise(x, scale, bias, self.epsilon, x.dtype)


class GroupNorm(nnx.Module):
    """Normalises groups of channels over all pixels of an image, with its statistics in float32.

    Sums are taken per channel before they are grouped, so that the channels never change their place in memory, and
    what is left is one multiplication and addition for each number.
    """

    def __init__(self, groups: int, width: int, epsilon: float, dtype: str):
        self.scale, self.bias = zeros(width, dtype=dtype), zeros(width, dtype=dtype)
        self.groups, self.epsilon = groups, epsilon

    def __call__(self, x: Float[Array, "batch *pixels width"]) -> Float[Array, "batch *pixels width"]:
        wide = x.astype(jnp.float32).reshape(len(x), -1, x.shape[-1])

        def grouped(numbers: Array) -> Array:  # the mean over a group's pixels and channels, for each of its channels
            means = numbers.mean(1).reshape(len(x), self.groups, -1).mean(2)
            return means.repeat(x.shape[-1] // self.groups, axis=1)

        mean = grouped(wide)
        variance = jnp.maximum(grouped(wide * wide) - mean * mean, 0)
        scale = self.scale[...].astype(jnp.float32)[None] * jax.lax.rsqrt(variance + self.epsilon)
        shift = self.bias[...].astype(jnp.float32)[None] - mean * scale
        return (wide * scale[:, None] + shift[:, None]).reshape(x.shape).astype(x.dtype)


class Resnet(nnx.Module):
    """Two convolutions beside the identity (`ResnetBlock2D`); the embedding of the time is added between them."""

    def __init__(self, inputs: int, outputs: int, embedding: int, groups: int, epsilon: float, dtype: str):
        self.norm1 = GroupNorm(groups, inputs, epsilon, dtype)
        self.conv1 = Conv(inputs, outputs, dtype)
        self.time_emb_proj = Linear(embedding, outputs, dtype) if embedding else None
        self.norm2 = GroupNorm(groups, outputs, epsilon, dtype)
        self.conv2 = Conv(outputs, outputs, dtype)
        self.conv_shortcut = Linear(inputs, outputs, dtype) if inputs != outputs else None

    def __call__(self, x: Array, embedding: Array | None = None) -> Array:
        inner = self.conv1(jax.nn.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            inner += self.time_emb_proj(jax.nn.silu(embedding))[:, None, None]
        inner = self.conv2(jax.nn.silu(self.norm2(inner)))
        return inner + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nnx.Module):
    """Halves the sides of an image."""

    def __init__(self, width: int, dtype: str):
        self.conv = Conv(width, width, dtype, stride=2)

    def __call__(self, x: Array) -> Array:
        return self.conv(x)


class Upsample(nnx.Module):
    """Doubles the sides of an image: each pixel four times, and a convolution."""

    def __init__(self, width: int, dtype: str):
        self.conv = Conv(width, width, dtype)

    def __call__(self, x: Array) -> Array:
        return self.conv(x.repeat(2, axis=1).repeat(2, axis=2))


class Attention(nnx.Module):
    """Attention to the tokens themselves or to a context; `bias` is that of queries, keys and values."""

    def __init__(self, width: int, context: int, heads: int, dtype: str, bias: bool = False):
        self.to_q = Linear(width, width, dtype, bias)
        self.to_k = Linear(context, width, dtype, bias)
        self.to_v = Linear(context, width, dtype, bias)
        self.to_out = nnx.List([Linear(width, width, dtype)])
        self.heads = heads

    def __call__(self, x: Float[Array, "batch tokens width"], context: Array | None = None) -> Array:
        context = x if context is None else context
        return self.to_out[0](attention(self.to_q(x), self.to_k(context), self.to_v(context), self.heads))


class TimestepEmbedding(nnx.Module):
    """Two linear layers after the waves."""

    def __init__(self, inputs: int, width: int, dtype: str):
        self.linear_1 = Linear(inputs, width, dtype)
        self.linear_2 = Linear(width, width, dtype)

    def __call__(self, x: Array) -> Array:
        return self.linear_2(jax.nn.silu(self.linear_1(x)))


def waves(
    numbers: Float[Array, " batch"], width: int, cosines_first: bool = True, shift: float = 0
) -> Float[Array, "batch width"]:
    """Sines and cosines of a number at frequencies from 1 down to 1/10,000, in float32 (`get_timestep_embedding`)."""
    half = width // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - shift))
    angles = numbers.astype(jnp.float32)[:, None] * frequencies[None]
    parts = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(parts[::-1] if cosines_first else parts, axis=-1)

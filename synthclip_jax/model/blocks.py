"""Transformer blocks: how they are initialised, stacked over layers, and run, scanned or one after the other."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from synthclip_jax.config.schema import Model
from synthclip_jax.model.init import BlockInit, Initializer


def _products(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name == "dot_general" or primitive.name.startswith("dot_product_attention_fwd")


# What the backward pass may keep of a block's activations; the rest is computed again. `elementwise` keeps what matrix
# products and cuDNN's attention give, so that only norms and activations run twice, which costs no time: they are part
# of the kernels that need them. `dots` keeps the products with weights, so that attention runs twice as well.
REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "elementwise": _products,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
CUDNN_HEAD_DIMS = range(8, 129, 8)  # channels of a head that cuDNN's attention takes on all cards that have it


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """The shape of a stack of transformer blocks, and how it is computed."""

    width: int
    layers: int
    heads: int
    activation: str
    norm_eps: float
    causal: bool
    compute_dtype: Any
    remat: str
    scan_layers: bool
    attention: str

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


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
    y = y * factor * _broadcast(scale, y) + _broadcast(bias, y)
    return y.astype(dtype), (x, scale, mean, factor)


def _normalise_backward(eps, dtype, kept, gradient):
    """From `x` and two numbers a row. Left to itself JAX keeps arrays of float32, and XLA writes one more to sum it."""
    x, scale, mean, factor = kept
    gradient = gradient.astype(jnp.float32)
    y = (x.astype(jnp.float32) - mean) * factor
    rows = tuple(range(x.ndim - 1))
    d_scale, d_bias = (gradient * y).sum(rows), gradient.sum(rows)
    gradient = gradient * _broadcast(scale, y)
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
    ):
        # Drawn as a matrix: the more axes a random draw has, the longer it takes to compile.
        matrix = init(rngs.params(), (math.prod(inputs), math.prod(outputs)), jnp.float32)
        self.kernel = nnx.Param(matrix.reshape(inputs + outputs))
        self.bias = nnx.data(None)
        if bias_init is not None:
            self.bias = nnx.Param(bias_init(rngs.params(), outputs, jnp.float32))
        self.contracted, self.dtype = len(inputs), dtype

    def __call__(self, x: Float[Array, "*b_inputs"], part: int | None = None) -> Float[Array, "*b_outputs"]:
        """All outputs, or only those of one index along their first axis."""
        kernel, bias = self.kernel[...], None if self.bias is None else self.bias[...]
        if part is not None:
            kernel = jax.lax.index_in_dim(kernel, part, self.contracted, keepdims=False)
            bias = None if bias is None else bias[part]
        y = jnp.tensordot(x.astype(self.dtype), kernel.astype(self.dtype), self.contracted)
        return y if bias is None else y + _broadcast(bias.astype(self.dtype), y)


def attention_kernel(model: Model, platform: str) -> str:
    """The kernel that `model.attention` means on a platform, named as a `jax.Device` names it: `xla` or `cudnn`."""
    if model.attention != "auto":
        return model.attention
    sizes = (tower.width // tower.heads for tower in (model.vision, model.text))
    fused = model.compute_dtype == "bfloat16" and all(size in CUDNN_HEAD_DIMS for size in sizes)
    return "cudnn" if fused and platform in ("gpu", "cuda") else "xla"


def _pad(x: Float[Array, "b t width"], implementation: str) -> Float[Array, "b padded width"]:
    """The input of a stack of blocks with as many tokens as the kernel takes; those that were added come last.

    To train, cuDNN's kernel, which writes no attention scores to memory, wants an even number. The towers have 197 and
    77, so one is added, for all layers at once.
    """
    if implementation != "cudnn" or x.shape[1] % 2 == 0:
        return x
    return jnp.pad(x, ((0, 0), (0, 1), (0, 0)))


def attend(
    query: Float[Array, "b t heads dim"],
    key: Float[Array, "b t heads dim"],
    value: Float[Array, "b t heads dim"],
    *,
    causal: bool,
    length: int,
    implementation: str,
) -> Float[Array, "b t heads dim"]:
    """Scaled dot-product attention; the softmax is float32.

    Args:
      causal: no token sees a later one. A flag and never a mask: cuDNN wants it so.
      length: tokens that are real; the ones after them, which `_pad` added, are not seen.
      implementation: what `attention_kernel` gives.
    """
    lengths = None
    if length < query.shape[1] and not causal:  # causal: whatever comes last is seen by nobody before it
        lengths = jnp.full(len(query), length, jnp.int32)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        is_causal=causal,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )


class Attention(nnx.Module):
    """Multi-head self-attention. Queries, keys and values come from one matrix product."""

    def __init__(self, spec: BlockSpec, init: BlockInit, rngs: nnx.Rngs):
        self.spec = spec
        heads = (spec.heads, spec.head_dim)
        zeros = nnx.initializers.zeros
        self.qkv = Linear((spec.width,), (3, *heads), spec.compute_dtype, rngs, init.qkv, zeros)
        self.out = Linear(heads, (spec.width,), spec.compute_dtype, rngs, init.out, zeros)

    def __call__(self, x: Float[Array, "*bt width"], batch: int, length: int) -> Float[Array, "*bt width"]:
        # Three products that write what the fused kernel reads, instead of one that must be cut up for it.
        parts = [self.qkv(x, part) for part in range(3)] if x.ndim == 2 else jnp.unstack(self.qkv(x), axis=-3)
        query, key, value = (y.reshape(batch, -1, self.spec.heads, self.spec.head_dim) for y in parts)
        mixed = attend(query, key, value, causal=self.spec.causal, length=length, implementation=self.spec.attention)
        return self.out(mixed.reshape(*x.shape[:-1], self.spec.heads, self.spec.head_dim))


class MLP(nnx.Module):
    """Two linear layers with an activation between them, four times as wide inside."""

    def __init__(self, spec: BlockSpec, init: BlockInit, rngs: nnx.Rngs):
        self.activation = spec.activation
        inner = 4 * spec.width
        self.up = Linear((spec.width,), (inner,), spec.compute_dtype, rngs, init.up, init.up_bias)
        self.down = Linear((inner,), (spec.width,), spec.compute_dtype, rngs, init.down, init.down_bias)

    def __call__(self, x: Float[Array, "*bt width"]) -> Float[Array, "*bt width"]:
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class Block(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(self, spec: BlockSpec, init: BlockInit, rngs: nnx.Rngs):
        self.norm1 = Norm(spec.width, spec.norm_eps, spec.compute_dtype, rngs)
        self.attention = Attention(spec, init, rngs)
        self.norm2 = Norm(spec.width, spec.norm_eps, spec.compute_dtype, rngs)
        self.mlp = MLP(spec, init, rngs)

    def __call__(self, x: Float[Array, "*bt width"], batch: int, length: int) -> Float[Array, "*bt width"]:
        """One layer, for so many examples, whose first `length` tokens are real (see `_pad`)."""
        x = x + self.attention(self.norm1(x), batch, length)
        return x + self.mlp(self.norm2(x))


def stack_blocks(spec: BlockSpec, init: BlockInit, rngs: nnx.Rngs) -> Block:
    """One `Block` whose parameters carry a leading axis of length `spec.layers`."""

    graphdefs = []

    def make(key: Array) -> nnx.State:
        graphdef, state = nnx.split(Block(spec, init, nnx.Rngs(params=key)))
        graphdefs.append(graphdef)  # known when the loop's body is traced
        return state

    # A loop and not nnx.vmap: XLA compiles random draws of few axes much faster (5 s of 9 s on CPU).
    stacked = jax.lax.map(make, jax.random.split(rngs.params(), spec.layers))
    return nnx.merge(graphdefs[0], stacked)


def run_blocks(blocks: Block, spec: BlockSpec, x: Float[Array, "b t width"]) -> Float[Array, "b t width"]:
    """Apply stacked blocks in order, as one scanned block or as `spec.layers` unrolled ones."""
    graphdef, stacked = nnx.split(blocks)
    batch, length, width = x.shape
    padded = _pad(x, spec.attention)
    # As a matrix on a GPU: of three axes XLA makes the first the innermost one there, and back, around every product.
    x = padded.reshape(-1, width) if spec.attention == "cudnn" else padded

    def body(x, params):
        return nnx.merge(graphdef, params)(x, batch, length)

    if spec.remat != "none":
        # Inside a scan nothing can be merged with the forward pass anyway, and the barrier would cost time.
        body = jax.checkpoint(body, policy=REMAT_POLICIES[spec.remat], prevent_cse=not spec.scan_layers)
    if spec.scan_layers:
        x = jax.lax.scan(lambda x, params: (body(x, params), None), x, stacked)[0]
        return x.reshape(padded.shape)[:, :length]
    # lax.split, because its gradient is one concatenation. That of indexing is a sum of `layers` padded arrays.
    leaves, treedef = jax.tree.flatten(stacked)
    split = [jax.lax.split(leaf, [1] * spec.layers, axis=0) for leaf in leaves]
    for layer in zip(*split, strict=True):
        x = body(x, jax.tree.unflatten(treedef, [leaf[0] for leaf in layer]))
    return x.reshape(padded.shape)[:, :length]


def _broadcast(parameter: Array, x: Array) -> Array:
    """A parameter of the last axes of x, with leading axes of length 1 (ranks are never promoted silently)."""
    return jax.lax.expand_dims(parameter, range(x.ndim - parameter.ndim))

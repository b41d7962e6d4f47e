"""Transformer blocks: how they are initialised, stacked over layers, and run, scanned or one after the other."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from synthclip_jax.config import ConfigError
from synthclip_jax.config.schema import Model
from synthclip_jax.model import short_attention
from synthclip_jax.model.init import BlockInit
from synthclip_jax.model.layers import ACTIVATIONS, Linear, Norm, fold


def _products(primitive: Any, *_: Any, **__: Any) -> bool:
    # Of what has a name, such as a product with its bias, the product alone is not kept as well: nothing needs it.
    return primitive.name in ("dot_general", "name") or primitive.name.startswith("dot_product_attention_fwd")


# What the backward pass may keep of a block's activations; the rest is computed again. `elementwise` keeps what matrix
# products and fused attention give, so that only norms and activations run twice, which costs no time: they are part
# of the kernels that need them. `dots` keeps the products with weights, so that attention runs twice as well.
REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "elementwise": _products,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names("product"),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}
REMAT = ("auto", "none", *REMAT_POLICIES)
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
    products: str = "full"

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


def attention_kernel(model: Model, platform: str, tokens: int = 0) -> str:
    """The kernel that `model.attention` means on a platform, which is named as a `jax.Device` names it.

    It is `xla`, `cudnn`, `pallas`, or where there is no TPU `interpreted`, which is pallas computed slowly.

    Args:
      tokens: of an image. Those of a text are as many as `model` says.

    Raises:
      ConfigError: `pallas` is asked for where it cannot be had.
    """
    gpu, name = platform in ("gpu", "cuda"), model.attention
    sizes = [tower.width // tower.heads for tower in (model.vision, model.text)]
    longest = max(tokens, model.text.context_length)
    suits = longest <= short_attention.MAX_TOKENS and all(size in short_attention.HEAD_DIMS for size in sizes)
    if name == "pallas" and (gpu or not suits):
        where = "on a GPU: 'cudnn', 'xla', 'auto'"
        sizes_taken = f"heads of 8, 16, ... or 128 channels and at most {short_attention.MAX_TOKENS} tokens"
        raise ConfigError(f"model.attention: given 'pallas', allowed {where if gpu else 'with ' + sizes_taken}")
    if name == "pallas":
        return "pallas" if platform == "tpu" else "interpreted"
    if name != "auto":
        return name
    if platform == "tpu" and suits:
        return "pallas"
    fused = model.compute_dtype == "bfloat16" and all(size in CUDNN_HEAD_DIMS for size in sizes)
    return "cudnn" if fused and gpu else "xla"


def remat_policy(model: Model, platform: str) -> str:
    """What `model.remat` means on a platform. TPUs compute norms and GELU again in less time than they read them."""
    if model.remat != "auto":
        return model.remat
    return "elementwise" if platform == "tpu" else "none"


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


@jax.custom_vjp
def _scores(query: Float[Array, "b h w"], x: Float[Array, "b t w"]) -> Float[Array, "b h t"]:
    """Products in float32, whose gradient is rounded as fused kernels do it, or there would be float32 copies of x."""
    return jnp.einsum("bhw,btw->bht", query, x, preferred_element_type=jnp.float32)


def _scores_backward(kept, gradient):
    query, x = kept
    gradient = gradient.astype(x.dtype)
    return jnp.einsum("bht,btw->bhw", gradient, x), jnp.einsum("bht,bhw->btw", gradient, query)


_scores.defvjp(lambda query, x: (_scores(query, x), (query, x)), _scores_backward)


class Attention(nnx.Module):
    """Multi-head self-attention. Queries, keys and values come from one matrix product.

    It runs after `fold_biases`: with a bias of queries, but none of keys and values.
    """

    def __init__(self, spec: BlockSpec, init: BlockInit, rngs: nnx.Rngs):
        self.spec = spec
        heads = (spec.heads, spec.head_dim)
        zeros = nnx.initializers.zeros
        dtype, products = spec.compute_dtype, spec.products
        self.qkv = Linear((spec.width,), (3, *heads), dtype, rngs, init.qkv, zeros, products)
        self.out = Linear(heads, (spec.width,), dtype, rngs, init.out, zeros, products)

    @property
    def is_short(self) -> bool:
        """Whether it runs as the kernel for short sequences."""
        return self.spec.attention in ("pallas", "interpreted")

    def __call__(self, x: Float[Array, "*bt width"], batch: int, length: int) -> Float[Array, "*bt width"]:
        if self.is_short:
            qkv, out, products = self.qkv, self.out, self.spec.products
            how: dict[str, bool] = {"causal": self.spec.causal, "interpret": self.spec.attention == "interpreted"}
            mixed = short_attention.self_attention(x, qkv.kernel[...], qkv.bias[0], products=products, **how)
            return short_attention.project(mixed, out.kernel[...], out.bias[...], products)
        # Three products that write what the fused kernel reads, instead of one that must be cut up for it.
        if x.ndim == 2:
            parts = [self.qkv(x, part, biased=part == 0) for part in range(3)]
        else:
            parts = list(jnp.unstack(self.qkv(x), axis=-3))
        query, key, value = (y.reshape(batch, -1, self.spec.heads, self.spec.head_dim) for y in parts)
        mixed = attend(query, key, value, causal=self.spec.causal, length=length, implementation=self.spec.attention)
        return self.out(mixed.reshape(*x.shape[:-1], self.spec.heads, self.spec.head_dim))

    def fold_biases(self) -> None:
        """Takes the biases of keys and values away; the parameters are stacks, with layers as the first axis.

        That of the keys adds as much to all scores of a query, which no softmax sees. That of the values comes out of
        attention as it is, since shares sum to 1, and goes into the bias behind it. So none of their gradients is a sum
        over all tokens.
        """
        bias, kernel = self.qkv.bias[...], self.out.kernel[...]
        self.out.bias[...] += (bias[:, 2, ..., None] * kernel).sum((1, 2))
        self.qkv.bias[...] = jnp.concatenate([bias[:, :1], jnp.zeros_like(bias[:, 1:])], axis=1)

    def of_one_token(
        self, x: Float[Array, "b t width"], asking: Float[Array, "b width"], seen: Int[Array, "#b"]
    ) -> Float[Array, "b width"]:
        """What one token of each example gets, `asking`, which sees the first `seen` tokens of `x`.

        The others need neither keys nor values: a product with all of their keys is one of `x` with what the keys'
        kernel makes of the query, and so it is with the values.
        """
        kernel = self.qkv.kernel[...].astype(x.dtype)
        query = self.qkv(asking, 0).reshape(-1, self.spec.heads, self.spec.head_dim)
        query = jnp.einsum("bhd,whd->bhw", query, kernel[:, 1])
        hidden = jnp.arange(x.shape[1])[None, None] >= seen[:, None, None]
        scores = jnp.where(hidden, -jnp.inf, _scores(query, x) * self.spec.head_dim**-0.5)
        shares = jax.nn.softmax(scores).astype(x.dtype)
        mixed = jnp.einsum("bht,btw->bhw", shares, x)
        return self.out(jnp.einsum("bhw,whd->bhd", mixed, kernel[:, 2]))


class MLP(nnx.Module):
    """Two linear layers with an activation between them, four times as wide inside."""

    def __init__(self, spec: BlockSpec, init: BlockInit, rngs: nnx.Rngs):
        self.activation = spec.activation
        inner, dtype, products = 4 * spec.width, spec.compute_dtype, spec.products
        self.up = Linear((spec.width,), (inner,), dtype, rngs, init.up, init.up_bias, products)
        self.down = Linear((inner,), (spec.width,), dtype, rngs, init.down, init.down_bias, products)

    def __call__(self, x: Float[Array, "*bt width"]) -> Float[Array, "*bt width"]:
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class Block(nnx.Module):
    """Pre-norm transformer block. It runs after `fold_norms`, with no scales and biases in its norms."""

    def __init__(self, spec: BlockSpec, init: BlockInit, rngs: nnx.Rngs):
        self.norm1 = Norm(spec.width, spec.norm_eps, spec.compute_dtype, rngs)
        self.attention = Attention(spec, init, rngs)
        self.norm2 = Norm(spec.width, spec.norm_eps, spec.compute_dtype, rngs)
        self.mlp = MLP(spec, init, rngs)

    def fold_norms(self) -> None:
        """Makes a stack of layers, the first axis of its parameters, ready to run."""
        fold(self.norm1, self.attention.qkv)
        self.attention.fold_biases()
        fold(self.norm2, self.mlp.up)

    def __call__(self, x: Float[Array, "*bt width"], batch: int, length: int) -> Float[Array, "*bt width"]:
        """One layer, for so many examples, whose first `length` tokens are real (see `_pad`)."""
        x = x + self.attention(self.norm1.without_scale_and_bias(x), batch, length)
        if self.attention.is_short:
            x = checkpoint_name(x, "middle")
        return x + self.mlp(self.norm2.without_scale_and_bias(x))

    def of_one_token(
        self, x: Float[Array, "b t width"], length: int, token: Int[Array, " b"] | int
    ) -> Float[Array, "b width"]:
        """The same layer for one token of each example."""
        one = x[:, token] if isinstance(token, int) else jnp.take_along_axis(x, token[:, None, None], axis=1)[:, 0]
        seen = jnp.reshape(token + 1 if self.attention.spec.causal else length, -1)
        norm = self.norm1.without_scale_and_bias
        one = one + self.attention.of_one_token(norm(x), norm(one), seen)
        return one + self.mlp(self.norm2.without_scale_and_bias(one))


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


def run_blocks(
    blocks: Block, spec: BlockSpec, x: Float[Array, "b t width"], token: Int[Array, " b"] | int
) -> Float[Array, "b width"]:
    """Apply stacked blocks in order, as a scanned block or as unrolled ones; gives one token of each example.

    Of the last layer only that token is computed, and nothing of the others is left out that it depends on.
    """
    blocks = nnx.clone(blocks)
    blocks.fold_norms()
    graphdef, stacked = nnx.split(blocks)
    batch, length, width = x.shape
    x = _pad(x, spec.attention)
    # As a matrix on a GPU: of three axes XLA makes the first the innermost one there, and back, around every product.
    x = x.reshape(-1, width) if spec.attention == "cudnn" else x

    def body(x, params):
        return nnx.merge(graphdef, params)(x, batch, length)

    def last(x, params):
        return nnx.merge(graphdef, params).of_one_token(x.reshape(batch, -1, width), length, token)

    if spec.remat != "none":
        policy = REMAT_POLICIES[spec.remat]
        # Inside a scan nothing can be merged with the forward pass anyway, and the barrier would cost time.
        body = jax.checkpoint(body, policy=policy, prevent_cse=not spec.scan_layers)
        last = jax.checkpoint(last, policy=policy)
    leaves, treedef = jax.tree.flatten(stacked)
    # lax.split, because its gradient is one concatenation. That of indexing is a sum of `layers` padded arrays.
    sizes = [spec.layers - 1, 1] if spec.scan_layers else [1] * spec.layers
    parts = zip(*(jax.lax.split(leaf, sizes, axis=0) for leaf in leaves), strict=True)
    *earlier, final = (jax.tree.unflatten(treedef, part) for part in parts)
    if spec.scan_layers:
        x = jax.lax.scan(lambda x, params: (body(x, params), None), x, *earlier)[0]
    else:
        for params in earlier:
            x = body(x, _only(params))
    return last(x, _only(final))


def _only(stacked: Any) -> Any:
    """The parameters of one layer from a stack of one."""
    return jax.tree.map(lambda leaf: leaf[0], stacked)

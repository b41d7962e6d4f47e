"""The CLIP model: an image tower, a causal text tower, a logit scale.

Modules are Flax NNX, but nothing outside this file needs to know: `make_model` returns a graph definition and an
`init` function, and from there on the parameters are a nested dict of float32 arrays.

    graphdef, init = make_model(config.model, image_size=224)
    params = jax.jit(init)(jax.random.key(0))
    image_emb, text_emb, logit_scale = nnx.merge(graphdef, params)(images, tokens)

Two image towers are known:

- `slip`: the ViT of timm (`vit_base_patch16_224`) that SLIP and SynthCLIP train. Patch bias, no norm before the
  blocks, exact GELU, LayerNorm eps 1e-6.
- `openai`: the ViT of OpenAI's CLIP, open_clip and transformers. No patch bias, a norm before the blocks, QuickGELU,
  LayerNorm eps 1e-5.

Both end in a norm on the class token and a projection without bias. The text tower is OpenAI's in both cases. With
`quick_gelu=False` the openai tower and the text tower use exact GELU, as most of open_clip's own weights do.

The parameters of the blocks of a tower are stacked: `visual/blocks/attention/qkv/kernel` has the shape
[layers, width, 3, heads, head_dim]. Scanned or unrolled, saved or recomputed activations: the tree is the same.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from synthclip_jax.config.schema import Model, Text, Vision

# What the backward pass may keep of a block's activations; the rest is computed again. `dots` keeps the outputs of
# the matrix products with weights, so that only attention, norms and activations run twice.
REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
LOGIT_SCALE_INIT = math.log(1 / 0.07)
LOGIT_BIAS_INIT = -10.0  # SigLIP's, who also starts from a scale of log(10)

Initializer = Callable[..., Array]
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


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


@dataclasses.dataclass(frozen=True)
class BlockInit:
    """Initializers of the four matrices of a block, and of the biases of its MLP (attention biases start at 0)."""

    qkv: Initializer
    out: Initializer
    up: Initializer
    down: Initializer
    up_bias: Initializer
    down_bias: Initializer


def uniform(bound: float) -> Initializer:
    """Uniform on [-bound, bound]."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def timm_block_init(width: int) -> BlockInit:
    """timm's ViT: every linear layer truncated normal .02 (cut at +-2, that is never), every bias 0."""
    kernel = nnx.initializers.normal(0.02)
    zeros = nnx.initializers.zeros
    return BlockInit(kernel, kernel, kernel, kernel, zeros, zeros)


def torch_block_init(width: int) -> BlockInit:
    """PyTorch's own defaults, which OpenAI's and open_clip's image tower keep."""
    linear, mlp_down = uniform(width**-0.5), uniform((4 * width) ** -0.5)
    return BlockInit(uniform((6 / (4 * width)) ** 0.5), linear, linear, mlp_down, linear, mlp_down)


def text_block_init(width: int, layers: int) -> BlockInit:
    """OpenAI's text tower, as in SLIP and SynthCLIP (Training/models.py)."""
    normal = nnx.initializers.normal
    residual = normal(width**-0.5 * (2 * layers) ** -0.5)
    return BlockInit(
        normal(width**-0.5),
        residual,
        normal((2 * width) ** -0.5),
        residual,
        uniform(width**-0.5),
        uniform((4 * width) ** -0.5),
    )


class Norm(nnx.Module):
    """LayerNorm over the last axis, computed in float32 whatever the compute type is."""

    def __init__(self, width: int, eps: float, dtype: Any, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))
        self.eps, self.dtype = eps, dtype

    def __call__(self, x: Float[Array, "*b width"]) -> Float[Array, "*b width"]:
        x = x.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        return (x * _broadcast(self.scale[...], x) + _broadcast(self.bias[...], x)).astype(self.dtype)


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

    def __call__(self, x: Float[Array, "*b_inputs"]) -> Float[Array, "*b_outputs"]:
        y = jnp.tensordot(x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.contracted)
        return y if self.bias is None else y + _broadcast(self.bias[...].astype(self.dtype), y)


class Attention(nnx.Module):
    """Multi-head self-attention. Queries, keys and values come from one matrix product."""

    def __init__(self, spec: BlockSpec, init: BlockInit, rngs: nnx.Rngs):
        self.spec = spec
        heads = (spec.heads, spec.head_dim)
        zeros = nnx.initializers.zeros
        self.qkv = Linear((spec.width,), (3, *heads), spec.compute_dtype, rngs, init.qkv, zeros)
        self.out = Linear(heads, (spec.width,), spec.compute_dtype, rngs, init.out, zeros)

    def __call__(self, x: Float[Array, "b t width"]) -> Float[Array, "b t width"]:
        query, key, value = jnp.unstack(self.qkv(x), axis=2)
        # The softmax inside is float32. Causality is a flag and never a mask: cuDNN wants it so.
        mixed = jax.nn.dot_product_attention(
            query, key, value, is_causal=self.spec.causal, implementation=self.spec.attention
        )
        return self.out(mixed)


class MLP(nnx.Module):
    """Two linear layers with an activation between them, four times as wide inside."""

    def __init__(self, spec: BlockSpec, init: BlockInit, rngs: nnx.Rngs):
        self.activation = spec.activation
        inner = 4 * spec.width
        self.up = Linear((spec.width,), (inner,), spec.compute_dtype, rngs, init.up, init.up_bias)
        self.down = Linear((inner,), (spec.width,), spec.compute_dtype, rngs, init.down, init.down_bias)

    def __call__(self, x: Float[Array, "b t width"]) -> Float[Array, "b t width"]:
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class Block(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(self, spec: BlockSpec, init: BlockInit, rngs: nnx.Rngs):
        self.norm1 = Norm(spec.width, spec.norm_eps, spec.compute_dtype, rngs)
        self.attention = Attention(spec, init, rngs)
        self.norm2 = Norm(spec.width, spec.norm_eps, spec.compute_dtype, rngs)
        self.mlp = MLP(spec, init, rngs)

    def __call__(self, x: Float[Array, "b t width"]) -> Float[Array, "b t width"]:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def stack_blocks(spec: BlockSpec, init: BlockInit, rngs: nnx.Rngs) -> Block:
    """One `Block` whose parameters carry a leading axis of length `spec.layers`."""

    def make(key: Array) -> Block:
        return Block(spec, init, nnx.Rngs(params=key))

    keys = jax.random.split(rngs.params(), spec.layers)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: make(jax.random.key(0))))
    # A loop and not nnx.vmap: XLA compiles random draws of few axes much faster (5 s of 9 s on CPU).
    return nnx.merge(graphdef, jax.lax.map(lambda key: nnx.state(make(key)), keys))


def run_blocks(blocks: Block, spec: BlockSpec, x: Float[Array, "b t width"]) -> Float[Array, "b t width"]:
    """Apply stacked blocks in order, as one scanned block or as `spec.layers` unrolled ones."""
    graphdef, stacked = nnx.split(blocks)

    def body(x, params):
        return nnx.merge(graphdef, params)(x)

    if spec.remat != "none":
        # Inside a scan nothing can be merged with the forward pass anyway, and the barrier would cost time.
        body = jax.checkpoint(body, policy=REMAT_POLICIES[spec.remat], prevent_cse=not spec.scan_layers)
    if spec.scan_layers:
        return jax.lax.scan(lambda x, params: (body(x, params), None), x, stacked)[0]
    # lax.split, because its gradient is one concatenation. That of indexing is a sum of `layers` padded arrays.
    leaves, treedef = jax.tree.flatten(stacked)
    split = [jax.lax.split(leaf, [1] * spec.layers, axis=0) for leaf in leaves]
    for layer in zip(*split, strict=True):
        x = body(x, jax.tree.unflatten(treedef, [leaf[0] for leaf in layer]))
    return x


class ImageTower(nnx.Module):
    """Vision transformer: images to embeddings, not yet normalised."""

    def __init__(
        self, config: Vision, image_size: int, embed_dim: int, tower: str, activation: str, how: dict, rngs: nnx.Rngs
    ):
        width, layers, heads, patch = config.width, config.layers, config.heads, config.patch_size
        slip = tower == "slip"
        self.patch_size, self.image_size = patch, image_size
        self.spec = BlockSpec(
            width=width,
            layers=layers,
            heads=heads,
            activation="gelu" if slip else activation,
            norm_eps=1e-6 if slip else 1e-5,
            causal=False,
            **how,
        )
        eps, dtype = self.spec.norm_eps, self.spec.compute_dtype
        normal = nnx.initializers.normal
        patch_dim = patch * patch * 3
        patch_init = uniform(patch_dim**-0.5)  # PyTorch's default for convolutions, which both towers keep
        self.patches = Linear((patch_dim,), (width,), dtype, rngs, patch_init, patch_init if slip else None)
        # Kept as a row, as timm does, so that rules on the number of dimensions see a matrix (it is decayed).
        token_init = normal(1e-6 if slip else width**-0.5)
        self.class_token = nnx.Param(token_init(rngs.params(), (1, width), jnp.float32))
        length = (image_size // patch) ** 2 + 1
        position_init = normal(0.02 if slip else width**-0.5)
        self.positions = nnx.Param(position_init(rngs.params(), (length, width), jnp.float32))
        self.pre_norm = nnx.data(None if slip else Norm(width, eps, dtype, rngs))
        self.blocks = stack_blocks(self.spec, timm_block_init(width) if slip else torch_block_init(width), rngs)
        self.norm = Norm(width, eps, dtype, rngs)
        self.projection = Linear((width,), (embed_dim,), dtype, rngs, normal(width**-0.5))

    def __call__(
        self, images: Float[Array, "b h w 3"], kept: Int[Array, "b k"] | None = None
    ) -> Float[Array, "b embed"]:
        return self.projection(self.features(images, kept))

    def features(
        self, images: Float[Array, "b h w 3"], kept: Int[Array, "b k"] | None = None
    ) -> Float[Array, "b width"]:
        """What the projection takes: the class token after the last norm."""
        batch, height, width, channels = images.shape
        if (height, width, channels) != (self.image_size, self.image_size, 3):
            raise ValueError(
                f"images have the shape {images.shape}, but this model takes "
                f"[batch, {self.image_size}, {self.image_size}, 3]"
            )
        # Cutting into patches and one matrix product is what the strided convolution computes, and faster on CPU.
        patch, grid = self.patch_size, self.image_size // self.patch_size
        images = images.astype(self.spec.compute_dtype).reshape(batch, grid, patch, grid, patch, 3)
        x = images.swapaxes(2, 3).reshape(batch, grid * grid, patch * patch * 3)
        positions = self.positions[...].astype(self.spec.compute_dtype)
        class_token = self.class_token[...].astype(positions.dtype) + positions[:1]
        patch_positions = positions[None, 1:]
        if kept is not None:
            x = jnp.take_along_axis(x, kept[..., None], axis=1)
            patch_positions = positions[1 + kept]
        x = self.patches(x) + patch_positions
        x = jnp.concatenate([jnp.broadcast_to(class_token[None], (batch, 1, x.shape[-1])), x], axis=1)
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        x = run_blocks(self.blocks, self.spec, x)
        return self.norm(x[:, 0])


class TextTower(nnx.Module):
    """Causal text transformer, read at the end token: tokens to embeddings, not yet normalised."""

    def __init__(self, config: Text, embed_dim: int, activation: str, how: dict, rngs: nnx.Rngs):
        width, layers = config.width, config.layers
        self.context_length = config.context_length
        self.spec = BlockSpec(
            width=width,
            layers=layers,
            heads=config.heads,
            activation=activation,
            norm_eps=1e-5,
            causal=True,
            **how,
        )
        dtype = self.spec.compute_dtype
        normal = nnx.initializers.normal
        self.tokens = nnx.Param(normal(0.02)(rngs.params(), (config.vocab_size, width), jnp.float32))
        self.positions = nnx.Param(normal(0.01)(rngs.params(), (config.context_length, width), jnp.float32))
        self.blocks = stack_blocks(self.spec, text_block_init(width, layers), rngs)
        self.norm = Norm(width, self.spec.norm_eps, dtype, rngs)
        self.projection = Linear((width,), (embed_dim,), dtype, rngs, normal(width**-0.5))

    def __call__(self, tokens: Int[Array, "b t"]) -> Float[Array, "b embed"]:
        length = tokens.shape[1]
        if length > self.context_length:
            raise ValueError(f"tokens have length {length}, but this model reads at most {self.context_length}")
        x = self.tokens[...][tokens] + self.positions[:length][None]
        x = run_blocks(self.blocks, self.spec, x.astype(self.spec.compute_dtype))
        # The end token has the largest id of all, and nothing after it can be seen from it.
        end = tokens.argmax(axis=1)
        x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        return self.projection(self.norm(x))


class CLIP(nnx.Module):
    """The two towers, the logit scale (stored as its logarithm, as everyone does) and perhaps a bias of the logits."""

    def __init__(self, config: Model, image_size: int, rngs: nnx.Rngs, logit_scale_init: float, logit_bias_init: float):
        how = {
            "compute_dtype": jnp.dtype(config.compute_dtype),
            "remat": config.remat,
            "scan_layers": config.scan_layers,
            "attention": config.attention,
        }
        activation = "quick_gelu" if config.quick_gelu else "gelu"
        self.visual = ImageTower(config.vision, image_size, config.embed_dim, config.tower, activation, how, rngs)
        self.text = TextTower(config.text, config.embed_dim, activation, how, rngs)
        self.logit_scale = nnx.Param(jnp.asarray(logit_scale_init, jnp.float32))
        bias = nnx.Param(jnp.asarray(logit_bias_init, jnp.float32)) if config.logit_bias else None
        self.logit_bias = nnx.data(bias)

    def encode_image(
        self, images: Float[Array, "b h w 3"], normalised: bool = True, kept: Int[Array, "b k"] | None = None
    ) -> Float[Array, "b embed"]:
        """Embeddings of images (mean and standard deviation already taken off), float32, of length 1.

        `kept`: indices of the patches to look at (row by row, from 0); None looks at all.
        """
        return _embedding(self.visual(images, kept), normalised)

    def encode_text(self, tokens: Int[Array, "b t"], normalised: bool = True) -> Float[Array, "b embed"]:
        """Embeddings of token ids, float32, of length 1. Rows may be shorter than the context length."""
        return _embedding(self.text(tokens), normalised)

    def __call__(
        self, images: Float[Array, "b h w 3"], tokens: Int[Array, "b t"]
    ) -> tuple[Float[Array, "b embed"], Float[Array, "b embed"], Float[Array, ""]]:
        """Image embeddings, text embeddings, and the factor (not its logarithm) for their products."""
        return self.encode_image(images), self.encode_text(tokens), jnp.exp(self.logit_scale[...])

    def logit_scale_and_bias(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """What makes logits of products: the factor (not its logarithm), and the bias (0 where the model has none)."""
        bias = jnp.zeros((), jnp.float32) if self.logit_bias is None else self.logit_bias[...]
        return jnp.exp(self.logit_scale[...]), bias


def make_model(
    config: Model, image_size: int, logit_scale_init: float = LOGIT_SCALE_INIT, logit_bias_init: float = LOGIT_BIAS_INIT
) -> tuple[nnx.GraphDef, Callable[[Array], dict]]:
    """The model that `config.model` describes, as a graph definition and `init(key) -> params`.

    `init` may be called under `jax.eval_shape` (no memory needed) or `jax.jit` with `out_shardings` (parameters
    are born where they belong). `logit_scale_init` is the stored value, a logarithm; `logit_bias_init` counts where
    `config.logit_bias` asks for a bias.
    """
    _check(config, image_size)

    def build(rngs: nnx.Rngs) -> CLIP:
        return CLIP(config, image_size, rngs, logit_scale_init, logit_bias_init)

    def init(key: Array) -> dict:
        return nnx.to_pure_dict(nnx.state(build(nnx.Rngs(params=key)), nnx.Param))

    abstract = nnx.eval_shape(lambda: build(nnx.Rngs(params=0)))
    return nnx.split(abstract)[0], init


def parameter_count(params: Any) -> int:
    """Number of parameters in a tree of arrays or of shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def parameter_table(params: Any, depth: int = 2) -> list[tuple[str, int]]:
    """(path, number of parameters) for the parts of a tree down to `depth`, and the total last."""
    rows: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = "/".join(str(key.key) for key in path[:depth])
        rows[name] = rows.get(name, 0) + math.prod(leaf.shape)
    return [*rows.items(), ("total", sum(rows.values()))]


def _check(config: Model, image_size: int) -> None:
    for name, tower in (("vision", config.vision), ("text", config.text)):
        if tower.width % tower.heads:
            raise ValueError(f"model.{name}.heads={tower.heads} does not divide model.{name}.width={tower.width}")
    if image_size % config.vision.patch_size:
        raise ValueError(
            f"model.vision.patch_size={config.vision.patch_size} does not divide the image size {image_size}"
        )
    for name, value, allowed in (
        ("tower", config.tower, ("slip", "openai")),
        ("remat", config.remat, ("none", *REMAT_POLICIES)),
        ("compute_dtype", config.compute_dtype, ("float32", "bfloat16")),
    ):
        if value not in allowed:
            raise ValueError(f"model.{name}={value!r} is not one of {', '.join(allowed)}")


def _embedding(x: Float[Array, "b embed"], normalised: bool) -> Float[Array, "b embed"]:
    x = x.astype(jnp.float32)
    if not normalised:
        return x
    # The bound keeps the gradient finite for an embedding of zeros.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


def _broadcast(parameter: Array, x: Array) -> Array:
    """A parameter of the last axes of x, with leading axes of length 1 (ranks are never promoted silently)."""
    return jax.lax.expand_dims(parameter, range(x.ndim - parameter.ndim))

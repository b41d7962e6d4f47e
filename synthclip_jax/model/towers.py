"""The CLIP model: an image tower, a causal text tower, a logit scale.

Modules are Flax NNX, but nothing outside this file needs to know: `make_model` returns a graph definition, an `init`
function and the shapes of the parameters, which from there on are a nested dict of float32 arrays.

    graphdef, init, shapes = make_model(config.model, image_size=224)
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

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from synthclip_jax.config.schema import Model, Text, Vision
from synthclip_jax.model.blocks import (
    REMAT,
    BlockSpec,
    attention_kernel,
    remat_policy,
    run_blocks,
    stack_blocks,
)
from synthclip_jax.model.init import text_block_init, timm_block_init, torch_block_init, uniform
from synthclip_jax.model.layers import Linear, Norm

LOGIT_SCALE_INIT = math.log(1 / 0.07)
LOGIT_BIAS_INIT = -10.0  # SigLIP's, who also starts from a scale of log(10)


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
        positions = self.positions[...].astype(self.spec.compute_dtype)[None]
        if kept is not None:
            x = jnp.take_along_axis(x, kept[..., None], axis=1)
            positions = positions[0, jnp.pad(1 + kept, ((0, 0), (1, 0)))]
        class_token = self.class_token[...].astype(positions.dtype)[None]
        x = self.patches(x)
        x = jnp.concatenate([jnp.broadcast_to(class_token, (batch, 1, x.shape[-1])), x], axis=1) + positions
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        return self.norm(run_blocks(self.blocks, self.spec, x, token=0))


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
        # The end token has the largest id of all, and nothing after it can be seen from it.
        end = tokens.argmax(axis=1)
        x = run_blocks(self.blocks, self.spec, x.astype(self.spec.compute_dtype), end)
        return self.projection(self.norm(x))


class CLIP(nnx.Module):
    """The two towers, the logit scale (stored as its logarithm, as everyone does) and perhaps a bias of the logits."""

    def __init__(
        self,
        config: Model,
        image_size: int,
        rngs: nnx.Rngs,
        logit_scale_init: float,
        logit_bias_init: float,
        platform: str,
        products: str,
    ):
        how = {
            "compute_dtype": jnp.dtype(config.compute_dtype),
            "remat": remat_policy(config, platform),
            "scan_layers": config.scan_layers,
            "attention": attention_kernel(config, platform, (image_size // config.vision.patch_size) ** 2 + 1),
            "products": products,
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


class ModelDefinition(NamedTuple):
    """A model without its parameters. It is traced once, which takes a second or so for many layers."""

    graphdef: nnx.GraphDef
    init: Callable[[Array], dict]  # parameters from a key
    shapes: dict  # what `init` returns, as jax.ShapeDtypeStruct


def make_model(
    config: Model,
    image_size: int,
    logit_scale_init: float = LOGIT_SCALE_INIT,
    logit_bias_init: float = LOGIT_BIAS_INIT,
    platform: str = "",
    products: str = "full",
) -> ModelDefinition:
    """The model that `config.model` describes.

    Its `init` may be called under `jax.jit` with `out_shardings` (parameters are born where they belong).
    `logit_scale_init` is the stored value, a logarithm; `logit_bias_init` counts where `config.logit_bias` asks for a
    bias. `platform` is where it will run, as a `jax.Device` calls it, which decides what `config.attention=auto` means;
    empty: the one that JAX takes by default. `products` is `config.train.products`: how training computes.
    """
    _check(config, image_size)

    def build(rngs: nnx.Rngs) -> CLIP:
        platform_or_default = platform or jax.default_backend()
        return CLIP(config, image_size, rngs, logit_scale_init, logit_bias_init, platform_or_default, products)

    def init(key: Array) -> dict:
        return nnx.to_pure_dict(nnx.state(build(nnx.Rngs(params=key)), nnx.Param))

    abstract = nnx.eval_shape(lambda: build(nnx.Rngs(params=0)))
    return ModelDefinition(nnx.split(abstract)[0], init, nnx.to_pure_dict(nnx.state(abstract, nnx.Param)))


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
        ("remat", config.remat, REMAT),
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

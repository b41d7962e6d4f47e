"""`UNet2DConditionModel`: latents, a time and a text to the noise in the latents (or their velocity)."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from gen.engines.stable_diffusion.architecture import PER_LEVEL
from gen.engines.stable_diffusion.layers import (
    Attention,
    Conv,
    Downsample,
    GroupNorm,
    LayerNorm,
    Linear,
    Resnet,
    TimestepEmbedding,
    Upsample,
    waves,
)
from synthclip_jax.model.layers import gelu


class Level(NamedTuple):
    """What the blocks of one resolution share.

    Attributes:
      width: channels.
      layers: residual blocks on the way down; one more on the way up.
      depth: transformer blocks after each of them; 0: none.
      heads: of their attention.
      context: width of the text's embedding.
      embedding: width of the time's embedding.
      groups, epsilon: of the norms.
      dtype: of weights.
    """

    width: int
    layers: int
    depth: int
    heads: int
    context: int
    embedding: int
    groups: int
    epsilon: float
    dtype: str

    def resnet(self, inputs: int) -> Resnet:
        """A residual block that ends in this level's width."""
        return Resnet(inputs, self.width, self.embedding, self.groups, self.epsilon, self.dtype)

    def transformers(self, count: int) -> nnx.List:
        """As many transformers, or none where the level has none."""
        return nnx.List([Transformer(self) for _ in range(count if self.depth else 0)])


def levels(config: dict[str, Any], dtype: str) -> list[Level]:
    """The levels of a U-Net, from the top; `depth` is also that of levels without attention."""
    widths = config["block_out_channels"]
    # What the configuration calls the size of heads is their number: diffusers keeps the name that it once mistook.
    each = [config[key] for key in PER_LEVEL]
    shared = (4 * widths[0], config["norm_num_groups"], config["norm_eps"], dtype)
    return [Level._make((*own, *shared)) for own in zip(widths, *each, strict=True)]


class UNet(nnx.Module):
    """The U-Net of Stable Diffusion 1.x, 2.x and XL. `config` is that of its folder, as `architecture` completes it."""

    def __init__(self, config: dict[str, Any], dtype: str):
        stages = levels(config, dtype)
        top, bottom = stages[0], stages[-1]
        self.waves = (top.width, config["flip_sin_to_cos"], config["freq_shift"])
        self.time_embedding = TimestepEmbedding(top.width, top.embedding, dtype)
        self.size_waves = (config["addition_time_embed_dim"], *self.waves[1:])
        added = config["projection_class_embeddings_input_dim"]  # 0: only XL has them
        self.add_embedding = TimestepEmbedding(added, top.embedding, dtype) if added else None
        self.conv_in = Conv(config["in_channels"], top.width, dtype)

        def bare(kind: str, level: Level) -> Level:
            return level if kind.startswith("CrossAttn") else level._replace(depth=0)

        down = [bare(kind, level) for kind, level in zip(config["down_block_types"], stages, strict=True)]
        above = [top.width, *(level.width for level in down)]
        self.down_blocks = nnx.List(
            [DownBlock(above[number], level, number < len(down) - 1) for number, level in enumerate(down)]
        )
        self.mid_block = MiddleBlock(bottom, bottom.transformers(1))
        # Each residual block on the way up also takes what one on the way down gave, the last ones first.
        skips = [top.width]
        for number, level in enumerate(down):
            skips += [level.width] * (level.layers + (number < len(down) - 1))
        blocks, below = [], bottom.width
        for number, (kind, level) in enumerate(zip(config["up_block_types"], stages[::-1], strict=True)):
            taken = [skips.pop() for _ in range(level.layers + 1)]
            blocks.append(UpBlock(below, taken, bare(kind, level), number < len(stages) - 1))
            below = level.width
        self.up_blocks = nnx.List(blocks)
        self.conv_norm_out = GroupNorm(top.groups, top.width, top.epsilon, dtype)
        self.conv_out = Conv(top.width, config["out_channels"], dtype)

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        timestep: Float[Array, " batch"],
        context: Float[Array, "batch tokens width"],
        pooled: Float[Array, "batch embed"] | None = None,
        sizes: Float[Array, "batch 6"] | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """See the module; `pooled` and `sizes` (made at, cropped from, shown at; pixels) are conditions of XL."""
        embedding = self.time_embedding(waves(timestep, *self.waves).astype(x.dtype))
        if self.add_embedding is not None and pooled is not None and sizes is not None:
            shape = waves(sizes.reshape(-1), *self.size_waves).reshape(len(x), -1).astype(x.dtype)
            embedding += self.add_embedding(jnp.concatenate([pooled, shape], axis=-1))
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            x = block(x, embedding, context, skips)
        x = self.mid_block(x, embedding, context)
        for block in self.up_blocks:
            x = block(x, embedding, context, skips)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class DownBlock(nnx.Module):
    """`DownBlock2D`, or `CrossAttnDownBlock2D` where the level has transformers."""

    def __init__(self, inputs: int, level: Level, downsample: bool):
        self.resnets = nnx.List([level.resnet(level.width if n else inputs) for n in range(level.layers)])
        self.attentions = level.transformers(level.layers)
        self.downsamplers = nnx.List([Downsample(level.width, level.dtype)] if downsample else [])

    def __call__(self, x: Array, embedding: Array, context: Array, skips: list[Array]) -> Array:
        """Appends what each of its layers gives to `skips`."""
        for number, resnet in enumerate(self.resnets):
            x = resnet(x, embedding)
            if self.attentions:
                x = self.attentions[number](x, context)
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            skips.append(x)
        return x


class MiddleBlock(nnx.Module):
    """`UNetMidBlock2DCrossAttn`, or `UNetMidBlock2D` of an autoencoder."""

    def __init__(self, level: Level, attentions: Iterable[nnx.Module]):
        self.resnets = nnx.List([level.resnet(level.width) for _ in range(2)])
        self.attentions = nnx.List(attentions)

    def __call__(self, x: Array, embedding: Array | None = None, context: Array | None = None) -> Array:
        x = self.resnets[0](x, embedding)
        for attention in self.attentions:
            x = attention(x, context)
        return self.resnets[1](x, embedding)


class UpBlock(nnx.Module):
    """`UpBlock2D`, `CrossAttnUpBlock2D` where the level has transformers, an autoencoder's `UpDecoderBlock2D`."""

    def __init__(self, inputs: int, taken: list[int], level: Level, upsample: bool):
        before = [inputs] + [level.width] * (len(taken) - 1)
        self.resnets = nnx.List([level.resnet(width + skip) for width, skip in zip(before, taken, strict=True)])
        self.attentions = level.transformers(len(taken))
        self.upsamplers = nnx.List([Upsample(level.width, level.dtype)] if upsample else [])

    def __call__(
        self,
        x: Array,
        embedding: Array | None = None,
        context: Array | None = None,
        skips: list[Array] | None = None,
    ) -> Array:
        """Takes what each of its layers adds off the end of `skips`, where there are such."""
        for number, resnet in enumerate(self.resnets):
            x = resnet(jnp.concatenate([x, skips.pop()], axis=-1) if skips else x, embedding)
            if self.attentions:
                x = self.attentions[number](x, context)
        for upsample in self.upsamplers:
            x = upsample(x)
        return x


class Transformer(nnx.Module):
    """Transformer blocks over the pixels of an image (`Transformer2DModel`)."""

    def __init__(self, level: Level):
        self.norm = GroupNorm(level.groups, level.width, 1e-6, level.dtype)
        self.proj_in = Linear(level.width, level.width, level.dtype)
        self.transformer_blocks = nnx.List([TransformerBlock(level) for _ in range(level.depth)])
        self.proj_out = Linear(level.width, level.width, level.dtype)

    def __call__(self, x: Float[Array, "batch height width channels"], context: Array) -> Array:
        tokens = self.proj_in(self.norm(x).reshape(len(x), -1, x.shape[-1]))
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + self.proj_out(tokens).reshape(x.shape)


class TransformerBlock(nnx.Module):
    """Attention to the other pixels, attention to the text, and an MLP (`BasicTransformerBlock`)."""

    def __init__(self, level: Level):
        width, dtype = level.width, level.dtype
        self.norm1 = LayerNorm(width, dtype)
        self.attn1 = Attention(width, width, level.heads, dtype)
        self.norm2 = LayerNorm(width, dtype)
        self.attn2 = Attention(width, level.context, level.heads, dtype)
        self.norm3 = LayerNorm(width, dtype)
        self.ff = GatedMLP(width, dtype)

    def __call__(self, x: Float[Array, "batch tokens width"], context: Array) -> Array:
        x += self.attn1(self.norm1(x))
        x += self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class GatedMLP(nnx.Module):
    """`FeedForward` with `GEGLU`: half of the hidden numbers open and close the other half."""

    def __init__(self, width: int, dtype: str):
        self.net = nnx.Dict(
            {"0": nnx.Dict({"proj": Linear(width, 8 * width, dtype)}), "2": Linear(4 * width, width, dtype)}
        )

    def __call__(self, x: Array) -> Array:
        hidden, gate = jnp.split(self.net["0"]["proj"](x), 2, axis=-1)
        return self.net["2"](hidden * gelu(gate))

"""The decoder of `AutoencoderKL`: latents to images."""

from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from gen.engines.stable_diffusion.layers import Attention, Conv, GroupNorm, Linear, Resnet, Upsample

EPSILON = 1e-6  # of all norms


class Autoencoder(nnx.Module):
    """`AutoencoderKL` without its encoder. `config` is that of its folder."""

    def __init__(self, config: dict[str, Any], dtype: str):
        channels = config["latent_channels"]
        self.post_quant_conv = Linear(channels, channels, dtype) if config["use_post_quant_conv"] else None
        self.decoder = Decoder(config, dtype)

    def __call__(self, latents: Float[Array, "batch height width channels"]) -> Float[Array, "batch side side 3"]:
        return self.decoder(latents if self.post_quant_conv is None else self.post_quant_conv(latents))


class Decoder(nnx.Module):
    """Widens latents, mixes them once by attention, and doubles their sides with every block but the last."""

    def __init__(self, config: dict[str, Any], dtype: str):
        widths, groups = config["block_out_channels"][::-1], config["norm_num_groups"]
        self.conv_in = Conv(config["latent_channels"], widths[0], dtype)
        self.mid_block = MiddleBlock(widths[0], groups, config["mid_block_add_attention"], dtype)
        blocks = []
        for number, (inputs, width) in enumerate(zip([widths[0], *widths], widths, strict=False)):
            last = number == len(widths) - 1
            blocks.append(UpBlock(inputs, width, config["layers_per_block"] + 1, groups, not last, dtype))
        self.up_blocks = nnx.List(blocks)
        self.conv_norm_out = GroupNorm(groups, widths[-1], EPSILON, dtype)
        self.conv_out = Conv(widths[-1], config["out_channels"], dtype)

    def __call__(self, x: Array) -> Array:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class MiddleBlock(nnx.Module):
    """`UNetMidBlock2D`."""

    def __init__(self, width: int, groups: int, attention: bool, dtype: str):
        self.resnets = nnx.List([Resnet(width, width, 0, groups, EPSILON, dtype) for _ in range(2)])
        self.attentions = nnx.List([PixelAttention(width, groups, dtype)] if attention else [])

    def __call__(self, x: Array) -> Array:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class PixelAttention(Attention):
    """All pixels attend to each other, with one head."""

    def __init__(self, width: int, groups: int, dtype: str):
        super().__init__(width, width, 1, dtype, bias=True)
        self.group_norm = GroupNorm(groups, width, EPSILON, dtype)

    def __call__(self, x: Float[Array, "batch height width channels"], context: None = None) -> Array:
        tokens = self.group_norm(x).reshape(len(x), -1, x.shape[-1])
        return x + super().__call__(tokens).reshape(x.shape)


class UpBlock(nnx.Module):
    """`UpDecoderBlock2D`."""

    def __init__(self, inputs: int, width: int, layers: int, groups: int, upsample: bool, dtype: str):
        self.resnets = nnx.List(
            [Resnet(width if number else inputs, width, 0, groups, EPSILON, dtype) for number in range(layers)]
        )
        self.upsamplers = nnx.List([Upsample(width, dtype)] if upsample else [])

    def __call__(self, x: Array) -> Array:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x

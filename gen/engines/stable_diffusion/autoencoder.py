"""The decoder of `AutoencoderKL`: latents to images."""

from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from gen.engines.stable_diffusion.layers import Attention, Conv, GroupNorm, Linear
from gen.engines.stable_diffusion.unet import Level, MiddleBlock, UpBlock

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
        taken = [0] * (config["layers_per_block"] + 1)  # nothing is left from a way down
        shared = {"layers": len(taken), "groups": config["norm_num_groups"], "epsilon": EPSILON, "dtype": dtype}
        levels = [
            Level(width, depth=0, heads=1, context=width, embedding=0, **shared)
            for width in config["block_out_channels"][::-1]
        ]
        top, bottom = levels[-1], levels[0]
        self.conv_in = Conv(config["latent_channels"], bottom.width, dtype)
        self.mid_block = MiddleBlock(bottom, [PixelAttention(bottom)] if config["mid_block_add_attention"] else [])
        self.up_blocks = nnx.List(
            [
                UpBlock(below.width, taken, level, upsample=level is not top)
                for below, level in zip([bottom, *levels], levels, strict=False)
            ]
        )
        self.conv_norm_out = GroupNorm(top.groups, top.width, EPSILON, dtype)
        self.conv_out = Conv(top.width, config["out_channels"], dtype)

    def __call__(self, x: Array) -> Array:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class PixelAttention(Attention):
    """All pixels attend to each other."""

    def __init__(self, level: Level):
        super().__init__(level.width, level.context, level.heads, level.dtype, bias=True)
        self.group_norm = GroupNorm(level.groups, level.width, level.epsilon, level.dtype)

    def __call__(self, x: Float[Array, "batch height width channels"], context: None = None) -> Array:
        tokens = self.group_norm(x).reshape(len(x), -1, x.shape[-1])
        return x + super().__call__(tokens).reshape(x.shape)

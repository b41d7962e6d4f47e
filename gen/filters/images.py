"""Which images are not worth keeping, each reason by its name.

The engines have reasons of their own, counted beside these: `nan`, `unsafe` (diffusers' safety checker, where its
weights are there), `not_drawable` (sprites). An image that fails is drawn again with another seed, up to
`gen.images.max_attempts` times.
"""

import numpy as np
from jaxtyping import UInt8

from synthclip_jax.config.generation import Images

BLANK = "blank"  # hardly anything on it: a failed decoder, a black image in the place of an unsafe one
SATURATED = "saturated"  # burnt out colours: too much guidance, numbers that overflow
UNDECODABLE = "undecodable"  # what the encoder wrote cannot be read back

DARK, BRIGHT = 2, 253  # a colour is clipped where one channel is this low and another this high


def reject_reason(pixels: UInt8[np.ndarray, "side side 3"], images: Images) -> str | None:
    """Why an image is turned away, or None.

    Args:
      images: `config.gen.images`, which has the limits.
    """
    if pixels.std(axis=(0, 1)).max() < images.min_std:  # of each channel: an image of one colour is blank, too
        return BLANK
    if images.max_saturated < 1 and saturated_share(pixels) > images.max_saturated:
        return SATURATED
    return None


def saturated_share(pixels: UInt8[np.ndarray, "side side 3"]) -> float:
    """The share of pixels whose colour is clipped at both ends. Black and white are not, however much of them."""
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    lowest = np.minimum(np.minimum(red, green), blue)
    highest = np.maximum(np.maximum(red, green), blue)
    return float(np.count_nonzero((lowest <= DARK) & (highest >= BRIGHT)) / lowest.size)

"""From an image to what the model sees: resize and centre crop on the host, mean and standard deviation on device.

This is the evaluation transform (the training one, with its random crop, is in `data.augment`). It does what
open_clip and torchvision do, on PIL images and with PIL's antialiased resampling, in the same order: resize the short
side, centre crop, and only then convert to RGB.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from synthclip_jax.config.schema import Data
from synthclip_jax.images.decoding import ImageError, open_image

__all__ = ("INTERPOLATIONS", "ImageError", "Preprocess", "normalise", "open_image")

MAX_RATIO = 64  # of an image's sides; of what is longer, only the middle is scaled

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """The evaluation transform of a model: saved with its weights, because they are of no use without it.

    Attributes:
      image_size: side of the square that the model takes, pixels.
      mean, std: per channel (red, green, blue), of pixels in [0, 1].
      interpolation: `bilinear` or `bicubic`, antialiased.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str

    @classmethod
    def from_config(cls, data: Data) -> "Preprocess":
        """The transform that `config.data` describes."""
        return cls(data.image_size, tuple(data.mean), tuple(data.std), data.interpolation)

    def __call__(self, image: Image.Image | bytes) -> UInt8[np.ndarray, "size size 3"]:
        """Resizes the short side to `image_size`, crops the centre, converts to RGB.

        Raises:
          ImageError: the bytes are no image that decodes.
        """
        # RGB first, as training has it, and as the readers do that hand images to open_clip's transform.
        image = open_image(image).convert("RGB") if isinstance(image, bytes) else image
        image = _without_far_ends(image)
        size, (width, height) = self.image_size, image.size
        if min(width, height) != size:  # torchvision leaves an image alone whose short side fits already
            scaled = int(size * max(width, height) / min(width, height))
            target = (size, scaled) if width <= height else (scaled, size)
            image = image.resize(target, INTERPOLATIONS[self.interpolation])
        left, top = round((image.width - size) / 2.0), round((image.height - size) / 2.0)
        return np.asarray(image.crop((left, top, left + size, top + size)).convert("RGB"))

    def batch(self, images: Sequence[Image.Image | bytes]) -> UInt8[np.ndarray, "b size size 3"]:
        """The transform of several images, stacked."""
        return np.stack([self(image) for image in images])

    def normalise(self, images: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """Pixels 0 to 255 as float32 with mean and standard deviation taken off. Runs on the device, inside `jit`."""
        return normalise(images, self.mean, self.std)


def _without_far_ends(image: Image.Image) -> Image.Image:
    """The middle of an image that is very long or very high: scaled up, all of it would take gigabytes."""
    width, height = image.size
    longest = MAX_RATIO * min(width, height)
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, width - left, height - top)) if left or top else image


def normalise(images: UInt8[Array, "b h w 3"], mean: Sequence[float], std: Sequence[float]) -> Float[Array, "b h w 3"]:
    """`(images / 255 - mean) / std` in float32."""
    import jax.numpy as jnp  # here, so that the host side of this module works without a device

    mean, std = (jnp.asarray(value, jnp.float32).reshape(1, 1, 1, 3) for value in (mean, std))
    return (images.astype(jnp.float32) / 255.0 - mean) / std

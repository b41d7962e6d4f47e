"""Random crop, mirror, grey and inversion of a decoded training image."""

import dataclasses
import math

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from synthclip_jax.config.schema import Data
from synthclip_jax.images.decoding import Pixels, decode_image
from synthclip_jax.model.preprocess import INTERPOLATIONS

__all__ = ("Augment", "Pixels", "decode_image", "draw_crop", "resize")

# From this factor of shrinking on, resampling takes the slower antialiased path (PIL's). Below it the difference is a
# grey level or two, and images stored at 256 px and cropped to 224 px always stay below.
ANTIALIAS_FROM = 1.25


def draw_crop(
    rng: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Draws the window (top, left, height, width) of torchvision's `RandomResizedCrop`.

    Args:
      scale: smallest and largest share of the image's area.
      ratio: smallest and largest width over height, drawn log-uniformly.
    """
    area, low, high = height * width, math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        target = area * (scale[0] + (scale[1] - scale[0]) * rng.random())
        aspect = math.exp(low + (high - low) * rng.random())
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1)), h, w
    # No draw fitted: the largest centred window whose ratio is allowed.
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def resize(image: Pixels, size: int, interpolation: str) -> UInt8[np.ndarray, "size size 3"]:
    """Resamples a window to a square.

    Bilinear is PIL's to within a grey level. OpenCV's bicubic kernel is a little sharper than PIL's, which is of no
    account under random crops and costs a tenth (evaluation uses PIL: `synthclip_jax.model.preprocess`).
    """
    if max(image.shape[0], image.shape[1]) < ANTIALIAS_FROM * size:
        return cv2.resize(image, (size, size), interpolation=_OPENCV_INTERPOLATIONS[interpolation])
    return np.asarray(Image.fromarray(image).resize((size, size), INTERPOLATIONS[interpolation]))


_OPENCV_INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random crop, mirror, grey and inversion of an image, all drawn from the generator given."""

    image_size: int
    crop_scale: tuple[float, float]
    crop_ratio: tuple[float, float]
    interpolation: str
    grayscale: float
    invert: float
    flip: float

    @classmethod
    def from_config(cls, data: Data) -> "Augment":
        return cls(**{field.name: data[field.name] for field in dataclasses.fields(cls)})

    def __call__(self, image: Pixels, rng: np.random.Generator) -> UInt8[np.ndarray, "size size 3"]:
        height, width = image.shape[:2]
        top, left, h, w = draw_crop(rng, height, width, self.crop_scale, self.crop_ratio)
        image = resize(image[top : top + h, left : left + w], self.image_size, self.interpolation)
        # A draw is made only for what can happen, so that unused options cost nothing.
        if self.flip and rng.random() < self.flip:
            image = cv2.flip(image, 1)
        if self.grayscale and rng.random() < self.grayscale:
            image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        if self.invert and rng.random() < self.invert:
            image = 255 - image
        return image

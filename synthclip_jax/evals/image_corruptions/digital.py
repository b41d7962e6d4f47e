"""What happens to an image after it was taken: less contrast, stretching, large pixels, compression."""

import functools
import io

import cv2
import numpy as np
import scipy.fft
from jaxtyping import Float
from PIL import Image as PIL

Image = Float[np.ndarray, "h w 3"]


def contrast(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Nearer to the mean colour."""
    mean = image.mean(axis=(0, 1))
    return (image - mean) * np.float32((0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]) + mean


def elastic_transform(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Stretched as a whole by a random affine map, then locally by smooth random shifts (Simard et al. 2003)."""
    # The original's numbers are shares of 244, for images of 224.
    shift, sigma, corner = 244 * np.array(
        ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))[severity - 1]
    )
    height, width = image.shape[:2]
    middle, reach = np.array([height // 2, width // 2], np.float32), min(height, width) // 3
    points = np.array([middle + reach, [middle[0] + reach, middle[1] - reach], middle - reach], np.float32)
    moved = points + rng.uniform(-corner, corner, points.shape).astype(np.float32)
    matrix = cv2.getAffineTransform(points, moved)
    image = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    dx, dy = (shift * _smooth(rng.uniform(-1, 1, (height, width)), float(sigma)) for _ in range(2))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    places = (x + dx).astype(np.float32), (y + dy).astype(np.float32)
    return cv2.remap(image, *places, interpolation=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def pixelate(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Made smaller, and large again without smoothing."""
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    height, width = image.shape[:2]
    small = _pil(image).resize((max(1, int(width * share)), max(1, int(height * share))), PIL.Resampling.BOX)
    return np.asarray(small.resize((width, height), PIL.Resampling.BOX), np.float32) / 255


def jpeg_compression(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Saved as a JPEG of low quality."""
    file = io.BytesIO()
    _pil(image).save(file, "JPEG", quality=(25, 18, 15, 10, 7)[severity - 1])
    return np.asarray(PIL.open(file), np.float32) / 255


def _pil(image: Image) -> PIL.Image:
    return PIL.fromarray(np.rint(image * 255).astype(np.uint8))


def _smooth(field: Float[np.ndarray, "h w"], sigma: float) -> Float[np.ndarray, "h w"]:
    """A field after a Gaussian that ends at three sigma, mirrored at its edges.

    With such edges a convolution is a product in the cosine transform; the widest Gaussian has a thousand taps.
    """
    factors = np.outer(_gaussian_in_cosines(field.shape[0], sigma), _gaussian_in_cosines(field.shape[1], sigma))
    return scipy.fft.idctn(scipy.fft.dctn(field) * factors)


@functools.lru_cache(maxsize=32)
def _gaussian_in_cosines(side: int, sigma: float) -> Float[np.ndarray, " side"]:
    reach = int(3 * sigma + 0.5)
    taps = np.arange(-reach, reach + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    weights /= weights.sum()
    return np.cos(np.pi * np.outer(np.arange(side), taps) / side) @ weights

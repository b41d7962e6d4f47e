"""Blur: out of focus, through frosted glass, by moving, by zooming in."""

import math

import cv2
import numpy as np
from jaxtyping import Float

Image = Float[np.ndarray, "h w 3"]


def defocus_blur(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """A disk in place of each point, its edge smoothed a little."""
    radius, smoothing = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    reach = max(8, radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.float32)
    size = 3 if radius <= 8 else 5
    kernel = cv2.GaussianBlur(disk / disk.sum(), (size, size), smoothing)
    return cv2.filter2D(image, -1, kernel)


def glass_blur(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Each pixel changes places with one nearby, once or several times, between two light blurs."""
    sigma, reach, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[severity - 1]
    height, width = image.shape[:2]
    rows, columns = np.arange(height - reach, reach, -1), np.arange(width - reach, reach, -1)
    here = (rows[:, None] * width + columns).ravel()
    order = list(range(height * width))
    for _ in range(rounds):
        dy, dx = rng.integers(-reach, reach, (2, len(here)))
        # One exchange sees what those before it did: a plain list does that sooner than arrays could.
        for one, other in zip(here.tolist(), (here + dy * width + dx).tolist(), strict=True):
            order[one], order[other] = order[other], order[one]
        # The next round goes on from where the pixels are now.
    blurred = _gaussian(image, sigma).reshape(-1, 3)
    return _gaussian(blurred[order].reshape(image.shape), sigma)


def motion_blur(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """A trail that fades, in a direction within 45 degrees of the horizontal."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    return along(image, radius, sigma, rng.uniform(-45, 45))


def zoom_blur(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """The mean of the image and of itself seen ever nearer."""
    farthest, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[severity - 1]
    factors = np.arange(1, farthest, step)
    return (image + sum(zoomed(image, factor) for factor in factors)) / np.float32(len(factors) + 1)


def along(image: Float[np.ndarray, "h w ..."], radius: int, sigma: float, degrees: float) -> np.ndarray:
    """The image with a trail of `2 radius + 1` pixels, half a Gaussian of `sigma`, in a direction."""
    length = 2 * radius + 1
    weights = np.exp(-(np.arange(length) ** 2) / (2 * sigma**2))
    kernel = np.zeros((2 * length + 1, 2 * length + 1))
    angle = math.radians(degrees)
    for step, weight in enumerate(weights / weights.sum()):
        kernel[length + round(step * math.sin(angle)), length + round(step * math.cos(angle))] += weight
    return cv2.filter2D(image, -1, kernel.astype(np.float32), borderType=cv2.BORDER_REPLICATE)


def zoomed(image: Float[np.ndarray, "h w ..."], factor: float) -> np.ndarray:
    """The middle of the image, larger by this factor, at the image's size."""
    height, width = image.shape[:2]
    x, y = (1 - factor) * (width - 1) / 2, (1 - factor) * (height - 1) / 2
    matrix = np.array([[factor, 0, x], [0, factor, y]])
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _gaussian(image: Image, sigma: float) -> Image:
    size = 2 * int(4 * sigma + 0.5) + 1
    return cv2.GaussianBlur(image, (size, size), sigma, borderType=cv2.BORDER_REPLICATE)

"""Weather: snow, frost, fog, and more light."""

import functools

import cv2
import numpy as np
from jaxtyping import Float

from synthclip_jax.evals.image_corruptions.blur import along, zoomed

Image = Float[np.ndarray, "h w 3"]
Grey = Float[np.ndarray, "h w"]

# Of the flakes: mean and deviation of the noise, its zoom, the least that is a flake, radius and sigma of their trails;
# last, how much of the image stays as it is.
_SNOW = (
    (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)
_TEXTURE = 512  # side of the drawn frost, pixels


def snow(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Flakes with trails over a whitened image."""
    mean, deviation, zoom, least, radius, sigma, kept = _SNOW[severity - 1]
    flakes = zoomed(rng.normal(mean, deviation, image.shape[:2]).astype(np.float32), zoom)
    flakes = np.clip(np.where(flakes < least, 0, flakes), 0, 1)
    flakes = along(flakes, radius, sigma, rng.uniform(-135, -45))[..., None]
    white = np.maximum(image, cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] * 1.5 + 0.5)
    return kept * image + (1 - kept) * white + flakes + np.rot90(flakes, 2)


def frost(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Ice on the lens: a part of a drawn texture, not of the original's photographs."""
    kept, added = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity - 1]
    height, width = image.shape[:2]
    texture = _frost(max(_TEXTURE, 2 * height, 2 * width))
    top, left = rng.integers(len(texture) - height + 1), rng.integers(len(texture) - width + 1)
    return kept * image + added * texture[top : top + height, left : left + width]


def fog(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """A cloud, the finer the rougher, over a darker image."""
    thickness, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[severity - 1]
    height, width = image.shape[:2]
    cloud = plasma(max(height, width), decay, rng)[:height, :width, None]
    white = image.max()
    return (image + thickness * cloud) * white / (white + thickness)


def brightness(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """More of HSV's value."""
    colours = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    colours[..., 2] = np.clip(colours[..., 2] + (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1], 0, 1)
    return cv2.cvtColor(colours, cv2.COLOR_HSV2RGB)


def plasma(side: int, decay: float, rng: np.random.Generator) -> Grey:
    """A plasma fractal in [0, 1] whose edges meet, by diamonds and squares (Fournier, Fussell and Carpenter 1982).

    Args:
      side: the least it may have; it has the next power of two.
      decay: from one scale to the next finer one, the noise shrinks by the square of this.
    """
    size = 1 << max(1, (side - 1).bit_length())
    grid = np.zeros((size, size), np.float32)
    step, amplitude = size, 1.0
    while step > 1:
        half = step // 2
        count = size // step

        def noise(amplitude: float = amplitude, count: int = count) -> Grey:
            return amplitude * rng.uniform(-1, 1, (count, count)).astype(np.float32)

        corners = grid[::step, ::step]
        rows = corners + np.roll(corners, -1, 0)
        centres = (rows + np.roll(rows, -1, 1)) / 4 + noise()
        grid[half::step, half::step] = centres
        across = corners + np.roll(corners, -1, 1)
        grid[::step, half::step] = (across + centres + np.roll(centres, 1, 0)) / 4 + noise()
        grid[half::step, ::step] = (rows + centres + np.roll(centres, 1, 1)) / 4 + noise()
        step, amplitude = half, amplitude / decay**2
    grid -= grid.min()
    return grid / grid.max()


@functools.cache
def _frost(side: int) -> Image:
    """A texture of ice, the same for every image: bluish feathers where clouds of noise cross their middle."""
    rng = np.random.default_rng(1903)
    ice = np.zeros((side, side), np.float32)
    for decay, sharpness, share in ((1.3, 10, 0.5), (1.2, 16, 0.35), (1.15, 24, 0.3)):
        cloud = plasma(side, decay, rng)[:side, :side]
        ice += share * np.exp(-sharpness * np.abs(cloud - np.median(cloud)))
    ice = np.clip(ice + 0.25 * plasma(side, 1.5, rng)[:side, :side], 0, 1)
    return ice[..., None] * np.array([0.85, 0.93, 1.0], np.float32)

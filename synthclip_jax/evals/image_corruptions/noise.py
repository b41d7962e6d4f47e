"""Noise of sensors and of transmission."""

import numpy as np
from jaxtyping import Float

Image = Float[np.ndarray, "h w 3"]


def gaussian_noise(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Normal noise on every value."""
    return image + (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1] * rng.standard_normal(image.shape, np.float32)


def shot_noise(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """What counting few photons gives: Poisson noise."""
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return (rng.poisson(image * photons) / photons).astype(np.float32)


def impulse_noise(image: Image, severity: int, rng: np.random.Generator) -> Image:
    """Salt and pepper: a share of all values is 0 or 1, each as likely."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    draw = rng.random(image.shape, np.float32)
    return np.where(draw < share / 2, 0, np.where(draw < share, 1, image)).astype(np.float32)

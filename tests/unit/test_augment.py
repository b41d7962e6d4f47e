"""Training images: cropped as torchvision does, changed as often as the config says."""

import math

import cv2
import numpy as np
import pytest
from PIL import Image
from toy_dataset import pixels

from synthclip_jax.data.augment import Augment, draw_crop, resize


def test_crops_follow_torchvisions_definition():
    rng = np.random.default_rng(0)
    draws = np.array([draw_crop(rng, 200, 300, (0.3, 0.6), (3 / 4, 4 / 3)) for _ in range(4000)])
    top, left, height, width = draws.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 200).all()
    assert (left + width <= 300).all()
    share, ratio = height * width / 60_000, width / height
    assert share.min() > 0.29
    assert share.max() < 0.61
    assert ratio.min() > 0.74
    assert ratio.max() < 1.35
    # Area uniform, ratio log-uniform, position uniform: their means, within 4 standard errors.
    assert abs(share.mean() - 0.45) < 4 * 0.3 / math.sqrt(12 * 4000) + 0.002
    assert abs(np.log(ratio).mean()) < 0.02
    assert abs((left / (300 - width)).mean() - 0.5) < 4 / math.sqrt(12 * 4000) + 0.01


def test_a_crop_that_never_fits_is_the_largest_allowed_one_in_the_centre():
    rng = np.random.default_rng(0)
    assert draw_crop(rng, 10, 1000, (1.0, 1.0), (3 / 4, 4 / 3)) == (0, (1000 - 13) // 2, 10, 13)
    assert draw_crop(rng, 1000, 12, (1.0, 1.0), (3 / 4, 4 / 3)) == ((1000 - 16) // 2, 0, 16, 12)


def smooth(height, width, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.GaussianBlur(noise, (9, 9), 2)


@pytest.mark.parametrize(("side", "tolerance"), [(40, 1), (64, 0), (72, 3), (150, 0)])
def test_bilinear_resize_is_pils_antialiased_one_where_it_can_be_seen(side, tolerance):
    image = smooth(side, side)
    expected = np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR))
    assert np.abs(resize(image, 64, "bilinear").astype(int) - expected).max() <= tolerance


def augmented(probability, **changes):
    settings = {"grayscale": 0.0, "invert": 0.0, "flip": 0.0, **changes}
    augment = Augment(32, (1.0, 1.0), (1.0, 1.0), "bilinear", **settings)
    rng = np.random.default_rng(0)
    return [augment(pixels(1), rng) for _ in range(round(200 * probability))]


def test_mirror_grey_and_inversion_happen_with_their_probability():
    image = pixels(1)
    grey = np.asarray(Image.fromarray(image).convert("L").convert("RGB"))
    for name, changed in (("flip", image[:, ::-1]), ("grayscale", grey), ("invert", 255 - image)):
        results = augmented(1, **{name: 0.3})
        hits = sum(np.abs(result.astype(int) - changed).max() <= 1 for result in results)
        kept = sum(np.array_equal(result, image) for result in results)
        assert hits + kept == 200
        assert 35 <= hits <= 85
        assert all(np.abs(result.astype(int) - changed).max() <= 1 for result in augmented(0.1, **{name: 1.0}))

"""The image gates: what they turn away, and what they must let through."""

import numpy as np
import pytest

from gen.filters.images import BLANK, SATURATED, reject_reason, saturated_share
from synthclip_jax.config import default_config

IMAGES = default_config().gen.images


def plain(*colour, size=16):
    return np.full((size, size, 3), colour, np.uint8)


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (120, 40, 200)])
def test_an_image_of_one_colour_is_blank(colour):
    assert reject_reason(plain(*colour), IMAGES) == BLANK


def test_burnt_out_colours_are_saturated():
    pixels = plain(255, 0, 0)
    pixels[:, 8:] = (0, 255, 254)
    assert saturated_share(pixels) == 1.0
    assert reject_reason(pixels, IMAGES) == SATURATED


def test_black_and_white_are_not_saturated_however_much_of_them():
    pixels = plain(255, 255, 255)
    pixels[4:8, 4:8] = 0
    assert saturated_share(pixels) == 0.0
    assert reject_reason(pixels, IMAGES) is None


def test_the_share_allowed_is_the_config_s():
    pixels = plain(90, 120, 130)
    pixels[:4] = (255, 0, 0)  # a quarter
    assert saturated_share(pixels) == 0.25
    assert reject_reason(pixels, IMAGES) is None
    config = default_config().gen.images
    config.max_saturated = 0.2
    assert reject_reason(pixels, config) == SATURATED
    config.max_saturated = 1.0
    assert reject_reason(plain(255, 0, 0) + np.arange(16, dtype=np.uint8)[:, None, None] * 0, config) == BLANK


def test_noise_and_ordinary_images_pass():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert reject_reason(noise, IMAGES) is None

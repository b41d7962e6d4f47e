"""The evaluation transform is torchvision's."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from toy_images import encode

from synthclip_jax.config import default_config
from synthclip_jax.model.preprocess import Preprocess, normalise

PREPROCESS = Preprocess(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bicubic")


def photo(height, width, mode="RGB", seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
@pytest.mark.parametrize("shape", [(32, 32), (50, 33), (33, 71), (20, 47), (131, 64)])
def test_the_transform_is_torchvisions(shape, mode, interpolation):
    transforms = pytest.importorskip("torchvision.transforms")
    image = photo(*shape, mode)
    theirs = transforms.Compose(
        [
            transforms.Resize(32, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(32),
            lambda image: image.convert("RGB"),
        ]
    )
    ours = Preprocess(32, (0.5,) * 3, (0.5,) * 3, interpolation)(image)
    np.testing.assert_array_equal(ours, np.asarray(theirs(image)))


def test_the_short_side_is_resized_and_the_centre_kept():
    image = np.zeros((32, 96, 3), np.uint8)
    image[:, 32:64] = 200
    np.testing.assert_array_equal(PREPROCESS(Image.fromarray(image)), np.full((32, 32, 3), 200))
    assert PREPROCESS(photo(100, 45)).shape == (32, 32, 3)


def test_images_and_their_bytes_give_the_same():
    image = photo(40, 60)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    np.testing.assert_array_equal(PREPROCESS.batch([buffer.getvalue()])[0], PREPROCESS(image))


def test_bytes_are_made_rgb_first_so_that_what_is_transparent_keeps_the_colour_that_training_sees():
    logo = Image.new("RGBA", (60, 44), (250, 240, 230, 0))
    pixels = PREPROCESS(encode(logo, "PNG"))
    np.testing.assert_array_equal(pixels, np.broadcast_to((250, 240, 230), (32, 32, 3)))


@pytest.mark.parametrize("shape", [(1, 4_000_000), (4_000_000, 1)])
def test_of_a_very_long_image_the_middle_is_scaled_and_not_all_of_it(shape):
    pixels = np.zeros((*shape, 3), np.uint8)
    middle = [slice(max(0, side // 2 - 500), side // 2 + 500) for side in shape]
    pixels[tuple(middle)] = 200
    np.testing.assert_array_equal(PREPROCESS(Image.fromarray(pixels)), np.full((32, 32, 3), 200))


def test_normalisation_takes_off_mean_and_deviation_per_channel():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    expected = (images / 255 - np.array(PREPROCESS.mean)) / np.array(PREPROCESS.std)
    result = PREPROCESS.normalise(jnp.asarray(images))
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(result, normalise(jnp.asarray(images), PREPROCESS.mean, PREPROCESS.std))


def test_the_transform_is_the_one_that_the_config_describes():
    data = default_config().data
    assert Preprocess.from_config(data) == Preprocess(224, data.mean, data.std, "bilinear")

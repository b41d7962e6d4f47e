"""Corrupted images beside those of the package imagecorruptions 1.1.2, itself a port of ImageNet-C's program.

Kinds without anything at random are compared pixel by pixel. Of the others, how much an image changes, over several
draws: in its pixels, in its means and in its contrast. Two kinds are other ones there, and not compared: elastic
transforms, to which its authors gave strengths of their own, and frost, which is photographs there.
"""

import sys
import types

import numpy as np
import pytest
import scipy.ndimage

from synthclip_jax.evals.image_corruptions import SEVERITIES, SIDE, corrupt
from synthclip_jax.evals.image_corruptions.blur import along

skimage = pytest.importorskip("skimage")
filters = pytest.importorskip("skimage.filters")
DRAWS = 4


@pytest.fixture(scope="module")
def reference():
    """The package, which was written for older versions of what it imports."""
    with pytest.MonkeyPatch.context() as patch:
        old = types.ModuleType("scipy.ndimage.interpolation")
        old.map_coordinates = scipy.ndimage.map_coordinates
        patch.setitem(sys.modules, "scipy.ndimage.interpolation", old)
        resources = types.ModuleType("pkg_resources")
        resources.resource_filename = lambda *names: ""
        patch.setitem(sys.modules, "pkg_resources", resources)
        patch.setattr(np, "float_", np.float64, raising=False)
        corruptions = pytest.importorskip("imagecorruptions.corruptions")
        gaussian = filters.gaussian

        def with_channels(image, sigma, multichannel=False, **others):
            return gaussian(image, sigma=sigma, channel_axis=-1 if multichannel else None, **others)

        patch.setattr(corruptions, "gaussian", with_channels)
        yield pytest.importorskip("imagecorruptions").corrupt


@pytest.fixture(scope="module")
def photo():
    """Something like a photograph: shapes over shades, with detail."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    image = np.stack([(x + y) / 448 * 200 + 20, 90 + 80 * np.sin(x / 17), np.hypot(x - 90, y - 120) % 180], -1)
    image += 25 * scipy.ndimage.gaussian_filter(rng.normal(size=image.shape), (1, 1, 0)) / 0.28
    image[60:150, 40:100] = (200, 40, 50)
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize(
    ("kind", "tolerance"),
    # In 255ths: what truncation there and rounding here leave; its zoom is that of SciPy, on a grid half a pixel off.
    [
        ("defocus_blur", 1),
        ("brightness", 2),
        ("contrast", 1),
        ("pixelate", 1),
        ("jpeg_compression", 0),
        ("zoom_blur", 60),
    ],
)
def test_what_is_not_random_is_the_same_pixel_by_pixel(reference, photo, kind, severity, tolerance):
    theirs = reference(photo, severity, kind).astype(int)
    difference = np.abs(corrupt(photo, kind, severity) - theirs)
    assert difference.max() <= tolerance
    assert difference.mean() <= (1 if kind != "zoom_blur" else 0.25 * np.abs(theirs - photo).mean())


def signature(images, photo):
    """How images differ from the one they were made from: pixel by pixel, in the mean, in contrast, in detail."""
    differences = [np.abs(image.astype(float) - photo).mean() for image in images]
    means = [image.mean() for image in images]
    spreads = [image.std() for image in images]
    details = [np.abs(np.diff(image.astype(float), axis=1)).mean() for image in images]
    return [float(np.mean(part)) for part in (differences, means, spreads, details)]


@pytest.mark.parametrize("degrees", [-45, -130, -17.5, 0, 31, 45])
def test_a_trail_in_a_given_direction_is_the_same(reference, photo, degrees):
    from imagecorruptions.corruptions import _motion_blur

    for radius, sigma in ((10, 3), (20, 15)):
        theirs = _motion_blur(photo.astype(np.float32), radius, sigma, degrees)
        difference = np.abs(along(photo.astype(np.float32), radius, sigma, degrees) - theirs)
        assert difference.max() < 1  # of 255
        assert difference.mean() < 0.05


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("kind", ["gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "snow", "fog"])
def test_what_is_random_changes_an_image_as_much(reference, photo, kind, severity):
    np.random.seed(severity)
    count = 1 if kind == "glass_blur" else 16 if kind == "fog" else DRAWS  # the first is slow there, clouds vary most
    theirs = signature([reference(photo, severity, kind) for _ in range(count)], photo)
    ours = signature([corrupt(photo, kind, severity, str(draw)) for draw in range(count)], photo)
    noise = kind.endswith("noise")
    for name, mine, other in zip(("difference", "mean", "contrast", "detail"), ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=0.05 if noise else 0.15), name

"""Corrupted images: each kind against a plain reading of its definition, and the suite on a small model."""

import colorsys
import io
import itertools

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from toy_clip import tiny_clip
from toy_testset import coloured, image_bytes, write_wds

from synthclip_jax.config.registry import CORRUPTIONS
from synthclip_jax.errors import EvaluationError
from synthclip_jax.evals import assignment, intervals
from synthclip_jax.evals.corruptions import Corruptions, metrics
from synthclip_jax.evals.datasets import open_dataset
from synthclip_jax.evals.image_corruptions import SEVERITIES, SIDE, corrupt, group_of
from synthclip_jax.evals.image_corruptions.digital import _smooth
from synthclip_jax.evals.image_corruptions.weather import plasma
from synthclip_jax.evals.zeroshot import ZeroShot
from synthclip_jax.model.encoder import Encoder

KINDS = tuple(CORRUPTIONS)


@pytest.fixture(scope="module")
def photo():
    """Stripes, edges and a gradient, of another height than width."""
    y, x = np.mgrid[:96, :80]
    parts = ((x + y) / 176 * 255, 255 * ((x // 12 + y // 10) % 2), np.hypot(x - 30, y - 40) % 120 * 2)
    return np.stack(parts, -1).astype(np.uint8)


def test_there_are_fifteen_kinds_in_four_groups():
    grouped = {group: sum(group_of(kind) == group for kind in KINDS) for group in map(group_of, KINDS)}
    assert grouped == {"noise": 3, "blur": 4, "weather": 4, "digital": 4}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_changes_every_image_in_its_own_way_that_is_the_same_each_time(photo, kind):
    before = photo.copy()
    for severity in (1, 5):
        image = corrupt(photo, kind, severity, "a")
        assert (image.dtype, image.shape) == (np.uint8, photo.shape)
        np.testing.assert_array_equal(image, corrupt(photo, kind, severity, "a"))
        assert np.abs(image.astype(int) - photo).mean() > 1
        random = kind not in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
        assert (image != corrupt(photo, kind, severity, "b")).any() == random
    np.testing.assert_array_equal(photo, before)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("elastic_transform", "frost", "fog")])
def test_the_highest_severity_changes_more_than_the_lowest(kind):
    # Of the others the original's strengths were chosen by eye, for what a change does and not how much it is.
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.uniform(0, 255, (SIDE, SIDE, 3)), (2, 2, 0))
    image = np.clip(127 + 5 * (smooth - 127), 0, 255).astype(np.uint8)
    low, high = (np.abs(corrupt(image, kind, severity).astype(float) - image).mean() for severity in (1, 5))
    assert high > 1.1 * low


def test_noise_has_the_published_strengths():
    grey = np.full((SIDE, SIDE, 3), 128, np.uint8)
    for severity, deviation, photons, share in zip(
        SEVERITIES, (0.08, 0.12, 0.18, 0.26, 0.38), (60, 25, 12, 5, 3), (0.03, 0.06, 0.09, 0.17, 0.27), strict=True
    ):
        noisy = corrupt(grey, "gaussian_noise", severity).astype(float).ravel() / 255 - 128 / 255
        inside = np.abs(noisy) < 0.4  # what is not clipped: the middle of the distribution
        from scipy import stats

        assert noisy.mean() == pytest.approx(0, abs=0.01)
        assert inside.mean() == pytest.approx(1 - 2 * stats.norm.sf(0.4 / deviation), abs=0.005)
        counted = corrupt(grey, "shot_noise", severity) / 255 * photons
        expected = [stats.poisson.cdf(k, photons * 128 / 255) for k in range(photons)]
        measured = [(counted < k + 0.5).mean() for k in range(photons)]
        assert measured == pytest.approx(expected, abs=0.01)
        salted = corrupt(grey, "impulse_noise", severity)
        assert (salted == 0).mean() == pytest.approx(share / 2, abs=0.003)
        assert (salted == 255).mean() == pytest.approx(share / 2, abs=0.003)
        assert ((salted == 128) | (salted == 0) | (salted == 255)).all()


def test_blur_is_what_a_plain_convolution_gives(photo):
    pixels = photo / 255
    radius = 6  # of severity 3: a disk, its edge smoothed by a Gaussian of 0.5 in three taps
    y, x = np.mgrid[-8:9, -8:9]
    disk = (x**2 + y**2 <= radius**2) / (x**2 + y**2 <= radius**2).sum()
    taps = np.exp(-np.array([1, 0, 1]) / (2 * 0.5**2))
    disk = ndimage.convolve(disk, np.outer(taps, taps) / taps.sum() ** 2, mode="mirror")
    expected = np.stack([ndimage.convolve(pixels[..., c], disk, mode="mirror") for c in range(3)], -1)
    assert np.abs(corrupt(photo, "defocus_blur", 3) / 255 - expected).max() < 1 / 255
    # Zoom: OpenCV's bilinear samples around the middle, beside SciPy's of the same points.
    total, factors = pixels.copy(), np.arange(1, 1.21, 0.02)
    rows, columns = np.mgrid[: photo.shape[0], : photo.shape[1]]
    middle = [(side - 1) / 2 for side in photo.shape[:2]]
    for factor in factors:
        places = [(at - centre) / factor + centre for at, centre in zip((rows, columns), middle, strict=True)]
        total += np.stack([ndimage.map_coordinates(pixels[..., c], places, order=1) for c in range(3)], -1)
    assert np.abs(corrupt(photo, "zoom_blur", 3) / 255 - total / (len(factors) + 1)).max() < 0.02


def test_motion_leaves_a_trail_that_fades_and_begins_at_the_point():
    dark = np.zeros((64, 64, 3), np.uint8)
    dark[32, 32] = 255
    for severity, (radius, sigma) in zip(SEVERITIES, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)), strict=True):
        from synthclip_jax.evals.image_corruptions.blur import along

        weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
        trail = along(dark.astype(np.float32), radius, sigma, 0.0)[32, ..., 0] / 255
        lit = np.flatnonzero(trail > 1e-7)
        order = np.argsort(np.abs(lit - 32))
        expected = weights / weights.sum()
        np.testing.assert_allclose(trail[lit[order]], expected[: len(lit)], rtol=1e-4)
        slope = np.argwhere(corrupt(dark, "motion_blur", severity, "k").max(-1) > 0) - 32
        assert (np.abs(slope[:, 0]) <= np.abs(slope[:, 1]) + 1).all()  # within 45 degrees


def test_glass_moves_pixels_no_further_than_its_reach_and_keeps_them():
    image = np.zeros((60, 60, 3), np.uint8)
    image[30, 30] = 255
    for severity, reach in ((1, 1 * 2), (5, 4 * 2)):
        moved = corrupt(image, "glass_blur", severity, "k").max(-1)
        assert moved.max() > 0
        places = np.argwhere(moved > 0) - 30
        assert np.abs(places).max() <= 60  # it may be carried along by several exchanges
        assert np.abs(places).mean() <= 6 * reach


def test_colours_follow_their_definitions(photo):
    pixels = photo / 255
    mean = pixels.mean((0, 1))
    expected = np.clip((pixels - mean) * 0.1 + mean, 0, 1)
    assert np.abs(corrupt(photo, "contrast", 4) / 255 - expected).max() < 1 / 255
    brighter = corrupt(photo, "brightness", 3)
    for y, x in itertools.product(range(0, 96, 17), range(0, 80, 13)):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixels[y, x])
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.3, 1))
        np.testing.assert_allclose(brighter[y, x] / 255, expected, atol=1.5 / 255)
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=7)
    np.testing.assert_array_equal(corrupt(photo, "jpeg_compression", 5), np.array(Image.open(file)))
    blocks = corrupt(photo, "pixelate", 2)  # half: blocks of two by two, each the mean
    means = pixels.reshape(48, 2, 40, 2, 3).mean((1, 3)).repeat(2, 0).repeat(2, 1)
    assert np.abs(blocks / 255 - means).max() < 1.01 / 255


def test_fog_darkens_the_image_under_a_cloud_from_0_to_1():
    rng = np.random.default_rng(0)
    cloud = plasma(100, 2.0, rng)
    assert cloud.shape == (128, 128)
    assert (cloud.min(), cloud.max()) == (0, 1)
    # The finer its scale the less there is of it, and opposite edges meet.
    steps = [np.abs(cloud - np.roll(cloud, 2**k, 0)).mean() for k in range(6)]
    assert steps == sorted(steps)
    assert np.abs(cloud[0] - cloud[-1]).mean() < 4 * steps[0]
    white = np.full((50, 50, 3), 255, np.uint8)
    foggy = corrupt(white, "fog", 1) / 255  # (1 + 1.5 cloud) / (1 + 1.5)
    assert foggy.min() >= 0.4 - 1 / 255
    assert foggy.max() <= 1


def test_the_smooth_shifts_are_a_gaussian_with_mirrored_edges():
    field = np.random.default_rng(0).uniform(-1, 1, (40, 52))
    for sigma in (2.44, 19.5):
        expected = ndimage.gaussian_filter(field, sigma, mode="reflect", truncate=3)
        np.testing.assert_allclose(_smooth(field, sigma), expected, atol=1e-12)


# --- the suite


@pytest.fixture(scope="module")
def model():
    config, graphdef, params = tiny_clip()
    config.eval.batch_size = 8
    config.eval.corruptions.update(kinds=("contrast", "fog"), severities=(1, 5))
    return config, graphdef, params


def test_the_suite_counts_what_a_loop_over_corrupted_files_counts(tmp_path, model):
    config, graphdef, params = model
    examples = [*coloured(7), ("broken", {"png": image_bytes()[:30], "cls": b"0"})]
    folder = write_wds(tmp_path / "colours", examples)
    suite = Corruptions(config, graphdef, [open_dataset(f"wds:{folder}")])
    values = suite.run(params)
    plain = ZeroShot(config, graphdef, [open_dataset(f"wds:{folder}")])
    clean = plain.run(params)
    assert values["corruptions/colours/clean"] == clean["zeroshot/colours/acc1"]
    assert values["corruptions/colours/clean_ece"] == pytest.approx(clean["zeroshot/colours/ece"])
    assert (values["corruptions/colours/n"], values["corruptions/colours/skipped"]) == (7, 1)
    assert suite.left_out["colours"].count == 1
    assert "1 images do not decode" in assignment.table(values)
    # The same images as files: made here, read by the suite for images as they are.
    encoder = Encoder(config, graphdef, params)
    for kind, severity in itertools.product(("contrast", "fog"), (1, 5)):
        made = []
        for key, parts in coloured(7):
            image = Image.open(io.BytesIO(parts["png"])).resize((280, SIDE), Image.Resampling.BICUBIC)
            if encoder.preprocess.interpolation == "bilinear":
                image = Image.open(io.BytesIO(parts["png"])).resize((280, SIDE), Image.Resampling.BILINEAR)
            image = np.array(image.crop((28, 0, 28 + SIDE, SIDE)))
            file = io.BytesIO()
            Image.fromarray(corrupt(image, kind, severity, key)).save(file, "PNG")
            made.append((key, {"png": file.getvalue(), "cls": parts["cls"]}))
        name = f"{kind}{severity}"
        write_wds(tmp_path / name, made)
        found = ZeroShot(config, graphdef, [open_dataset(f"wds:{tmp_path / name}")]).run(params)
        assert values[f"corruptions/colours/{kind}_{severity}"] == found[f"zeroshot/{name}/acc1"]


def test_means_are_over_kinds_and_severities_and_intervals_know_that_images_repeat():
    rng = np.random.default_rng(0)
    right = rng.random((50, 3, 2)) < rng.random((50, 1, 1))
    found = metrics(right, np.full(right.shape, 0.5), ("snow", "fog", "contrast"), (2, 4))
    assert found["acc1"] == pytest.approx(right.mean())
    assert found["weather"] == pytest.approx(right[:, :2].mean())
    assert found["digital"] == found["contrast"] == pytest.approx(right[:, 2].mean())
    assert found["severity_4"] == pytest.approx(right[:, :, 1].mean())
    assert found["fog_2"] == pytest.approx(right[:, 1, 0].mean())
    assert found["ece"] == pytest.approx(abs(right.mean() - 0.5))
    low, high = intervals.wilson(right.sum(), right.size)
    assert found["acc1_high"] - found["acc1_low"] > 1.2 * (high - low)


def test_part_of_the_images_is_spread_over_the_set_and_no_kind_is_refused(tmp_path, model):
    config, graphdef, params = model
    config = config.copy_and_resolve_references()
    config.eval.corruptions.update(images=6, kinds=("contrast",), severities=(1,))
    folder = write_wds(tmp_path / "colours", coloured(12))
    suite = Corruptions(config, graphdef, [open_dataset(f"wds:{folder}")])
    assert suite.run(params)["corruptions/colours/n"] == 6
    assert list(suite.details["colours"]["keys"]) == [f"s{index:04d}" for index in range(0, 12, 2)]
    config.eval.corruptions.kinds = ()
    with pytest.raises(EvaluationError, match="at least one of kinds"):
        Corruptions(config, graphdef, [open_dataset(f"wds:{folder}")])

"""The text-to-image model that ships with the package draws what captions say, by both engines."""

import pathlib

import numpy as np
import pytest

from gen.engines.interface import Request
from gen.engines.models import MINIATURE_FOLDER
from gen.engines.registry import make_image_engine
from gen.miniature import crops, words
from gen.miniature.photographs import FOLDER, read_photographs
from synthclip_jax.config import default_config

pytest.importorskip("diffusers")
TINTS = [number % len(words.TINTS) for number in range(50)]
LABELS = [number % len(words.ITEMS) for number in range(50)]
LARGEST = 8 * 10**6  # bytes of a package's data that nobody minds


@pytest.fixture(scope="module", params=["diffusers", "flax"])
def drawn(request, tmp_path_factory):
    """Five of each kind of item, on black, in all the tints."""
    images = default_config().gen.images
    images.update(engine=request.param, model="miniature", generate_size=32, size=32, dtype="float32", device="cpu")
    images.update(scheduler="dpmsolver++", steps=8, guidance=2.0, batch_size=50, compile="none")
    items = [words.Item(label, list(words.TINTS)[tint]) for label, tint in zip(LABELS, TINTS, strict=True)]
    requests = [Request(words.described([item], "black"), str(item), seed) for seed, item in enumerate(items)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYNTHCLIP_CACHE", str(tmp_path_factory.mktemp("cache")))
        return np.stack(make_image_engine(images).generate(requests))


def test_items_have_the_colours_of_their_captions_and_the_ground_is_black(drawn):
    assert drawn.shape == (50, 32, 32, 3)
    corners = drawn[:, [0, 0, -1, -1], [0, -1, 0, -1]].astype(float)
    assert np.median(np.abs(corners - words.GROUNDS["black"])) < 20
    brightest = np.stack([image[image.sum(2) >= np.quantile(image.sum(2), 0.9)].mean(0) for image in drawn])
    tints = np.array(list(words.TINTS.values()), float)
    directions = [colours / np.linalg.norm(colours, axis=1, keepdims=True) for colours in (brightest, tints)]
    assert ((directions[0] @ directions[1].T).argmax(1) == TINTS).mean() >= 0.8


@pytest.mark.skipif(not pathlib.Path(FOLDER).is_dir(), reason="needs the photographs")
def test_items_are_those_of_their_captions_if_told_by_the_mean_photograph_of_each_kind(drawn):
    photographs = read_photographs()
    scenes = crops.black_scenes(photographs, "validation", "means", 300, seed=0)
    seen, labels = crops.photograph_crops(photographs, scenes, 32)
    means = np.stack([seen[labels == label].mean(0) for label in range(len(words.ITEMS))])
    _, told = crops.nearest(crops.crops(drawn, np.array(TINTS)), means)
    assert (told == LABELS).mean() >= 0.6


def test_the_model_is_small_and_in_half_precision():
    from safetensors import safe_open

    files = [path for path in MINIATURE_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LARGEST
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert len(weights) == 3
    for path in weights:
        with safe_open(path, "numpy") as tensors:
            assert {str(tensors.get_slice(key).get_dtype()) for key in tensors.keys()} <= {"F16", "I64"}  # noqa: SIM118

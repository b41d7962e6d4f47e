"""The world of the miniature: photographs, their splits, scenes, sets on disk; and how its model is trained."""

import gzip
import hashlib
import io
import pathlib
import tarfile

import numpy as np
import pytest

from gen.engines.templates import TemplatesEngine
from gen.miniature import photographs as photographs_module
from gen.miniature import words
from gen.miniature.__main__ import write
from gen.miniature.photographs import FOLDER, SPLITS, PhotographError, read_photographs
from gen.miniature.scenes import NO_ITEM, grammar_scenes, render
from gen.miniature.sets import World, WorldError
from synthclip_jax.config import default_config
from synthclip_jax.config.sources import SourceSpec
from synthclip_jax.config.testsets import DatasetSpec
from synthclip_jax.data.readers.reader import Opening
from synthclip_jax.data.readers.tars import TarReader
from synthclip_jax.evals.datasets.webdataset import WebDataset

PER_KIND = {"train": 60, "t10k": 8}


def write_idx(folder, name, array):
    header = np.array([2051 if array.ndim == 3 else 2049, *array.shape], ">u4").tobytes()
    (folder / f"{name}.gz").write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Made-up photographs: a bright square on black, each with noise of its own; two of them are equal."""
    folder, draw = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for part, count in PER_KIND.items():
        labels = np.tile(np.arange(10, dtype=np.uint8), count)
        pixels = np.zeros((len(labels), 28, 28), np.uint8)
        pixels[:, 4:24, 4:24] = draw.integers(200, 256, (len(labels), 20, 20))
        if part == "train":
            twins = pixels[:10].copy()
        else:
            pixels[:10] = twins
        write_idx(folder, f"{part}-images-idx3-ubyte", pixels)
        write_idx(folder, f"{part}-labels-idx1-ubyte", labels)
    return folder


@pytest.fixture(scope="module")
def photographs(folder):
    return read_photographs(folder, unchecked=True)


@pytest.fixture(scope="module", params=["made up", "real"])
def any_photographs(request, folder):
    if request.param == "real" and not pathlib.Path(FOLDER).is_dir():
        pytest.skip("dataset-fashion-mnist is not installed")
    return read_photographs(FOLDER) if request.param == "real" else read_photographs(folder, unchecked=True)


def test_no_photograph_is_in_two_splits_by_number_or_by_content(any_photographs):
    numbers = np.concatenate([any_photographs.splits[split] for split in SPLITS])
    assert len(set(numbers.tolist())) == len(numbers)
    digests = [
        {hashlib.sha256(any_photographs.pixels[number].tobytes()).digest() for number in any_photographs.splits[split]}
        for split in SPLITS
    ]
    assert len(set().union(*digests)) == sum(map(len, digests))


def test_splits_of_the_release_have_the_sizes_that_the_study_states(any_photographs):
    sizes = {split: len(numbers) for split, numbers in any_photographs.splits.items()}
    if len(any_photographs.pixels) == 70_000:
        assert sizes == {"generator": 20_000, "validation": 4000, "real": 36_000, "test": 10_000}
        tests = any_photographs.splits["test"]
        assert tests.min() == 60_000
        for split in SPLITS:
            counts = np.bincount(any_photographs.labels[any_photographs.splits[split]])
            assert counts.min() == counts.max()
    else:  # ten training photographs are there among the tests once more
        assert sum(sizes.values()) == 10 * (60 + 8) - 10
        assert sizes["test"] == 80


@pytest.mark.parametrize("fault", ["missing", "others", "cut", "no idx", "label"])
def test_photographs_that_are_not_there_or_damaged_are_one_line_with_a_remedy(folder, tmp_path, fault):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    images, labels = (tmp_path / f"train-{name}-ubyte.gz" for name in ("images-idx3", "labels-idx1"))
    if fault == "missing":
        images.unlink()
    elif fault == "cut":
        images.write_bytes(gzip.compress(gzip.decompress(images.read_bytes())[:-1]))
    elif fault == "no idx":
        images.write_bytes(b"<html>")
    elif fault == "label":
        data = bytearray(gzip.decompress(labels.read_bytes()))
        data[20] = 10
        labels.write_bytes(gzip.compress(bytes(data)))
    with pytest.raises(PhotographError, match=r"apt install dataset-fashion-mnist|--unchecked") as raised:
        read_photographs(tmp_path, unchecked=fault != "others")
    assert "\n" not in str(raised.value)


def test_the_first_scenes_of_a_set_are_those_of_a_smaller_one(photographs):
    large, small = (grammar_scenes(photographs, "real", count, seed=3) for count in (500, 60))
    assert large.captions[:60] == small.captions
    np.testing.assert_array_equal(large.photographs[:60], small.photographs)
    np.testing.assert_array_equal(render(photographs, large, 32)[:60], render(photographs, small, 32))
    other = grammar_scenes(photographs, "real", 60, seed=4)
    assert other.captions != small.captions


def test_a_scene_shows_what_its_caption_says_and_only_photographs_of_its_split(photographs):
    scenes = grammar_scenes(photographs, "generator", 400, seed=0)
    for number, caption in enumerate(scenes.captions):
        items, ground = scenes.items(number), scenes.ground(number)
        for item in items:
            assert words.ITEMS[item.label] in caption
        tints = [tint for tint in words.TINTS if tint in caption.split()]
        assert set(tints) <= {item.tint for item in items}
        assert not any(other in caption.split() for other in words.GROUNDS if other != ground)
    used = scenes.photographs[scenes.photographs != NO_ITEM]
    assert set(used.tolist()) <= set(photographs.splits["generator"].tolist())
    shown = photographs.labels[scenes.photographs[:, 0]]
    np.testing.assert_array_equal(shown, scenes.labels[:, 0])


def test_no_photograph_is_taken_twice_before_all_of_its_kind_are_taken_once(photographs):
    scenes = grammar_scenes(photographs, "real", 400, seed=0)
    for label in range(10):
        used = scenes.photographs[scenes.labels == label]
        times = np.bincount(used, minlength=len(photographs.pixels))[photographs.of_kind("real", label)]
        assert times.max() - times.min() <= 1


@pytest.mark.parametrize("side", [32, 48])
def test_rendered_items_have_their_tint_on_their_ground(photographs, side):
    scenes = grammar_scenes(photographs, "real", 200, seed=0)
    images = render(photographs, scenes, side).astype(int)
    assert images.shape == (200, side, side, 3)
    for number in range(200):
        for colour in (words.GROUNDS[scenes.ground(number)], *(words.TINTS[i.tint] for i in scenes.items(number))):
            near = np.abs(images[number] - np.array(colour)).max(-1) < 60
            assert near.mean() > 0.03, (number, colour)


def test_the_templates_engine_makes_the_captions_of_the_scenes(photographs):
    config = default_config().gen.captions
    config.update(engine="templates", templates=words.templates())
    engine = TemplatesEngine(config)
    asked = [engine.conversation(config, concept) for concept in words.CONCEPTS]
    made = {text for seed in range(words.TEMPLATES) for _, text in engine.generate(asked, [seed] * len(asked))}
    assert set(grammar_scenes(photographs, "real", 500, seed=1).captions) <= made
    assert sum(len(words.templates(length)) for length in words.LENGTHS) == len(words.templates()) == words.TEMPLATES


@pytest.fixture(scope="module")
def world(folder, photographs, tmp_path_factory):
    out = tmp_path_factory.mktemp("world")
    counts = {"real": 120, "generator": 30, "validation": 40, "test": 80, "retrieval": 25}
    return out, counts, write(World(photographs), out, counts)


def test_the_written_world_is_read_as_any_data_is(world, photographs):
    out, _, _ = world
    reader = TarReader(SourceSpec("wds", str(out / "real"), None, "image", "caption"), Opening())
    captions = [reader[number].captions for number in range(len(reader))]
    assert captions == [(text,) for text in grammar_scenes(photographs, "real", 120, seed=0).captions]


def test_test_sets_are_in_the_layout_of_clip_benchmark(world):
    out, _, _ = world
    for split, count in (("test", 80), ("validation", 40)):
        items = WebDataset(DatasetSpec.parse(f"wds:{out / split / 'item'}"))
        tinted = WebDataset(DatasetSpec.parse(f"wds:{out / split / 'colour_item'}"))
        assert (len(items), len(items.class_names)) == (count, 10)
        assert (len(tinted), len(tinted.class_names)) == (count, 80)
        for example in tinted:
            _, tint, _ = example.key.split("_")
            assert tinted.class_names[example.label].startswith(tint)
        captioned = list(WebDataset(DatasetSpec.parse(f"wds:{out / split / 'retrieval'}")))
        assert len({example.captions for example in captioned}) == len(captioned) == 25


def test_no_set_shares_a_photograph_with_one_of_another_split(world):
    _, _, records = world
    splits = {}
    for name, record in records.items():
        splits.setdefault(name.partition("/")[0], set()).update(record["numbers"])
    assert set(splits) == {"real", "generator", "validation", "test"}
    assert len(set().union(*splits.values())) == sum(map(len, splits.values()))


def test_a_set_that_is_there_is_left_alone_and_one_of_other_settings_refused(world, photographs):
    out, counts, records = world
    tar = out / "real" / "00000.tar"
    before = tar.stat().st_mtime_ns
    assert write(World(photographs), out, counts) == records
    assert tar.stat().st_mtime_ns == before
    with pytest.raises(WorldError, match="seed=0, asked for is 1"):
        write(World(photographs, seed=1), out, counts)


def test_the_same_world_has_the_same_bytes(world, photographs, tmp_path):
    out, counts, _ = world
    write(World(photographs), tmp_path, counts)
    for path in out.rglob("*.tar"):
        assert path.read_bytes() == (tmp_path / path.relative_to(out)).read_bytes()
    with tarfile.open(fileobj=io.BytesIO((out / "test/item/test/0.tar").read_bytes())) as tar:
        assert len(tar.getnames()) == 160


def test_checksums_are_those_of_the_release():
    if not pathlib.Path(FOLDER).is_dir():
        pytest.skip("dataset-fashion-mnist is not installed")
    for name, digest in photographs_module.DIGESTS.items():
        assert hashlib.sha256(gzip.decompress(pathlib.Path(FOLDER, f"{name}.gz").read_bytes())).hexdigest() == digest

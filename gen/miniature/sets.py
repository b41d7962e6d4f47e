"""Sets of scenes on disk: webdataset tars to train on, test sets in CLIP_benchmark's layout."""

import dataclasses
import hashlib
import pathlib
import tarfile
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gen.engines.image_batches import encode_jpeg
from gen.miniature import words
from gen.miniature.photographs import Photographs
from gen.miniature.scenes import NO_ITEM, Scenes, described, grammar_scenes, render, single_scenes
from gen.shards import tars
from synthclip_jax.errors import UserError
from synthclip_jax.files import state_files
from synthclip_jax.files.storage import write_stream

PER_TAR = 1000
RECORD = "set.json"  # beside the tars of a set; written last
CLASS_PROMPTS = ("a photo of the {c}.", "the {c}", "a picture of the {c}.", "{c}")
LICENCE = (
    "The photographs are Fashion-MNIST's (https://github.com/zalandoresearch/fashion-mnist), copyright 2017 Zalando SE,"
    " MIT licence."
)
TASKS = ("item", "colour_item", "retrieval")


class WorldError(UserError, ValueError):
    """The scenes cannot be written as asked for; the text says what to do."""


@dataclasses.dataclass(frozen=True)
class World:
    """What all sets have in common.

    Attributes:
      side: of images, pixels.
      quality: of their JPEGs.
    """

    photographs: Photographs
    side: int = 32
    seed: int = 0
    quality: int = 95

    def settings(self) -> dict[str, Any]:
        """What the bytes of a set depend on."""
        grammar = repr((words.ITEMS, words.TINTS, words.GROUNDS, words.templates()))
        return {
            "side": self.side, "seed": self.seed, "quality": self.quality, "photographs": self.photographs.digest,
            "grammar": hashlib.sha256(grammar.encode()).hexdigest()[:16],
        }  # fmt: skip


def write_training(world: World, split: str, count: int, folder: pathlib.Path) -> dict[str, Any]:
    """Writes scenes of a split with captions, as webdataset tars; the first ones are those of a smaller set.

    Returns:
      The record of the set: `images`, `photographs` (how many different ones), `captions` (the same), `sha256`.
    """

    def fill() -> dict[str, Any]:
        scenes = grammar_scenes(world.photographs, split, count, world.seed)
        digest = hashlib.sha256()
        for number, start in enumerate(range(0, count, PER_TAR)):
            part = scenes[start : start + PER_TAR]
            answers = [("txt", caption) for caption in part.captions]
            keys = [f"{split}{start + place:07d}" for place in range(len(part))]
            digest.update(_write_tar(world, folder / f"{number:05d}.tar", keys, part, answers).encode())
        return _account(scenes) | {"sha256": digest.hexdigest()}

    return _once(world, folder, {"split": split, "images": count}, fill)


def write_test(world: World, split: str, task: str, count: int, folder: pathlib.Path) -> dict[str, Any]:
    """Writes a test set of a split: `item` (10 classes), `colour_item` (80) or `retrieval`. See `write_training`."""

    def fill() -> dict[str, Any]:
        scenes = _test_scenes(world, split, task, count)
        keys = [_key(scenes, place) for place in range(len(scenes))]
        answers = [_answer(scenes, task, place) for place in range(len(scenes))]
        sha256 = _write_tar(world, folder / "test" / "0.tar", keys, scenes, answers)
        texts = {"test/nshards.txt": "1\n", "README.md": _readme(task, split, len(scenes))}
        if task == "retrieval":
            texts["dataset_type.txt"] = "retrieval\n"
        else:
            names = words.ITEMS if task == "item" else words.CONCEPTS[len(words.ITEMS) :]
            texts["classnames.txt"] = "".join(f"{name}\n" for name in names)
            texts["zeroshot_classification_templates.txt"] = "".join(f"{prompt}\n" for prompt in CLASS_PROMPTS)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        return _account(scenes) | {"sha256": sha256}

    return _once(world, folder, {"split": split, "task": task, "images": count}, fill)


def _test_scenes(world: World, split: str, task: str, count: int) -> Scenes:
    if task != "retrieval":
        available = len(world.photographs.splits[split])
        if count > available:
            raise WorldError(f"{count:,} images of {split}, which has {available:,} photographs, each taken once")
        return single_scenes(world.photographs, split, task, count, world.seed)
    # Captions that say all of their scene, each once, so that one image is right for each.
    scenes = described(grammar_scenes(world.photographs, split, 3 * count + 200, world.seed))
    _, first = np.unique(scenes.captions, return_index=True)
    rows = np.sort(first)[:count]
    if len(rows) < count:
        raise WorldError(
            f"{count:,} scenes for retrieval: only {len(rows):,} with captions of their own. Ask for fewer"
        )
    arrays = {f.name: getattr(scenes, f.name)[rows] for f in dataclasses.fields(scenes) if f.name != "captions"}
    return Scenes(**arrays, captions=[scenes.captions[row] for row in rows])


def _key(scenes: Scenes, scene: int) -> str:
    """Photographs, tints and ground of a scene: `004321_red_white`, with more items `4321-77_red-blue_white`."""
    numbers = [f"{number:06d}" for number in scenes.photographs[scene] if number != NO_ITEM]
    tints = [item.tint for item in scenes.items(scene)]
    return f"{'-'.join(numbers)}_{'-'.join(tints)}_{scenes.ground(scene)}"


def _answer(scenes: Scenes, task: str, scene: int) -> tuple[str, str]:
    """Suffix and text of what lies beside an image."""
    if task == "retrieval":
        return "txt", scenes.captions[scene]
    label, tint = int(scenes.labels[scene, 0]), int(scenes.tints[scene, 0])
    return "cls", str(label if task == "item" else label * len(words.TINTS) + tint)


def _write_tar(
    world: World, path: pathlib.Path, keys: Sequence[str], scenes: Scenes, answers: Iterable[tuple[str, str]]
) -> str:
    """Writes images and what lies beside each, whole or not at all; gives the digest of the file."""
    images = render(world.photographs, scenes, world.side)

    def fill(file: Any) -> None:
        with tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
            for key, image, (suffix, text) in zip(keys, images, answers, strict=True):
                jpeg = encode_jpeg(image, world.side, world.quality)
                if jpeg is None:
                    raise WorldError(f"{path}: image {key} cannot be decoded again. Give a higher --quality")
                for name, data in ((f"{key}.jpg", jpeg), (f"{key}.{suffix}", text.encode())):
                    tars.add(tar, name, data)

    path.parent.mkdir(parents=True, exist_ok=True)
    return write_stream(path, fill)["sha256"]


def _account(scenes: Scenes) -> dict[str, Any]:
    used = np.unique(scenes.photographs[scenes.photographs != NO_ITEM])
    counts = np.bincount((scenes.photographs != NO_ITEM).sum(1), minlength=4)[1:]
    return {
        "images": len(scenes), "photographs": len(used), "captions": len(set(scenes.captions)),
        "by_items": counts.tolist(), "numbers": used.tolist(),
    }  # fmt: skip


def _once(world: World, folder: pathlib.Path, what: dict[str, Any], fill: Any) -> dict[str, Any]:
    """The record of a set: of one that is there, or of the one that `fill` then makes.

    Raises:
      WorldError: there is one with other settings.
    """
    settings = world.settings() | what
    path = folder / RECORD
    if path.is_file():
        record = state_files.read(path, "Remove the folder and run the same command again", {"settings": dict})
        others = [key for key in settings if record["settings"].get(key) != settings[key]]
        if others:
            key = others[0]
            raise WorldError(
                f"{folder}: made with {key}={record['settings'].get(key)}, asked for is {settings[key]}. Give another"
                " --out, or remove the folder"
            )
        return state_files.unsealed(record)
    folder.mkdir(parents=True, exist_ok=True)
    record = {"settings": settings, **fill()}
    state_files.write(path, record)
    return record


def _readme(task: str, split: str, count: int) -> str:
    kind = {"item": "the item, 10 classes", "colour_item": "colour and item, 80 classes", "retrieval": "retrieval"}[
        task
    ]
    return (
        f"# {task}\n\n{count} scenes of photographs of the split `{split}`, for {kind}, in CLIP_benchmark's webdataset"
        f" layout. Keys are numbers of photographs, tints and ground.\n\n{LICENCE}\n"
    )

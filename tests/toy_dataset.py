"""A dataset of coloured squares, small enough to be learned in seconds, in the format that generation writes."""

import itertools
import pathlib

import cv2
import numpy as np

from synthclip_jax.data.example_proto import serialize_example
from synthclip_jax.data.records import INDEX_SUFFIX, ShardName, frame_shard, list_shards

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 180, 60),
    "blue": (40, 60, 220),
    "yellow": (230, 220, 40),
    "white": (240, 240, 240),
    "black": (15, 15, 15),
    "purple": (150, 40, 180),
    "orange": (240, 140, 30),
}
PAIRS = list(itertools.permutations(COLOURS, 2))  # 56


def pixels(index: int, size: int = 32) -> np.ndarray:
    """A square of one colour on a ground of another, with noise of its own."""
    front, back = PAIRS[index % len(PAIRS)]
    rng = np.random.default_rng(index)
    image = np.full((size, size, 3), COLOURS[back], np.float32)
    corner = rng.integers(2, size // 3, 2)
    image[corner[0] : corner[0] + size // 2, corner[1] : corner[1] + size // 2] = COLOURS[front]
    return np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)


def caption(index: int) -> str:
    front, back = PAIRS[index % len(PAIRS)]
    return f"a {front} square on a {back} ground"


def jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()


def example(index: int, image: bytes | None = None, numbered: bool = False) -> bytes:
    return serialize_example(
        {
            "id": [f"{index:06d}-0000-00".encode()],
            "image": [jpeg(pixels(index)) if image is None else image],
            "caption": [(f"number {index}" if numbered else caption(index)).encode()],
        }
    )


def shards_of(folder: pathlib.Path, split: str = "train") -> list[pathlib.Path]:
    """The shards of a dataset, all of which are there."""
    there, missing = list_shards(folder, split)
    assert not missing
    return there


def write_dataset(
    folder: pathlib.Path,
    examples: int = 112,
    shards: int = 2,
    name: str = "toy",
    replaced: dict[int, bytes] | None = None,
    numbered: bool = False,
) -> list[pathlib.Path]:
    """Writes shards and indexes.

    Args:
      replaced: encoded images to put in place of some.
      numbered: captions are "number 0", "number 1" and so on, so that each tells which example it is of.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for shard in range(shards):
        indexes = range(shard * examples // shards, (shard + 1) * examples // shards)
        content, index = frame_shard(example(i, (replaced or {}).get(i), numbered) for i in indexes)
        path = folder / str(ShardName(name, "train", shard, shards))
        path.write_bytes(content)
        path.with_name(path.name + INDEX_SUFFIX).write_bytes(index)
        paths.append(path)
    return paths

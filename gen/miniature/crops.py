"""Items of scenes, cut out and made alike in place, size and colour: how near one is to a photograph of another.

Only for scenes of one item on the black ground, where brightness along the tint is the item's shade.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from gen.miniature import words
from gen.miniature.photographs import Photographs
from gen.miniature.scenes import Scenes, described, render, single_scenes

SIDE = 16  # of a crop, pixels
SEEN_FROM = 0.2  # shade, as a share of the scene's largest, from which a pixel is the item's
COMPARED_AT_ONCE = 250


def black_scenes(photographs: Photographs, split: str, purpose: str, count: int, seed: int) -> Scenes:
    """Scenes of one item each on the black ground, of as many photographs of each kind as of any other.

    Raises:
      ValueError: the split has fewer photographs.
    """
    each = -(-count // len(words.ITEMS))
    scenes = single_scenes(photographs, split, purpose, len(photographs.splits[split]), seed)
    rows = np.concatenate([np.nonzero(scenes.labels[:, 0] == label)[0][:each] for label in range(len(words.ITEMS))])
    if len(rows) < each * len(words.ITEMS):
        raise ValueError(f"{split} has no {each} photographs of each kind")
    columns: dict[str, Any] = {field.name: getattr(scenes, field.name) for field in dataclasses.fields(Scenes)}
    chosen: dict[str, Any] = {
        name: [column[row] for row in rows] if name == "captions" else column[rows] for name, column in columns.items()
    }
    chosen["grounds"] = np.full(len(rows), list(words.GROUNDS).index("black"))
    return described(Scenes(**chosen))


def photograph_crops(
    photographs: Photographs, scenes: Scenes, side: int
) -> tuple[Float32[np.ndarray, "scenes pixels"], Int[np.ndarray, " scenes"]]:
    """Crops of scenes of photographs, and which kinds they are."""
    return crops(render(photographs, scenes, side), scenes.tints[:, 0]), scenes.labels[:, 0]


def crops(
    images: UInt8[np.ndarray, "images side side 3"], tints: Int[np.ndarray, " images"]
) -> Float32[np.ndarray, "images pixels"]:
    """The item of each image, from 0 to 1: the square around it, resized; all zeros where there is no item.

    Args:
      images: of one item on black.
      tints: places in `words.TINTS`.
    """
    colours = np.array(list(words.TINTS.values()), np.float32)[tints]
    colours /= np.linalg.norm(colours, axis=1, keepdims=True)
    shades = np.einsum("nhwc,nc->nhw", images.astype(np.float32), colours, optimize=True)
    shades -= np.median(shades[:, [0, 0, -1, -1], [0, -1, 0, -1]], axis=1)[:, None, None]
    shades = np.clip(shades / np.maximum(shades.max((1, 2), keepdims=True), 1), 0, 1)
    return np.stack([_crop(shade) for shade in shades]).reshape(len(images), -1)


def _crop(shade: Float[np.ndarray, "side side"]) -> Float32[np.ndarray, "16 16"]:
    from PIL import Image

    seen = shade > SEEN_FROM
    rows, columns = (np.nonzero(seen.any(axis))[0] for axis in (1, 0))
    if not len(rows):
        return np.zeros((SIDE, SIDE), np.float32)
    middle = (rows[0] + rows[-1] + 1) / 2, (columns[0] + columns[-1] + 1) / 2
    reach = max(rows[-1] - rows[0], columns[-1] - columns[0]) / 2 + 1
    margin = len(shade)
    padded = Image.fromarray(np.pad(shade.astype(np.float32), margin))
    box = tuple(margin + place + sign * reach for sign in (-1, 1) for place in (middle[1], middle[0]))
    return np.asarray(padded.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box))


def nearest(
    queries: Float32[np.ndarray, "queries pixels"], references: Float32[np.ndarray, "references pixels"]
) -> tuple[Float[np.ndarray, " queries"], Int[np.ndarray, " queries"]]:
    """How far each query is from the nearest reference (root of the mean squared difference), and which that is."""
    distances, places = [], []
    squares = (references**2).sum(1)
    for start in range(0, len(queries), COMPARED_AT_ONCE):
        part = queries[start : start + COMPARED_AT_ONCE]
        place = (squares - 2 * part @ references.T).argmin(1)
        places.append(place)
        distances.append(np.sqrt(((part - references[place]) ** 2).mean(1)))  # not the difference of large numbers
    return np.concatenate(distances), np.concatenate(places)

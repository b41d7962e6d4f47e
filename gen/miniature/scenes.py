"""Scenes: one to three photographs of items, tinted, side by side on a ground; drawn, then rendered.

Every draw is a hash of (seed, set, number of the scene, purpose), so that the first scenes of a larger set are those of
a smaller one. Many scenes are rendered at once: a photograph is resized by a matrix, as any linear filter is.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Int, UInt8

from gen.miniature import words
from gen.miniature.photographs import SIDE, Photographs

SLOTS = 3  # items that a scene can have
NO_ITEM = -1
# Least and largest side of a photograph, by how many there are in the scene, and as shares of the scene's.
SIZES = {1: (0.66, 0.875), 2: (0.44, 0.5), 3: (0.41, 0.5)}
OPAQUE = 40  # brightness of a photograph from which its ground does not shine through
DARKEST = 0.35  # share of the tint that is left where a photograph is black
JITTER = 12  # the most that a channel of a tint or ground differs, of 255
AT_ONCE = 4096  # scenes rendered together


@dataclasses.dataclass(frozen=True)
class Scenes:
    """What scenes consist of; one row each. Items fill their places from the first on.

    Attributes:
      photographs: numbers of the photographs; `NO_ITEM` where there is none.
      labels: kinds of the items: places in `words.ITEMS`.
      tints: places in `words.TINTS`.
      grounds: places in `words.GROUNDS`.
      captions: one for each scene.
      draws: uniform in [0, 1): sizes, two coordinates, three channels of each item; order, ground.
    """

    photographs: Int[np.ndarray, "scenes 3"]
    labels: Int[np.ndarray, "scenes 3"]
    tints: Int[np.ndarray, "scenes 3"]
    grounds: Int[np.ndarray, " scenes"]
    captions: list[str]
    draws: Float[np.ndarray, "scenes 20"]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, part: slice) -> "Scenes":
        return Scenes(*(getattr(self, field.name)[part] for field in dataclasses.fields(self)))

    def items(self, scene: int) -> list[words.Item]:
        """The items of a scene, as a caption that says all of it names them."""
        tints = tuple(words.TINTS)
        count = int((self.photographs[scene] != NO_ITEM).sum())
        return [words.Item(int(self.labels[scene, k]), tints[self.tints[scene, k]]) for k in range(count)]

    def ground(self, scene: int) -> str:
        """The ground of a scene: a key of `words.GROUNDS`."""
        return tuple(words.GROUNDS)[self.grounds[scene]]


def uniforms(seed: int, name: str, count: int, columns: int, start: int = 0) -> Float[np.ndarray, "count columns"]:
    """Uniform draws in [0, 1): hashes of seed, name, number of the row and of the column (the mixer of SplitMix64)."""
    import hashlib

    key = np.frombuffer(hashlib.blake2b(f"{seed}\x1f{name}".encode(), digest_size=8).digest(), "<u8")[0]
    with np.errstate(over="ignore"):
        rows = np.arange(start, start + count, dtype=np.uint64)[:, None] * np.uint64(256)
        mixed = (rows + np.arange(columns, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15) + key
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)) * 2.0**-53


def grammar_scenes(photographs: Photographs, split: str, count: int, seed: int) -> Scenes:
    """Scenes as the templates' captions say; what a caption leaves open is drawn.

    No photograph is there twice before all of its kind are there once.
    """
    drawn = uniforms(seed, f"scenes {split}", count, 32)
    concepts = (drawn[:, 0] * len(words.CONCEPTS)).astype(int)
    chosen = (drawn[:, 1] * words.TEMPLATES).astype(int)
    templates, tint_places = words.all_templates(), {tint: place for place, tint in enumerate(words.TINTS)}
    ground_places = {ground: place for place, ground in enumerate(words.GROUNDS)}
    labels = np.full((count, SLOTS), NO_ITEM)
    tints = (drawn[:, 2 : 2 + SLOTS] * len(words.TINTS)).astype(int)
    grounds = (drawn[:, 5] * len(words.GROUNDS)).astype(int)
    captions = []
    for scene, (concept, number) in enumerate(zip(concepts.tolist(), chosen.tolist(), strict=True)):
        template = templates[number]
        for place, item in enumerate((words.concept_item(concept), *template.others)):
            labels[scene, place] = item.label
            if item.tint:
                tints[scene, place] = tint_places[item.tint]
        if template.ground:
            grounds[scene] = ground_places[template.ground]
        captions.append(template.caption(words.CONCEPTS[concept]))
    return Scenes(_deal(photographs, split, labels), labels, tints, grounds, captions, drawn[:, 12:])


def single_scenes(photographs: Photographs, split: str, purpose: str, count: int, seed: int) -> Scenes:
    """Scenes of one item each: photographs of a split, each once, in an order that mixes the kinds.

    Raises:
      ValueError: the split has fewer photographs.
    """
    numbers = photographs.splits[split]
    if count > len(numbers):
        raise ValueError(f"{count} scenes of {len(numbers)} photographs")
    order = np.argsort(uniforms(seed, f"{purpose} {split}", len(numbers), 1)[:, 0], kind="stable")
    chosen = numbers[order[:count]]
    drawn = uniforms(seed, f"{purpose} {split} scenes", count, 32)
    labels, mine = np.full((count, SLOTS), NO_ITEM), np.full((count, SLOTS), NO_ITEM)
    labels[:, 0], mine[:, 0] = photographs.labels[chosen], chosen
    tints = (drawn[:, 2 : 2 + SLOTS] * len(words.TINTS)).astype(int)
    grounds = (drawn[:, 5] * len(words.GROUNDS)).astype(int)
    return described(Scenes(mine, labels, tints, grounds, [""] * count, drawn[:, 12:]))


def described(scenes: Scenes) -> Scenes:
    """The scenes with captions that say all of them."""
    captions = [words.described(scenes.items(scene), scenes.ground(scene)) for scene in range(len(scenes))]
    return dataclasses.replace(scenes, captions=captions)


def _deal(photographs: Photographs, split: str, labels: Int[np.ndarray, "scenes 3"]) -> Int[np.ndarray, "scenes 3"]:
    """A photograph for each item: of its kind, in the split's order, from the first again where all were taken."""
    dealt = np.full(labels.shape, NO_ITEM)
    for label in range(len(words.ITEMS)):
        own, (rows, places) = photographs.of_kind(split, label), np.nonzero(labels == label)
        if len(own):
            dealt[rows, places] = own[np.arange(len(rows)) % len(own)]
        elif len(rows):
            raise ValueError(f"no photograph of a {words.ITEMS[label]} in {split}")
    return dealt


def render(photographs: Photographs, scenes: Scenes, side: int) -> UInt8[np.ndarray, "scenes side side 3"]:
    """The scenes as images with sides of so many pixels."""
    parts = [scenes[start : start + AT_ONCE] for start in range(0, len(scenes), AT_ONCE)]
    images = [_render(photographs, part, side) for part in parts]
    return np.concatenate(images) if images else np.zeros((0, side, side, 3), np.uint8)


def _render(photographs: Photographs, scenes: Scenes, side: int) -> UInt8[np.ndarray, "scenes side side 3"]:
    tints, grounds = (np.array(list(table.values()), np.float32) for table in (words.TINTS, words.GROUNDS))
    ground = grounds[scenes.grounds] + JITTER * (2 * scenes.draws[:, -1:] - 1)
    images = np.broadcast_to(ground[:, None, None, :], (len(scenes), side, side, 3)).astype(np.float32)
    counts = (scenes.photographs != NO_ITEM).sum(1)
    for place in range(SLOTS):
        drawn = scenes.draws[:, 6 * place : 6 * place + 6]
        sizes, tops, lefts = _placed(counts, place, drawn[:, :3], scenes.draws[:, -2], side)
        colour = tints[scenes.tints[:, place]] + JITTER * (2 * drawn[:, 3:] - 1)
        for size in np.unique(sizes[sizes > 0]):
            rows = np.nonzero(sizes == size)[0]
            cover, shade = _item(photographs.pixels[scenes.photographs[rows, place]], int(size))
            # A window of each image, as an index of its rows and one of its columns.
            across = np.arange(size)
            window = (
                rows[:, None, None],
                (tops[rows, None] + across)[:, :, None],
                (lefts[rows, None] + across)[:, None],
            )
            painted = shade[..., None] * colour[rows, None, None]
            images[window] = images[window] * (1 - cover[..., None]) + painted
    return np.clip(np.round(images), 0, 255).astype(np.uint8)


def _placed(
    counts: Int[np.ndarray, " scenes"],
    place: int,
    drawn: Float[np.ndarray, "scenes 3"],
    order: Float[np.ndarray, " scenes"],
    side: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Side, top and left of an item in each scene, in pixels; a side of 0 where there is none.

    One item is anywhere. Two have a half each, beside or above each other, three a quarter each.
    """
    sizes, tops, lefts = (np.zeros(len(counts), int) for _ in range(3))
    for count, (least, largest) in SIZES.items():
        if place >= count:
            continue
        rows = np.nonzero(counts == count)[0]
        least_side, largest_side = round(least * side), round(largest * side)
        sizes[rows] = least_side + (drawn[rows, 0] * (largest_side - least_side + 1)).astype(int)
        half = side // 2
        arrangement = order[rows] * 4  # of two: beside or above, and which first; of three: the quarter left empty
        quarter = (arrangement.astype(int) + 1 + place) % 4
        upright = arrangement >= 2
        second = (arrangement.astype(int) + place) % 2
        box_top, box_left, height, width = (np.full(len(rows), pixels) for pixels in (0, 0, side, side))
        if count == 2:
            box_top, box_left = np.where(upright, half * second, 0), np.where(upright, 0, half * second)
            height, width = np.where(upright, half, side), np.where(upright, side, half)
        if count == 3:
            box_top, box_left = half * (quarter // 2), half * (quarter % 2)
            height, width = np.full(len(rows), half), np.full(len(rows), half)
        tops[rows] = box_top + (drawn[rows, 1] * (height - sizes[rows] + 1)).astype(int)
        lefts[rows] = box_left + (drawn[rows, 2] * (width - sizes[rows] + 1)).astype(int)
    return sizes, tops, lefts


def _item(pixels: UInt8[np.ndarray, "n 28 28"], size: int) -> tuple[np.ndarray, np.ndarray]:
    """How much photographs hide of their ground, and their shades where they do; [n, size, size], from 0 to 1."""
    bright = pixels.astype(np.float32)
    cover = np.clip(bright / OPAQUE, 0, 1)
    shade = cover * (DARKEST + (1 - DARKEST) * bright / 255)
    matrix = _resizing(size)
    return tuple(matrix @ each @ matrix.T for each in (cover, shade))  # type: ignore[return-value]


@functools.cache
def _resizing(size: int) -> Float[np.ndarray, "size 28"]:
    """Weights that resize a side of a photograph: a triangle filter, widened where the photograph becomes smaller."""
    scale = SIDE / size
    reach = max(scale, 1.0)
    centres = (np.arange(size) + 0.5) * scale
    weights = np.clip(1 - np.abs(np.arange(SIDE) + 0.5 - centres[:, None]) / reach, 0, None)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)

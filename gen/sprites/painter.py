"""Draws a plan: background, second object, main object, each placed, scaled, turned and tinted by the seed."""

import functools

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from gen.sprites.nouns import art_folder
from gen.sprites.reader import COLOURS, DrawnObject, Plan, read_caption
from gen.sprites.scenes import paint_background

# Longer side of a single main object over the picture's side, by the size word of the caption.
_SCALE = {"tiny": (0.4, 0.5), "small": (0.5, 0.62), "": (0.58, 0.88), "big": (0.78, 0.95), "huge": (0.9, 1.05)}
# Centres of several objects in units of the picture, and the side of each.
_LAYOUTS: dict[int, tuple[float, tuple[tuple[float, float], ...]]] = {
    2: (0.5, ((0.28, 0.5), (0.72, 0.5))),
    3: (0.44, ((0.28, 0.3), (0.72, 0.3), (0.5, 0.72))),
    4: (0.42, ((0.27, 0.28), (0.73, 0.28), (0.27, 0.73), (0.73, 0.73))),
    5: (0.36, ((0.24, 0.25), (0.76, 0.25), (0.5, 0.5), (0.24, 0.76), (0.76, 0.76))),
    6: (0.33, ((0.2, 0.3), (0.5, 0.3), (0.8, 0.3), (0.2, 0.7), (0.5, 0.7), (0.8, 0.7))),
}

_ONE_MINUS_ALPHA = np.array([[0, 0, 0, -1, 1]] * 3, np.float32)


@functools.cache
def _art(emoji: str, colour: str, style: str) -> UInt8[np.ndarray, "height width 4"]:
    """A sprite cropped to what is visible, tinted and styled, with straight (not premultiplied) alpha."""
    with Image.open(art_folder() / f"{emoji}.png") as file:
        sprite = np.array(file.convert("RGBA"))
    rows, columns = np.nonzero(sprite[..., 3] > 24)
    sprite = sprite[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    if colour:
        sprite = _tint(sprite, colour)
    if style == "sketch":
        sprite = _sketch(sprite)
    elif style == "silhouette":
        sprite = np.concatenate([np.full_like(sprite[..., :3], 20), sprite[..., 3:]], axis=-1)
    elif style == "monochrome":
        sprite = np.concatenate([np.repeat(_luminance(sprite)[..., None], 3, -1), sprite[..., 3:]], axis=-1)
    return sprite


def _luminance(sprite: UInt8[np.ndarray, "height width 4"]) -> UInt8[np.ndarray, "height width"]:
    return cv2.cvtColor(np.ascontiguousarray(sprite[..., :3]), cv2.COLOR_RGB2GRAY)


def _tint(sprite: UInt8[np.ndarray, "height width 4"], colour: str) -> UInt8[np.ndarray, "height width 4"]:
    """Moves the sprite's hues to the colour and keeps its light and dark, so that the drawing stays readable."""
    target = cv2.cvtColor(np.array([[COLOURS[colour]]], np.uint8), cv2.COLOR_RGB2HSV)[0, 0].astype(np.float32)
    hsv = cv2.cvtColor(np.ascontiguousarray(sprite[..., :3]), cv2.COLOR_RGB2HSV).astype(np.float32)
    if colour in ("white", "silver", "gray", "grey", "black", "beige"):
        hsv[..., 0] = target[0]
        hsv[..., 1] = np.minimum(hsv[..., 1] * 0.15, 30) + target[1] * 0.4
        low, high = {"white": (150, 255), "silver": (90, 225), "black": (8, 95), "beige": (90, 235)}.get(
            colour, (50, 180)
        )
        hsv[..., 2] = low + hsv[..., 2] / 255 * (high - low)
    else:
        coloured = hsv[..., 1] > 60  # greys, whites and blacks are details: eyes, wheels, shine
        hsv[..., 0] = np.where(coloured, target[0], hsv[..., 0])
        hsv[..., 1] = np.where(coloured, 0.35 * hsv[..., 1] + 0.65 * target[1], hsv[..., 1])
        hsv[..., 2] = np.where(coloured, 0.6 * hsv[..., 2] + 0.4 * target[2], hsv[..., 2])
        if coloured[sprite[..., 3] > 128].mean() < 0.3:  # a mostly grey thing takes the colour as a whole
            hsv[..., 0], hsv[..., 1] = target[0], target[1] * 0.8
    rgb = cv2.cvtColor(np.clip(hsv, 0, 255).astype(np.uint8), cv2.COLOR_HSV2RGB)
    return np.concatenate([rgb, sprite[..., 3:]], axis=-1)


def _sketch(sprite: UInt8[np.ndarray, "height width 4"]) -> UInt8[np.ndarray, "height width 4"]:
    """Dark lines where the drawing changes, white inside."""
    padded = cv2.copyMakeBorder(sprite, 2, 2, 2, 2, cv2.BORDER_CONSTANT)
    alpha = padded[..., 3].astype(np.float32)
    light = _luminance(padded).astype(np.float32)
    edges = np.zeros_like(alpha)
    for channel in (alpha, light * (alpha / 255) + 255 - alpha):
        dx, dy = cv2.Sobel(channel, cv2.CV_32F, 1, 0), cv2.Sobel(channel, cv2.CV_32F, 0, 1)
        edges = np.maximum(edges, np.hypot(dx, dy))
    ink = np.clip((edges - 60) / 140, 0, 1)
    lines = np.repeat((255 - 235 * ink).astype(np.uint8)[..., None], 3, -1)
    return np.concatenate([lines, np.maximum(alpha, 255 * ink).astype(np.uint8)[..., None]], axis=-1)


@functools.lru_cache(4096)
def _scaled(emoji: str, colour: str, style: str, side: int) -> Float32[np.ndarray, "height width 4"]:
    """The sprite with its longer side `side` pixels, premultiplied, alpha in 0..1, one clear pixel around it."""
    sprite = _art(emoji, colour, style)
    height, width = sprite.shape[:2]
    factor = side / max(height, width)
    alpha = sprite[..., 3:].astype(np.float32) / 255
    premultiplied = np.concatenate([sprite[..., :3] * alpha, alpha], axis=-1)
    target = max(2, round(width * factor)), max(2, round(height * factor))
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    scaled = np.clip(cv2.resize(premultiplied, target, interpolation=method), 0, (255, 255, 255, 1))
    return cv2.copyMakeBorder(scaled.astype(np.float32), 1, 1, 1, 1, cv2.BORDER_CONSTANT)


def _place(
    picture: UInt8[np.ndarray, "size size 3"],
    drawn: DrawnObject,
    emoji: str,
    centre: tuple[float, float],
    side: float,
    style: str,
    rng: np.random.Generator,
) -> None:
    """Puts one sprite on the picture, in place; `centre` and `side` in pixels."""
    step = max(1, len(picture) // 32)  # sides are rounded so that scaled sprites are used again
    sprite = _scaled(emoji, drawn.colour, style, max(6, round(side / step) * step))
    height, width = sprite.shape[:2]
    angle, mirrored = rng.uniform(-18, 18), rng.random() < 0.5
    gain, lift = rng.uniform(0.9, 1.08, 3).astype(np.float32), float(rng.uniform(-10, 10))
    # Rotation about the sprite's centre; the bounding box of the turned sprite is all that is touched.
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    cos, sin = abs(matrix[0, 0]), abs(matrix[0, 1])
    box_width, box_height = int(height * sin + width * cos) + 2, int(height * cos + width * sin) + 2
    size = len(picture)
    # The box stays in the picture where it fits; an object larger than the picture is centred and cut.
    left, top = (
        round(min(max(at - box / 2, 0), size - box)) if box <= size else round((size - box) / 2)
        for at, box in zip(centre, (box_width, box_height), strict=True)
    )
    matrix[:, 2] += (box_width - width) / 2, (box_height - height) / 2
    turned = cv2.warpAffine(sprite[:, ::-1] if mirrored else sprite, matrix, (box_width, box_height))
    y0, y1, x0, x1 = max(top, 0), min(top + box_height, size), max(left, 0), min(left + box_width, size)
    turned = turned[y0 - top : y1 - top, x0 - left : x1 - left]
    # Colour jitter and blending in three passes, each from (red, green, blue, alpha) to three channels.
    jitter = np.zeros((3, 4), np.float32)
    np.fill_diagonal(jitter, 1 if style else gain)
    jitter[:, 3] = 0 if style else lift
    stays = cv2.transform(turned, _ONE_MINUS_ALPHA)
    region = picture[y0:y1, x0:x1]
    below = cv2.multiply(region, stays, dtype=cv2.CV_32F)
    region[:] = cv2.add(below, cv2.transform(turned, jitter), dtype=cv2.CV_8U)  # rounds and saturates


def draw_plan(plan: Plan, seed: int, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Draws a plan as an RGB picture; the same arguments give the same picture."""
    rng = np.random.default_rng(seed)
    if plan.style:
        tone = int(rng.integers(235, 256))
        picture = np.full((size, size, 3), tone, np.uint8)
    else:
        picture = paint_background(size, rng, plan.scene, plan.background)
    emoji = _pick(plan.main, rng)
    if plan.main.count > 1:
        side, centres = _LAYOUTS[plan.main.count]
        if plan.second:
            _place_second(picture, plan.second, 0.3, plan.style, rng)
        for x, y in centres:
            shake = rng.uniform(-0.05, 0.05, 2)
            scale = side * rng.uniform(0.88, 1.08)
            centre = ((x + shake[0]) * size, (y + shake[1]) * size)
            _place(picture, plan.main, emoji, centre, scale * size, plan.style, rng)
        return picture
    low, high = _SCALE[plan.main.size]
    if plan.second:
        high = min(high, 0.74)
        low = min(low, high - 0.1)
    side = rng.uniform(low, high)
    if plan.second:
        x, y = _place_second(picture, plan.second, rng.uniform(0.28, 0.4), plan.style, rng)
        centre = (1 - x) * 0.6 + 0.2, (1 - y) * 0.6 + 0.2  # opposite corner, pulled to the middle
    else:
        centre = tuple(rng.uniform(0.2, 0.8, 2))
    _place(picture, plan.main, emoji, (centre[0] * size, centre[1] * size), side * size, plan.style, rng)
    return picture


def _pick(drawn: DrawnObject, rng: np.random.Generator) -> str:
    return drawn.noun.emoji[int(rng.integers(len(drawn.noun.emoji)))]


def _place_second(
    picture: UInt8[np.ndarray, "size size 3"], drawn: DrawnObject, side: float, style: str, rng: np.random.Generator
) -> tuple[float, float]:
    """Puts the second object near a corner; returns where."""
    size = len(picture)
    x, y = (float(rng.choice((0.0, 1.0))) for _ in range(2))
    if drawn.size in ("big", "huge"):
        side = side * 1.2
    elif drawn.size in ("small", "tiny"):
        side = side * 0.85
    _place(picture, drawn, _pick(drawn, rng), (x * size, y * size), side * size, style, rng)
    return x, y


def draw(caption: str, concept: str, seed: int, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Draws what a caption names.

    Args:
      caption: the caption.
      concept: the concept it was written for.
      seed: decides everything the caption leaves open.
      size: side of the picture in pixels.

    Returns:
      An RGB picture.

    Raises:
      NotDrawable: the caption names nothing drawable.
    """
    return draw_plan(read_caption(caption, concept), seed, size)

"""Backgrounds, drawn from a handful of shapes: quick, muted, and different in every picture."""

import functools
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from gen.sprites.reader import COLOURS

Picture = UInt8[np.ndarray, "size size 3"]
Colour = tuple[int, int, int]


def _vertical(size: int, top: Colour, bottom: Colour) -> Picture:
    """A vertical gradient."""
    blend = _steps(size)
    picture = np.empty((size, size, 3), np.uint8)
    picture[:] = np.array(top, np.float32) * (1 - blend) + np.array(bottom, np.float32) * blend
    return picture


@functools.cache
def _steps(size: int) -> Float32[np.ndarray, "size 1 1"]:
    return np.linspace(0.0, 1.0, size, dtype=np.float32)[:, None, None]


def _ground(picture: Picture, horizon: float, colour: Colour) -> None:
    picture[int(horizon * len(picture)) :] = colour


def _disc(picture: Picture, x: float, y: float, radius: float, colour: Colour) -> None:
    size = len(picture)
    cv2.circle(picture, (int(x * size), int(y * size)), max(1, int(radius * size)), colour, -1, cv2.LINE_AA)


def _polygon(picture: Picture, points: list[tuple[float, float]], colour: Colour) -> None:
    cv2.fillPoly(picture, [(np.array(points) * len(picture)).astype(np.int32)], colour, cv2.LINE_AA)


def _box(picture: Picture, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
    size = len(picture)
    picture[int(top * size) : int(bottom * size), int(left * size) : int(right * size)] = colour


def _dots(picture: Picture, rng: np.random.Generator, count: int, low: float, high: float, colours) -> None:
    size = len(picture)
    positions = (rng.uniform((0, low), (1, high), (count, 2)) * size).astype(int)
    for (x, y), shade in zip(positions.tolist(), rng.integers(len(colours), size=count).tolist(), strict=True):
        cv2.circle(picture, (x, y), max(1, size // 90), colours[shade], -1)


def _beach(size: int, rng: np.random.Generator) -> Picture:
    picture = _vertical(size, (150, 205, 240), (205, 232, 245))
    horizon = rng.uniform(0.35, 0.5)
    _ground(picture, horizon, (70, 150, 190))
    _ground(picture, horizon + rng.uniform(0.15, 0.25), (238, 215, 165))
    return picture


def _forest(size: int, rng: np.random.Generator) -> Picture:
    picture = _vertical(size, (195, 220, 190), (150, 190, 145))
    for x in rng.uniform(0, 1, 5):
        top, width = rng.uniform(0.0, 0.3), rng.uniform(0.12, 0.22)
        green = (60 + int(40 * top), 110 + int(90 * top), 65)
        _box(picture, max(x - 0.02, 0), 0.5, x + 0.02, 0.85, (105, 80, 60))
        _polygon(picture, [(x - width, 0.72), (x, top), (x + width, 0.72)], green)
    _ground(picture, rng.uniform(0.7, 0.85), (95, 130, 75))
    return picture


def _night(size: int, rng: np.random.Generator) -> Picture:
    picture = _vertical(size, (14, 18, 48), (40, 50, 95))
    _dots(picture, rng, 18, 0, 0.9, ((235, 235, 220), (170, 180, 210)))
    if rng.random() < 0.5:
        _ground(picture, rng.uniform(0.75, 0.9), (24, 34, 40))
    return picture


def _snow(size: int, rng: np.random.Generator) -> Picture:
    picture = _vertical(size, (190, 208, 225), (222, 232, 240))
    _ground(picture, rng.uniform(0.5, 0.75), (244, 248, 252))
    _dots(picture, rng, 20, 0, 1, ((255, 255, 255),))
    return picture


def _desert(size: int, rng: np.random.Generator) -> Picture:
    picture = _vertical(size, (160, 205, 235), (245, 225, 190))
    _ground(picture, rng.uniform(0.5, 0.7), (225, 180, 115))
    _disc(picture, rng.uniform(0, 1), 1.05, rng.uniform(0.35, 0.5), (212, 165, 100))
    return picture


def _city(size: int, rng: np.random.Generator) -> Picture:
    picture = _vertical(size, (175, 200, 220), (215, 220, 225))
    left = 0.0
    while left < 1:
        width, top = rng.uniform(0.12, 0.24), rng.uniform(0.15, 0.55)
        shade = int(rng.integers(120, 175))
        _box(picture, left, top, left + width - 0.015, 1, (shade, shade, shade + 8))
        for row in np.arange(top + 0.05, 0.8, 0.12):
            _box(picture, left + 0.03, row, left + 0.06, row + 0.05, (225, 215, 160))
        left += width
    _ground(picture, rng.uniform(0.8, 0.9), (95, 95, 100))
    return picture


def _road(size: int, rng: np.random.Generator) -> Picture:
    picture = _vertical(size, (165, 205, 235), (215, 230, 240))
    horizon, x = rng.uniform(0.35, 0.5), rng.uniform(0.4, 0.6)
    _ground(picture, horizon, (135, 175, 100))
    _polygon(picture, [(x - 0.04, horizon), (x + 0.04, horizon), (x + 0.45, 1), (x - 0.45, 1)], (110, 110, 115))
    _polygon(picture, [(x - 0.004, horizon), (x + 0.004, horizon), (x + 0.03, 1), (x - 0.03, 1)], (235, 225, 170))
    return picture


def _field(size: int, rng: np.random.Generator) -> Picture:
    picture = _vertical(size, (150, 205, 240), (215, 235, 245))
    horizon = rng.uniform(0.4, 0.65)
    _ground(picture, horizon, (120, 185, 85))
    _disc(picture, rng.uniform(0, 1), horizon + 0.35, 0.42, (110, 175, 78))
    if rng.random() < 0.5:
        _dots(picture, rng, 10, horizon + 0.05, 1, ((250, 235, 110), (245, 245, 245), (235, 140, 160)))
    return picture


def _ocean(size: int, rng: np.random.Generator) -> Picture:
    picture = _vertical(size, (165, 210, 240), (215, 235, 245))
    horizon = rng.uniform(0.35, 0.6)
    _ground(picture, horizon, (55, 125, 180))
    for y in np.arange(horizon + 0.08, 1, 0.13):
        x = rng.uniform(-0.2, 0.8)
        _box(picture, max(x, 0), y, x + 0.3, y + 0.02, (105, 165, 205))
    return picture


def _underwater(size: int, rng: np.random.Generator) -> Picture:
    picture = _vertical(size, (75, 165, 205), (20, 75, 130))
    _dots(picture, rng, 8, 0, 0.9, ((165, 215, 235),))
    _ground(picture, rng.uniform(0.85, 0.95), (190, 175, 130))
    return picture


def _sunset(size: int, rng: np.random.Generator) -> Picture:
    picture = _vertical(size, (110, 80, 140), (250, 175, 95))
    _disc(picture, rng.uniform(0.1, 0.9), 0.72, 0.14, (255, 220, 130))
    _ground(picture, rng.uniform(0.72, 0.85), (85, 55, 75))
    return picture


def _mountains(size: int, rng: np.random.Generator) -> Picture:
    picture = _vertical(size, (160, 200, 235), (220, 230, 240))
    for x in rng.uniform(0, 1, 3):
        top, half = rng.uniform(0.15, 0.4), rng.uniform(0.3, 0.45)
        _polygon(picture, [(x - half, 0.8), (x, top), (x + half, 0.8)], (125, 135, 150))
        _polygon(picture, [(x - half * 0.2, top + 0.1), (x, top), (x + half * 0.2, top + 0.1)], (240, 245, 250))
    _ground(picture, rng.uniform(0.68, 0.78), (125, 160, 105))
    return picture


def _sky(size: int, rng: np.random.Generator) -> Picture:
    picture = _vertical(size, (105, 175, 235), (195, 225, 248))
    for x, y in rng.uniform(0, 1, (3, 2)):
        for shift in (-0.07, 0.0, 0.07):
            _disc(picture, x + shift, y, 0.06 + 0.02 * (shift == 0), (240, 246, 252))
    return picture


def _space(size: int, rng: np.random.Generator) -> Picture:
    picture = _vertical(size, (8, 6, 24), (34, 20, 58))
    _dots(picture, rng, 26, 0, 1, ((255, 255, 255), (190, 200, 255), (255, 220, 190)))
    return picture


def _rain(size: int, rng: np.random.Generator) -> Picture:
    picture = _vertical(size, (110, 120, 135), (165, 172, 182))
    for x, y in rng.uniform(0, 1, (14, 2)):
        _polygon(picture, [(x, y), (x + 0.012, y), (x - 0.02, y + 0.1), (x - 0.032, y + 0.1)], (195, 208, 222))
    return picture


def _room(size: int, rng: np.random.Generator) -> Picture:
    wall = _tone(rng, 200, 240)
    picture = _vertical(size, wall, wall)
    x = rng.uniform(0.05, 0.6)
    _box(picture, x, 0.1, x + 0.3, 0.42, (245, 245, 240))
    _box(picture, x + 0.02, 0.12, x + 0.28, 0.4, (175, 210, 235))
    _ground(picture, rng.uniform(0.65, 0.8), (175, 135, 95))
    return picture


def _table(size: int, rng: np.random.Generator) -> Picture:
    wall = _tone(rng, 195, 240)
    picture = _vertical(size, wall, wall)
    brown = rng.integers(120, 190)
    _ground(picture, rng.uniform(0.5, 0.7), (int(brown), int(brown * 0.72), int(brown * 0.5)))
    return picture


def _stage(size: int, rng: np.random.Generator) -> Picture:
    picture = _vertical(size, (60, 25, 65), (35, 18, 42))
    x = rng.uniform(0.3, 0.7)
    _polygon(picture, [(x - 0.03, 0), (x + 0.03, 0), (x + 0.4, 1), (x - 0.4, 1)], (120, 75, 115))
    _ground(picture, 0.85, (110, 75, 55))
    return picture


_PAINTERS: dict[str, Callable[[int, np.random.Generator], Picture]] = {
    "beach": _beach,
    "forest": _forest,
    "night": _night,
    "snow": _snow,
    "desert": _desert,
    "city": _city,
    "road": _road,
    "field": _field,
    "ocean": _ocean,
    "underwater": _underwater,
    "sunset": _sunset,
    "mountains": _mountains,
    "sky": _sky,
    "space": _space,
    "rain": _rain,
    "room": _room,
    "table": _table,
    "stage": _stage,
}


def _tone(rng: np.random.Generator, low: int, high: int) -> Colour:
    red, green, blue = rng.integers(low, high, 3).tolist()
    return red, green, blue


def _plain(size: int, rng: np.random.Generator) -> Picture:
    """The caption says nothing of the background: white, a tone, or a gradient between two."""
    kind = rng.random()
    if kind < 0.3:
        top = bottom = (int(rng.integers(244, 256)),) * 3
    elif kind < 0.65:
        top = bottom = _tone(rng, 150, 250)
    elif kind < 0.8:
        top = bottom = _tone(rng, 20, 220)
    else:
        top, bottom = _tone(rng, 110, 250), _tone(rng, 110, 250)
    return _vertical(size, top, bottom)


def _coloured(size: int, rng: np.random.Generator, colour: str) -> Picture:
    """The named colour, a little lighter or darker towards the bottom."""
    base = np.array(COLOURS[colour]) + rng.integers(-14, 15, 3)
    other = base * rng.uniform(0.85, 1.1)
    top, bottom = (tuple(np.clip(tone, 0, 255).astype(int).tolist()) for tone in (base, other))
    return _vertical(size, top, bottom)


def paint_background(size: int, rng: np.random.Generator, scene: str = "", colour: str = "") -> Picture:
    """A background of `size` pixels: the scene if one is named, else the colour, else whatever the seed gives.

    A coloured sky ("pink sky") is the colour alone.
    """
    if colour and scene in ("", "sky"):
        return _coloured(size, rng, colour)
    picture = _PAINTERS[scene](size, rng) if scene else _plain(size, rng)
    if scene and rng.random() < 0.5:
        picture = np.ascontiguousarray(picture[:, ::-1])
    return picture

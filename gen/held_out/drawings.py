"""Test images: the sprites' art in scenes of their own, and the same things by another artist."""

import importlib.util
import io
import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterable, Sequence

import numpy as np

from gen.held_out import noto
from gen.held_out.captions import SEED, held_out_captions, two_captions
from gen.shards import draws
from gen.sprites import Noun, draw

PER_CLASS = {"composites": 20, "noto_color": 8, "noto_outline": 8, "scenes": 4, "choices": 4}
COLOR_FONT_PATHS = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
    "~/.local/share/fonts/NotoColorEmoji.ttf",
    "~/.fonts/NotoColorEmoji.ttf",
)
WEIGHTS = (300, 700)  # the range of Noto Emoji's weight axis
LIGHT_BACKGROUNDS = ((255, 255, 255), (255, 255, 255), (232, 236, 240), (226, 240, 252), (252, 244, 222))

Example = tuple[bytes, int | str]  # PNG bytes; class, or caption


def composites(nouns: Sequence[Noun], used: frozenset[str], size: int) -> Iterable[Example]:
    """Held-out images: test captions, and seeds drawn under a purpose that training never uses."""
    for label, noun in enumerate(nouns):
        for index, caption in enumerate(held_out_captions(noun, used, PER_CLASS["composites"])):
            seed = draws.bits63(SEED, f"{noun.name} {index}", "test composite")
            yield _png(draw(caption, noun.name, seed, size)), label


def scenes(nouns: Sequence[Noun], used: frozenset[str], size: int) -> Iterable[Example]:
    """Held-out images with their captions. A class with fewer held-out captions than asked for gives each once: two
    images of one caption could not be told apart."""
    for noun in nouns:
        for index, caption in enumerate(dict.fromkeys(held_out_captions(noun, used, PER_CLASS["scenes"]))):
            seed = draws.bits63(SEED, f"{noun.name} {index}", "test scene")
            yield _png(draw(caption, noun.name, seed, size)), caption


def choices(nouns: Sequence[Noun], used: frozenset[str], size: int) -> Iterable[Example]:
    """Held-out images, each with the caption it was drawn from and, on a second line, a wrong one."""
    for label, noun in enumerate(nouns):
        for index, (right, wrong) in enumerate(two_captions(nouns, label, used, PER_CLASS["choices"])):
            seed = draws.bits63(SEED, f"{noun.name} {index}", "test choice")
            yield _png(draw(right, noun.name, seed, size)), f"{right}\n{wrong}"


def font_is_needed(nouns: Sequence[Noun]) -> bool:
    """Whether there are things among these whose colour drawings do not come with the package."""
    return any(noto.shipped(emoji) is None for noun in nouns for emoji in noun.emoji)


def noto_color(nouns: Sequence[Noun], font: pathlib.Path | None, size: int) -> Iterable[Example]:
    """Another artist's colour drawings on light backgrounds, a little scaled and shifted.

    Args:
      font: Noto Color Emoji, where `font_is_needed`.
    """

    def glyph(emoji: str):
        drawing = noto.shipped(emoji)
        if drawing is None:
            assert font is not None
            drawing = noto.drawn(emoji, font)
        return drawing

    for label, noun in enumerate(nouns):
        for index in range(PER_CLASS["noto_color"]):
            rng = np.random.default_rng(draws.bits63(SEED, f"{noun.name} {index}", "test noto_color"))
            background = LIGHT_BACKGROUNDS[int(rng.integers(len(LIGHT_BACKGROUNDS)))]
            yield _png(_centred(glyph(noun.emoji[index % len(noun.emoji)]), background, size, rng)), label


def noto_outline(nouns: Sequence[Noun], font: pathlib.Path, size: int) -> Iterable[Example]:
    """Black lines on white; the font's weight axis gives thin and thick drawings of each thing."""
    from PIL import Image, ImageDraw, ImageFont

    face = ImageFont.truetype(str(font), 2 * size)
    lightest, boldest = WEIGHTS
    count = PER_CLASS["noto_outline"]
    # Setting the weight is slow, drawing is not: weights are the outer loop.
    glyphs = {}
    for index in range(count):
        face.set_variation_by_axes([lightest + (boldest - lightest) * index / (count - 1)])
        for noun in nouns:
            image = Image.new("RGBA", (4 * size, 4 * size))
            emoji = noun.emoji[index % len(noun.emoji)]
            ImageDraw.Draw(image).text((size // 4, size // 4), chr(int(emoji, 16)), font=face, fill="black")
            rng = np.random.default_rng(draws.bits63(SEED, f"{noun.name} {index}", "test noto_outline"))
            glyphs[noun.name, index] = _centred(image.crop(image.getbbox()), (255, 255, 255), size, rng)
    for label, noun in enumerate(nouns):
        for index in range(count):
            yield _png(glyphs[noun.name, index]), label


def _centred(glyph, background: tuple[int, int, int], size: int, rng: np.random.Generator):
    """A glyph on a plain background: 70 to 92% of the side, shifted within what room is left."""
    from PIL import Image

    factor = rng.uniform(0.7, 0.92) * size / max(glyph.size)
    glyph = glyph.resize([max(1, round(side * factor)) for side in glyph.size], Image.Resampling.LANCZOS)
    left, top = (round((size - side) * rng.uniform(0.25, 0.75)) for side in glyph.size)
    image = Image.new("RGB", (size, size), background)
    image.paste(glyph, (left, top), glyph)
    return image


def _png(image) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, "PNG")
    return buffer.getvalue()


def find_color_font() -> pathlib.Path | None:
    """Noto Color Emoji on this system: the usual places, then fontconfig; None if it is nowhere."""
    candidates = [pathlib.Path(os.path.expanduser(path)) for path in COLOR_FONT_PATHS]
    if shutil.which("fc-list"):
        command = ["fc-list", ":family=Noto Color Emoji", "--format=%{file}\n"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        candidates += [pathlib.Path(line) for line in found.stdout.splitlines()]
    return next((path for path in candidates if path.is_file() and _has_bitmaps(path)), None)


def _has_bitmaps(font: pathlib.Path) -> bool:
    from PIL import ImageFont

    try:
        ImageFont.truetype(str(font), noto.FONT_SIZE)
    except OSError:  # the vector variant of the font, which PIL cannot draw in colour
        return False
    return True


def find_outline_font() -> pathlib.Path | None:
    """Noto Emoji in the package manimgx-fonts; None if that is not installed."""
    spec = importlib.util.find_spec("manimgx_fonts")
    if spec is None or spec.origin is None:
        return None
    path = pathlib.Path(spec.origin).parent / "NotoEmoji[wght].ttf"
    return path if path.is_file() else None

"""Drawings of Noto Color Emoji: those of the core nouns come with this package, others from the font.

    python -m gen.held_out.noto --font=NotoColorEmoji.ttf

writes the files that come with the package, `noto_color/CODEPOINT.png`: the font's own bitmaps of 136 x 128 pixels,
cropped, with the palette that they have, so that nothing is lost. Their licence (OFL 1.1) lies beside them, and the
digest of the font's file that they are from.
"""

import argparse
import functools
import hashlib
import io
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from gen.sprites.nouns import vocabulary

if TYPE_CHECKING:
    from PIL import Image

SHIPPED = pathlib.Path(__file__).parent / "noto_color"
FROM = SHIPPED / "font.sha256"
FONT_SIZE = 109  # the one size of the bitmaps in the font


def is_from(font: pathlib.Path) -> bool:
    """Whether the package's drawings are from this file of the font."""
    return _digest(font) == FROM.read_text().strip()


def _digest(font: pathlib.Path) -> str:
    return hashlib.sha256(font.read_bytes()).hexdigest()


@functools.cache
def shipped(emoji: str) -> "Image.Image | None":
    """A drawing of the package, RGBA; None if it is not among them."""
    from PIL import Image

    path = SHIPPED / f"{emoji}.png"
    if not path.is_file():
        return None
    with Image.open(path) as image:
        return image.convert("RGBA")


@functools.cache
def drawn(emoji: str, font: pathlib.Path) -> "Image.Image":
    """A drawing by the font, RGBA, cropped to what is drawn."""
    from PIL import Image, ImageDraw

    image = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(image).text((10, 10), chr(int(emoji, 16)), font=_face(font), embedded_color=True)
    return image.crop(image.getbbox())


@functools.cache
def _face(font: pathlib.Path) -> Any:
    from PIL import ImageFont

    return ImageFont.truetype(str(font), FONT_SIZE)


def as_png(image: "Image.Image") -> bytes:
    """An RGBA image of at most 256 colours as a PNG with a palette."""
    from PIL import Image

    alpha_first = np.asarray(image)[..., [3, 0, 1, 2]].reshape(-1, 4)
    colours, places = np.unique(alpha_first, axis=0, return_inverse=True)
    if len(colours) > 256:
        raise ValueError(f"{len(colours)} colours do not fit into a palette")
    small = Image.frombytes("P", image.size, places.astype(np.uint8).tobytes())
    small.putpalette(colours[:, 1:].tobytes())
    file = io.BytesIO()
    small.save(file, "PNG", optimize=True, transparency=colours[:, 0].tobytes())
    return file.getvalue()


def main() -> None:
    """Writes the drawings of the core nouns."""
    parser = argparse.ArgumentParser(prog="gen.held_out.noto", description=__doc__)
    parser.add_argument("--font", type=pathlib.Path, required=True, help="Noto Color Emoji with bitmaps")
    font = parser.parse_args().font
    for emoji in sorted({emoji for noun in vocabulary() if noun.core for emoji in noun.emoji}):
        (SHIPPED / f"{emoji}.png").write_bytes(as_png(drawn(emoji, font)))
    FROM.write_text(f"{_digest(font)}\n")


if __name__ == "__main__":
    main()

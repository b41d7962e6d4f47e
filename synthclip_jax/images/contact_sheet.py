"""Some images side by side with a text under each, as one image."""

import textwrap
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

COLUMNS = 8
SIDE, GAP, FONT_SIZE, LINES = 144, 6, 11, 4  # pixels; LINES: of text under an image
_LINE = FONT_SIZE + 3


def contact_sheet(images: Sequence[UInt8[np.ndarray, "h w 3"]], texts: Sequence[str]) -> UInt8[np.ndarray, "h w 3"]:
    """Images in rows of `COLUMNS`, small ones enlarged so that their pixels show; texts are cut to `LINES`."""
    cell_height = SIDE + LINES * _LINE + GAP
    columns, rows = min(COLUMNS, max(1, len(images))), -(-len(images) // COLUMNS)
    sheet = Image.new("RGB", (columns * (SIDE + GAP) + GAP, rows * cell_height + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), _font()
    for number, (pixels, text) in enumerate(zip(images, texts, strict=True)):
        row, column = divmod(number, COLUMNS)
        left, top = GAP + column * (SIDE + GAP), GAP + row * cell_height
        how = Image.Resampling.NEAREST if max(pixels.shape[:2]) < SIDE else Image.Resampling.LANCZOS
        sheet.paste(Image.fromarray(pixels).resize((SIDE, SIDE), how), (left, top))
        draw.multiline_text((left, top + SIDE + 1), "\n".join(_lines(text, font)), "black", font, spacing=2)
    return np.asarray(sheet)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """One with accents, Greek and Cyrillic where the system has it; Pillow's own has ASCII alone."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", FONT_SIZE)
    except OSError:
        return ImageFont.load_default(FONT_SIZE)


def _lines(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """As many lines of a text as have room under an image."""
    characters = max(1, int(SIDE / max(1.0, font.getlength("n"))))
    return textwrap.wrap(text, characters, max_lines=LINES, placeholder=" …")

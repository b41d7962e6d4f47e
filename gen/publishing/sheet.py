"""The contact sheet of a published dataset: its first images, which are a fair sample."""

import io
from collections.abc import Sequence

COLUMNS, ROWS, SIDE, GAP = 6, 4, 160, 4


def contact_sheet(images: Sequence[bytes]) -> bytes:
    """The images side by side, row by row, as a JPEG."""
    from PIL import Image

    from synthclip_jax.images.decoding import open_image

    rows = max(1, -(-len(images) // COLUMNS))
    sheet = Image.new("RGB", (COLUMNS * (SIDE + GAP) - GAP, rows * (SIDE + GAP) - GAP), "white")
    for number, data in enumerate(images[: COLUMNS * ROWS]):
        image = open_image(data).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        sheet.paste(image, (number % COLUMNS * (SIDE + GAP), number // COLUMNS * (SIDE + GAP)))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()

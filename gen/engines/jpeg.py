"""What is stored of an image."""

import io

from gen.engines.interface import Pixels


def encode_jpeg(pixels: Pixels, size: int, quality: int) -> bytes | None:
    """Resizes (bicubic, PIL's default, as in the paper) if needed and encodes; None if the result does not decode."""
    from PIL import Image

    from synthclip_jax.images.decoding import ImageError, check_image

    image = Image.fromarray(pixels)
    if image.size != (size, size):
        image = image.resize((size, size))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    try:
        check_image(buffer.getvalue())
    except ImageError:
        return None
    return buffer.getvalue()

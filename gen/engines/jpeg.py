"""What is stored of a picture."""

import io

from gen.engines.interface import Picture


def encode_jpeg(picture: Picture, size: int, quality: int) -> bytes | None:
    """Resizes (bicubic, PIL's default, as in the paper) if needed and encodes; None if the result does not decode."""
    from PIL import Image

    from synthclip_jax.images.decoding import PictureError, check_picture

    image = Image.fromarray(picture)
    if image.size != (size, size):
        image = image.resize((size, size))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    try:
        check_picture(buffer.getvalue())
    except PictureError:
        return None
    return buffer.getvalue()

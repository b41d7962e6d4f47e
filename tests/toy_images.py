"""Small images for tests: smooth as photographs are, in any file format that PIL writes."""

import io
import struct

import numpy as np
from PIL import Image


def photo(width, height, seed=0):
    """A smooth image in colour."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encode(image, kind, **how):
    """The bytes of an image in a format."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def jpeg_of(width, height, **how):
    """A small JPEG whose frame says another size."""
    data = bytearray(encode(photo(16, 16), "JPEG", **how))
    at = next(at for at in range(len(data)) if data[at] == 0xFF and data[at + 1] in (0xC0, 0xC2))
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)

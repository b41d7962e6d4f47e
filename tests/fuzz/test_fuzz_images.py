"""Damaged images of every format beside PIL: the same pixels or an `ImageError`, and never expensively."""

import io
import warnings
import zlib

import numpy as np
import pytest
from fuzz.mutations import MANY, how_many, limits, mutations
from PIL import Image
from toy_images import encode, photo

from synthclip_jax.images.decoding import ImageError, check_image, decode_image, open_image

pytestmark = pytest.mark.filterwarnings("ignore")  # PIL warns of damaged metadata

Image.init()
WAYS = [
    ("JPEG", "RGB", {}),
    ("JPEG", "L", {"optimize": True}),
    ("JPEG", "CMYK", {}),
    ("JPEG", "RGB", {"progressive": True, "exif": b"Exif\0\0" + encode(photo(8, 8), "JPEG")}),
    ("JPEG", "RGB", {"restart_marker_blocks": 3, "comment": b"a \xff\xd9 comment"}),
    ("PNG", "RGB", {}),
    ("PNG", "P", {"transparency": 3}),
    ("PNG", "I;16", {}),
    ("WEBP", "RGB", {}),
    ("WEBP", "RGBA", {"lossless": True}),
    ("GIF", "P", {}),
    ("BMP", "RGB", {}),
    ("TIFF", "RGB", {"compression": "raw"}),
    ("TIFF", "RGBA", {"compression": "tiff_lzw"}),
    ("TIFF", "CMYK", {"compression": "jpeg"}),
    ("TIFF", "L", {"compression": "packbits"}),
    ("TIFF", "RGB", {"compression": "tiff_adobe_deflate"}),
    ("TIFF", "RGB", {"compression": "zstd"}),
    ("TIFF", "RGB", {"compression": "lzma"}),
    ("TIFF", "1", {"compression": "group4"}),
    ("JPEG2000", "RGB", {}),
    ("AVIF", "RGB", {}),
    ("PPM", "RGB", {}),
]
WAYS = [way for way in WAYS if way[0] in Image.SAVE]


def seed(kind, mode, how):
    image = photo(44, 36)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return encode(image.convert(mode), kind, **how)


def with_checksums(data):
    """A PNG whose checksums agree, so that its decoder sees the damage, too."""
    parts, at = [data[:8]], 8
    while at + 12 <= len(data) and (end := at + 8 + int.from_bytes(data[at : at + 4], "big")) + 4 <= len(data):
        parts += [data[at:end], zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")]
        at = end + 4
    return b"".join(parts)


def by_pil(data):
    """PIL's pixels; None where it refuses; True where it holds more than 8 bits in a channel, which it would clip."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            image.load()
            return True if image.mode[0] in "IF" else np.asarray(image.convert("RGB"))
    except Exception:
        return None


def ours(decode, data):
    try:
        return decode(data)
    except ImageError:
        return None


def compare(what, data):
    with limits(what):
        pixels, size, image = (ours(decode, data) for decode in (decode_image, check_image, open_image))
    if pixels is None:
        assert size is None, f"{what}: checked, but does not decode"
        assert image is None, f"{what}: opened, but does not decode"
        return False
    assert size == pixels.shape[1::-1], f"{what}: of another size when checked"
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), pixels, what)
    theirs = by_pil(data)
    assert theirs is not None, f"{what}: decodes, and PIL refuses it"
    if theirs is not True:
        np.testing.assert_array_equal(pixels, theirs, what)
    return True


def damage(count):
    decoded = 0
    for number, way in enumerate(WAYS):
        for what, data in mutations(seed(*way), count // len(WAYS), seed=number):
            decoded += compare(f"{way}: {what}", data)
            if way[0] == "PNG":
                compare(f"{way}: {what}, checksums made anew", with_checksums(data))
    return decoded


def test_damaged_images_have_pils_pixels_or_are_refused():
    count = how_many(2000)
    decoded = damage(count)
    assert count // 50 < decoded < count  # some damage does not show, and some does


@pytest.mark.slow
def test_100_000_damaged_images():
    damage(MANY)

"""The one rule for what decodes, and to which pixels, for training, evaluation, embedding, reports and verification.

The pixels are PIL's, as the reference's are: those of `Image.open(...).convert("RGB")` for all images of 8 bits.
Alpha is dropped, a palette is looked up, CMYK is converted, the first frame of several is taken, and an image is not
turned by its EXIF tag. What PIL makes white (more than 8 bits in one channel) is scaled to 8 bits.

Nothing is decoded before its size is known, and any error of any decoder is an `ImageError`.
"""

import functools
import io
import warnings
from collections.abc import Callable
from typing import TypeVar

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, TiffImagePlugin

from synthclip_jax.images.headers import (
    IMAGE_EXTENSIONS,
    MAX_PIXELS,
    PNG_SIGNATURE,
    ImageError,
    jpeg_header,
    png_header,
    webp_size,
)

__all__ = [
    "IMAGE_EXTENSIONS",
    "MAX_PIXELS",
    "ImageError",
    "Pixels",
    "check_image",
    "decode_image",
    "open_image",
]

# PIL reads many more. Some of those run another program or are read in Python, a minute for a large image.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
_SLOW_DECODERS = frozenset({"ppm", "ppm_plain", "bmp_rle"})  # PIL's in Python, of kinds that are rare
_SLOW_PIXELS = 2**22

# Those of which libtiff and PIL say when data are missing, and tags of a TIFF.
_TIFF_COMPRESSIONS = frozenset(
    {"raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "lzma", "zstd", "jpeg"}
)
_OFFSETS, _ROWS, _BYTES, _PLANES = 273, 278, 279, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 322, 323, 324, 325

# Warnings of libjpeg after which the pixels are whole. The first one of a file is what simplejpeg tells.
_HARMLESS = ("extraneous bytes before marker 0xd9", "unknown JFIF revision", "Unknown Adobe color transform")
_DAMAGED = ("Corrupt JPEG data", "Premature end", "Inconsistent progression")

# PIL warns of odd metadata, which nothing here uses.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
cv2.setNumThreads(0)  # parallelism comes from the loader's threads; OpenCV's own would fight with them

T = TypeVar("T")
Pixels = UInt8[np.ndarray, "h w 3"]


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decodes an image to RGB.

    Raises:
      ImageError: the bytes are no image, one that is cut off or damaged (decoders would fill it up with grey), or
        one of more than `max_pixels`.
    """
    return _explained(_decode, data, max_pixels)


def check_image(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Whether `decode_image` can decode this, at half its cost: a JPEG is read whole and decoded at an eighth.

    Returns:
      Width and height, pixels.

    Raises:
      ImageError: it cannot.
    """
    return _explained(_check, data, max_pixels)


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes an image completely, to PIL's own mode for it; more than 8 bits in one channel are scaled to 8.

    Raises:
      ImageError: as `decode_image`.
    """
    return _explained(_open, data, max_pixels)


def _explained(decode: Callable[[bytes, int], T], data: bytes, max_pixels: int) -> T:
    try:
        return decode(data, max_pixels)
    except ImageError:
        raise
    except Exception as error:  # decoders raise anything: RuntimeError, IndexError, MemoryError, cv2.error, ...
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = "they are of no kind that is read" if unknown else " ".join(str(error).split()) or type(error).__name__
        cause = "no image of a kind that is read" if unknown else "image that does not decode"
        raise ImageError(f"{len(data):,} bytes that do not decode as an image ({reason})", cause) from error


def _decode(data: bytes, max_pixels: int) -> Pixels:
    image = _quickly(data, max_pixels)
    if image is not None:
        return image
    image = _by_pil(data, max_pixels)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _check(data: bytes, max_pixels: int) -> tuple[int, int]:
    image, size = _jpeg(data, max_pixels, shrink=8)
    if image is None:
        height, width = _decode(data, max_pixels).shape[:2]
        size = width, height
    return size


def _open(data: bytes, max_pixels: int) -> Image.Image:
    image = _quickly(data, max_pixels)
    return _by_pil(data, max_pixels) if image is None else Image.fromarray(image)


def _quickly(data: bytes, max_pixels: int) -> Pixels | None:
    """The pixels of the commonest kinds by decoders that take a fifth less time than PIL; None for all others."""
    if not data.startswith(PNG_SIGNATURE):
        return _jpeg(data, max_pixels)[0]
    png = png_header(data)
    _check_size(png.width, png.height, max_pixels)
    if not (png.plain and png.bits == 8 and png.colour in (0, 2)):
        return None
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if not 0 < width * height <= max_pixels:
        raise ImageError(
            f"an image of {width:,} x {height:,} pixels, at most {max_pixels:,} are decoded. Make it smaller, or"
            " raise config.data.max_pixels",
            "image of more than data.max_pixels",
        )


def _jpeg(data: bytes, max_pixels: int, shrink: int = 1) -> tuple[Pixels | None, tuple[int, int]]:
    """The pixels of a JPEG, and its size; None for what only PIL decodes, such as CMYK and all other kinds."""
    if data[:2] != b"\xff\xd8":
        return None, (0, 0)
    header = jpeg_header(data)
    size = header.width, header.height
    _check_size(*size, max_pixels)
    if header.junk or header.channels == 4:
        # PIL has the pixels, but does not tell whether they are all there. libjpeg does, though only its first warning,
        # which the junk would be.
        whole, colours = header.without_junk(data), "CMYK" if header.channels == 4 else "RGB"
        _jpeg_pixels(whole, colours, 8)
        return None, size
    return _jpeg_pixels(data, "RGB", shrink), size


def _jpeg_pixels(data: bytes, colours: str, shrink: int) -> Pixels | None:
    smaller = {"min_height": 1, "min_width": 1, "min_factor": shrink} if shrink > 1 else {}
    try:
        return simplejpeg.decode_jpeg(data, colours, **smaller)
    except ValueError as error:
        reason = str(error)
    harmless = any(text in reason for text in _HARMLESS)
    if not harmless and any(text in reason for text in _DAMAGED):
        raise ImageError(f"the JPEG is cut off or damaged ({reason})")
    try:
        return simplejpeg.decode_jpeg(data, colours, strict=False, **smaller) if harmless else None
    except ValueError:
        return None


def _by_pil(data: bytes, max_pixels: int) -> Image.Image:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        _check_size(*webp_size(data), max_pixels)  # PIL takes memory for it when it opens it
    if max_pixels > (Image.MAX_IMAGE_PIXELS or max_pixels):
        Image.MAX_IMAGE_PIXELS = max_pixels  # PIL's own limit, for those who asked for more
    image = Image.open(io.BytesIO(data), formats=_formats())
    _check_size(image.width, image.height, max_pixels)
    slow = any(tile[0] in _SLOW_DECODERS for tile in image.tile)
    if slow and image.width * image.height > _SLOW_PIXELS:
        raise ImageError(
            f"a {image.format} of a rare kind that is slow to decode, with {image.width:,} x {image.height:,} pixels."
            " Save it as PNG",
            "large image of a kind that is slow to decode",
        )
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiff(image, data, max_pixels)
    image.load()
    return _eight_bits(image)


def _check_tiff(image: TiffImagePlugin.TiffImageFile, data: bytes, max_pixels: int) -> None:
    """Refuses what libtiff would take memory for, or leave pixels out of without a word (they are then anything)."""
    tags, how = image.tag_v2, image.info.get("compression")
    width, height = tags.get(_TILE_WIDTH, image.width), tags.get(_TILE_HEIGHT, tags.get(_ROWS, image.height))
    if how not in _TIFF_COMPRESSIONS or (how == "jpeg" and tags.get(_PLANES, 1) != 1):
        raise ImageError(f"a TIFF with compression {how}, of which damage cannot be told. Save it as PNG")
    if _TILE_WIDTH in tags:
        _check_size(width, height, max_pixels)
    if how != "jpeg":
        return
    rest = image.height
    parts = (tags.get(_TILE_OFFSETS, tags.get(_OFFSETS)), tags.get(_TILE_BYTES, tags.get(_BYTES)))
    for start, size in zip(*parts, strict=True):
        header = jpeg_header(data[start : start + size])
        if header.width < width or header.height < (height if _TILE_WIDTH in tags else min(height, rest)):
            raise ImageError("a TIFF that is damaged: a part of it is smaller than it says")
        rest -= height


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)  # AVIF came with Pillow 11.3


def _eight_bits(image: Image.Image) -> Image.Image:
    """What holds more than 8 bits in its one channel as 8 bits. PIL would clip it: most pixels turn white."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        bits = 12 if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(258) == (12,) else 16
        return Image.fromarray((values >> (bits - 8)).astype(np.uint8))  # the upper bits, as PIL does with colours
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # PIL gives these the range of 16 bits
        return Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8))
    # Of 32 bits nothing says what is white: the first of the usual whites that no value exceeds.
    low, high = (float(values.min()), float(values.max()))
    whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (255, 65535, 2**31 - 1)
    white = next((white for white in whites if high <= white), None)
    if white is None or not low >= 0:
        raise ImageError(
            f"an image of 32 bits with values from {low:g} to {high:g}. Save it with 8 or 16 bits",
            "image of 32 bits whose range is not known",
        )
    scaled = values if white == 255 else values * np.float32(255 / white)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))

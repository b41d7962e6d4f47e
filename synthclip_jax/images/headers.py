"""What JPEG, PNG and WebP files say of themselves before they are decoded: their size, and whether they are whole.

Decoders take memory for the size that a header claims, and fill up with grey what is missing at the end. So both are
looked at first, in Python: some microseconds for a file.
"""

import re
import zlib
from typing import NamedTuple

from synthclip_jax.errors import UserError

# 8192 x 6144, what a camera of 50 megapixels writes: no kind of image takes 1 GiB to decode up to here.
MAX_PIXELS = 50_331_648

# What decodes, by the ends of file names; CLIP_benchmark's in its order of preference first.
IMAGE_EXTENSIONS = (
    *("webp", "png", "jpg", "jpeg", "jfif", "jpe", "bmp", "gif", "tif", "tiff", "avif"),
    *("jp2", "j2k", "jpf", "ppm", "pgm", "pbm", "pnm"),
)

MAX_SCANS = 100  # of a progressive JPEG: encoders write about ten, and each costs the time of the whole image
MAX_CHUNKS = 100_000  # of a PNG: a row in each is the most that encoders write

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SCAN_END = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]", re.DOTALL)  # a marker that is neither a zero nor a restart
_NO_FRAME = frozenset({0xC4, 0xC8, 0xCC})  # between SOF0 and SOF15, and not the start of a frame
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})


class ImageError(UserError, ValueError):
    """Bytes that are no image, a damaged one, or one that is larger than allowed.

    `cause` says which in a short phrase, for accounts of what is left out.
    """

    def __init__(self, text: str, cause: str = "image that is cut off or damaged"):
        super().__init__(text)
        self.cause = cause


class Jpeg(NamedTuple):
    """The header of a JPEG.

    Attributes:
      width, height: pixels.
      channels: 1 grey, 3 colour, 4 CMYK.
      segments: where the segments before the first scan lie, and the start of that scan.
      junk: there are bytes between them that belong to none.
    """

    width: int
    height: int
    channels: int
    segments: list[tuple[int, int]]
    scan: int
    junk: bool

    def without_junk(self, data: bytes) -> bytes:
        """The file with nothing between its segments."""
        return b"".join([b"\xff\xd8", *(data[start:end] for start, end in self.segments), data[self.scan :]])


def jpeg_header(data: bytes) -> Jpeg:
    """Reads a JPEG up to its first scan and, if there are several scans, all their headers.

    Raises:
      ImageError: it ends before its first scan, scans of a component or of its last bits are missing, or there are
        more scans than any encoder writes.
    """
    position, junk, frame, segments = 2, False, None, []
    try:
        while True:
            start = data.index(0xFF, position)
            junk = junk or start != position
            position = start + 1
            while (marker := data[position]) == 0xFF:
                position += 1
            if marker == 0xDA:
                break
            if marker == 0xD9:
                raise ImageError("the JPEG ends before its first scan")
            position += 1
            if marker == 0 or marker in _ALONE:
                junk = True
                continue
            end = position + max(data[position] << 8 | data[position + 1], 2)
            if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME and frame is None:
                frame = marker, data[position + 3 : position + 5], data[position + 5 : position + 7], position + 7
            segments.append((start, end))
            position = end
        if frame is None:
            raise ImageError("the JPEG has no frame before its first scan")
        kind, height, width, components = frame
        if kind in _PROGRESSIVE or data[position + 3] != data[components]:
            ids = [data[components + 1 + 3 * number] for number in range(data[components])]
            _check_scans(data, start, ids, kind in _PROGRESSIVE)
    except (ValueError, IndexError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError("the JPEG is cut off in its header") from None
    size = int.from_bytes(width, "big"), int.from_bytes(height, "big")
    return Jpeg(*size, data[components], segments, start, junk)


def _check_scans(data: bytes, position: int, components: list[int], progressive: bool) -> None:
    """That the scans hold every component, and of a progressive JPEG every bit of every coefficient."""
    missing = {component: [99] * 64 if progressive else [0] for component in components}  # bits still to come
    scans, began = 0, dict.fromkeys(components, False)
    while (found := _SCAN_END.search(data, position)) and data[found.end() - 1] != 0xD9:
        position = found.end()
        if data[position - 1] in _ALONE:
            continue
        length = data[position] << 8 | data[position + 1]
        if data[position - 1] == 0xDA:
            scans += 1
            if scans > MAX_SCANS:
                raise ImageError(f"the JPEG has more than {MAX_SCANS} scans; encoders write about ten")
            count = data[position + 2]
            first, last, bits = data[position + 3 + 2 * count : position + 6 + 2 * count]
            for component in data[position + 3 : position + 3 + 2 * count : 2]:
                if component not in missing:
                    continue
                began[component] = True
                if progressive:
                    missing[component][first : last + 1] = [bits & 15] * len(missing[component][first : last + 1])
        position += max(length, 2)
    if not all(began.values()) or any(any(bits) for bits in missing.values()):
        raise ImageError("the JPEG is cut off: some of its scans are missing")


class Png(NamedTuple):
    """The header of a PNG.

    Attributes:
      width, height: pixels.
      bits: of a channel.
      colour: the colour type: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGB and alpha.
      plain: there is no chunk but those of the pixels and of their size in print.
    """

    width: int
    height: int
    bits: int
    colour: int
    plain: bool


def png_header(data: bytes) -> Png:
    """Goes through the chunks of a PNG, and compares the checksums of those that pixels come from.

    Raises:
      ImageError: it is cut off, or a checksum does not agree.
    """
    position, kinds = len(PNG_SIGNATURE), set()
    view = memoryview(data)
    for _ in range(MAX_CHUNKS):
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        end = position + 8 + length
        if end + 4 > len(data):
            raise ImageError("the PNG is cut off")
        if not kinds and (kind != b"IHDR" or length != 13):
            raise ImageError("the PNG does not begin with its header")
        # Lower case is ancillary; of those only the transparency changes the pixels.
        counts = kind[:1].isupper() or kind in (b"tRNS", b"pHYs")
        if counts and zlib.crc32(view[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise ImageError(f"the PNG is damaged: the checksum of a chunk {kind!r} does not agree")
        kinds.add(kind)
        position = end + 4
        if kind == b"IEND":
            break
    else:
        raise ImageError(f"the PNG has more than {MAX_CHUNKS:,} chunks")
    if b"IDAT" not in kinds:
        raise ImageError("the PNG has no pixels")
    size = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    return Png(*size, data[24], data[25], kinds <= {b"IHDR", b"IDAT", b"IEND", b"pHYs"})


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of the canvas of a WebP.

    Raises:
      ImageError: it is cut off, or none.
    """
    if int.from_bytes(data[4:8], "little") + 8 > len(data) + (len(data) & 1) or len(data) < 30:
        raise ImageError("the WebP is cut off")
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":
        packed = int.from_bytes(body[1:5], "little")
        return 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    raise ImageError("the WebP begins with no image")

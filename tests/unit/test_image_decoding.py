"""One rule for what decodes: PIL's pixels for all ordinary images, and an error, cheaply, for all others."""

import io
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image
from toy_images import encode, jpeg_of, photo

from synthclip_jax.images.decoding import IMAGE_EXTENSIONS, ImageError, check_image, decode_image, open_image

GREY = np.asarray(photo(60, 44).convert("L"))
ORDINARY = [  # format, mode, how it is saved
    *[("JPEG", mode, {}) for mode in ("RGB", "L", "CMYK")],
    *[
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "CMYK", {"progressive": True}),
        ("JPEG", "RGB", {"subsampling": 0}),
    ],
    *[
        ("JPEG", "RGB", {"subsampling": 1}),
        ("JPEG", "RGB", {"restart_marker_rows": 1}),
        ("JPEG", "RGB", {"optimize": True}),
    ],
    *[("PNG", mode, {}) for mode in ("RGB", "L", "1", "P", "LA", "RGBA")],
    *[("PNG", "P", {"transparency": 3}), ("PNG", "RGB", {"transparency": (10, 20, 30)}), ("PNG", "P", {"bits": 4})],
    *[("WEBP", mode, {"lossless": lossless}) for mode in ("RGB", "RGBA") for lossless in (True, False)],
    *[("GIF", mode, {}) for mode in ("L", "P")],
    *[("BMP", mode, {}) for mode in ("RGB", "L", "P", "1", "RGBA")],
    *[("TIFF", mode, {"compression": kind}) for mode in ("RGB", "L", "RGBA", "CMYK") for kind in ("raw", "tiff_lzw")],
    *[("JPEG2000", mode, {}) for mode in ("RGB", "L", "LA", "RGBA")],
    *[("PPM", mode, {}) for mode in ("RGB", "L", "1")],
]


def by_pil(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize(("kind", "mode", "how"), ORDINARY)
def test_ordinary_images_have_pils_pixels_in_training_and_in_evaluation(kind, mode, how):
    image = photo(60, 44)
    image.putalpha(Image.fromarray(np.tile(np.arange(60, dtype=np.uint8) * 4, (44, 1))))
    if mode != "RGBA":
        image = image.convert("RGB") if mode not in ("LA", "P") else image
        image = image.convert(mode)
    data = encode(image, kind, **how)
    np.testing.assert_array_equal(decode_image(data), by_pil(data))
    np.testing.assert_array_equal(np.asarray(open_image(data).convert("RGB")), by_pil(data))
    assert check_image(data) == (60, 44)


def test_avif_has_pils_pixels_where_pil_reads_it():
    if "AVIF" not in Image.registered_extensions().values():
        pytest.skip("this PIL has no AVIF")
    data = encode(photo(60, 44), "AVIF")
    np.testing.assert_array_equal(decode_image(data), by_pil(data))


@pytest.mark.parametrize(
    "data",
    [
        encode(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"),
        encode(Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF"),
        encode(Image.fromarray(GREY.astype(np.uint16) * 257), "JPEG2000"),
        encode(Image.fromarray(GREY.astype(np.uint16) * 257), "PPM"),
        encode(Image.fromarray(GREY.astype(np.int32) * 257), "TIFF"),
        encode(Image.fromarray(GREY.astype(np.float32) / 255), "TIFF"),
        encode(Image.fromarray(GREY.astype(np.float32)), "TIFF"),
        encode(Image.fromarray(GREY.astype(np.float32) * 257), "TIFF"),
        cv2.imencode(".png", np.repeat(GREY[..., None].astype(np.uint16) * 257, 3, axis=2))[1].tobytes(),
        cv2.imencode(".tiff", np.repeat(GREY[..., None].astype(np.uint16) * 257, 3, axis=2))[1].tobytes(),
    ],
    ids=["png", "tiff", "jp2", "pgm", "int32", "unit-float", "255-float", "65535-float", "png-colour", "tiff-colour"],
)
def test_more_than_8_bits_are_scaled_to_8_and_not_clipped_to_white(data):
    for pixels in (decode_image(data), np.asarray(open_image(data).convert("RGB"))):
        np.testing.assert_array_equal(pixels, np.repeat(GREY[..., None], 3, axis=2))
    check_image(data)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 1e6])
def test_floats_without_a_white_are_refused(value):
    pixels = GREY.astype(np.float32)
    pixels[3, 4] = value
    refused(encode(Image.fromarray(pixels), "TIFF"), "32 bits")


def refused(data, reason=None):
    for decode in (decode_image, check_image, open_image):
        with pytest.raises(ImageError, match=reason):
            decode(data)


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8", b"\xff\xd8\xff\xe0 half", b"%!PS-Adobe-3.0 EPSF-3.0"])
def test_bytes_that_are_no_image_are_refused(data):
    refused(data)


JPEGS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_rows": 1},
    "exif thumbnail": {"exif": b"Exif\0\0" + encode(photo(16, 16), "JPEG")},
    "two comments": {"comment": b"\xff\xd9" * 40},
}


@pytest.mark.parametrize("how", JPEGS.values(), ids=JPEGS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_ends_behind_its_scan_wherever_an_end_marker_lies(mode, how):
    whole = encode(photo(160, 120).convert(mode), "JPEG", **how)
    for trailer in (b"", b"\0" * 100_000, b"trailer" * 1000, whole, b"\xff\xd9" * 9):
        np.testing.assert_array_equal(decode_image(whole + trailer), by_pil(whole))
        assert check_image(whole + trailer) == (160, 120)
    start = whole.index(b"\xff\xda", len(how.get("exif", b"")))
    for share in (0.0, 0.3, 0.6, 0.9):
        half = whole[: start + 14 + int((len(whole) - start - 14) * share)]
        for end in (b"", b"\xff\xd9", b"\0" * 100, b"\xff\xd9" + b"trailer" * 100, whole, b"\xff\xd9" + whole):
            refused(half + end)


def test_junk_between_the_segments_of_a_jpeg_hides_no_cut():
    whole = encode(photo(160, 120), "JPEG")
    junk = whole[:20] + b"\0\0\0" + whole[20:]
    np.testing.assert_array_equal(decode_image(junk), by_pil(whole))
    refused(junk[:-900] + b"\xff\xd9", "cut off")


def test_a_progressive_jpeg_that_ends_between_two_scans_is_cut_off():
    whole = encode(photo(160, 120), "JPEG", progressive=True)
    scans = [at for at in range(len(whole)) if whole[at : at + 2] == b"\xff\xda"]
    assert len(scans) > 5
    for at in scans[1:]:
        refused(whole[:at] + b"\xff\xd9", "scans are missing")


def test_all_images_of_a_multi_image_file_but_the_first_may_be_missing():
    buffer = io.BytesIO()
    photo(60, 44).save(buffer, "MPO", save_all=True, append_images=[photo(60, 44, seed=1)])
    whole = buffer.getvalue()
    np.testing.assert_array_equal(decode_image(whole), by_pil(whole))
    np.testing.assert_array_equal(decode_image(whole[:-200]), by_pil(whole))
    refused(whole[: len(whole) // 4] + b"\xff\xd9")


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "WEBP", "BMP", "JPEG2000", "AVIF"])
def test_other_images_that_are_cut_off_are_refused(kind):
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this PIL has no {kind}")
    whole = encode(photo(160, 120), kind)
    for share in (0.3, 0.6, 0.9, 0.97):
        refused(whole[: int(len(whole) * share)])


def test_a_flipped_bit_in_the_pixels_of_a_png_is_found():
    whole = bytearray(encode(photo(60, 44), "PNG"))
    whole[len(whole) // 2] ^= 4
    refused(bytes(whole), "checksum")


def test_the_first_of_several_frames_is_taken_and_no_image_is_turned():
    frames = [photo(60, 44), photo(60, 44, seed=1)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        buffer = io.BytesIO()
        frames[0].save(
            buffer, kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
        )
        np.testing.assert_array_equal(decode_image(buffer.getvalue()), by_pil(buffer.getvalue()))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encode(frames[0], "JPEG", exif=exif)).shape == (44, 60, 3)


def test_every_listed_extension_is_of_a_kind_that_decodes():
    Image.init()
    kinds = {Image.EXTENSION[f".{extension}"] for extension in IMAGE_EXTENSIONS if f".{extension}" in Image.EXTENSION}
    assert kinds <= {"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"}
    for kind in kinds & {*Image.SAVE}:
        assert decode_image(encode(photo(20, 20), kind)).shape == (20, 20, 3)


def test_a_larger_image_than_allowed_is_refused_with_its_size_and_the_key():
    data = encode(photo(60, 44), "JPEG")
    assert decode_image(data, max_pixels=60 * 44).shape == (44, 60, 3)
    for decode in (decode_image, check_image, open_image):
        with pytest.raises(ImageError, match=r"60 x 44 pixels, at most 2,639 .* config.data.max_pixels"):
            decode(data, max_pixels=60 * 44 - 1)


# --- bombs ------------------------------------------------------------------------------------------------------------


def chunk(kind, body, length=None):
    size = len(body) if length is None else length
    return struct.pack(">I", size) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, *chunks, bits=8, colour=2):
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def many_scans():
    data = encode(photo(16, 16), "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * 5000 + b"\xff\xd9"


def webp_of(width, height):
    canvas = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + canvas + encode(photo(16, 16), "WEBP")[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff_of(**tags):
    data = bytearray(encode(photo(16, 16), "TIFF"))
    count = struct.unpack_from("<H", data, struct.unpack_from("<I", data, 4)[0])[0]
    for entry in range(count):
        at = struct.unpack_from("<I", data, 4)[0] + 2 + 12 * entry
        name = {256: "width", 257: "height", 278: "rows", 273: "offset", 279: "bytes"}.get(
            *struct.unpack_from("<H", data, at)
        )
        if name in tags:
            struct.pack_into("<HII", data, at + 2, 4, 1, tags[name])
    return bytes(data)


def text_bomb(kind):
    body = zlib.compress(bytes(100_000_000), 1)
    return png(16, 16, chunk(kind, b"a\0\0" + body), chunk(b"IDAT", zlib.compress(bytes(49 * 16))))


BOMBS = {
    "jpeg": lambda: jpeg_of(65500, 65500),
    "progressive jpeg": lambda: jpeg_of(65500, 65500, progressive=True),
    "allowed jpeg": lambda: jpeg_of(8192, 6144),
    "allowed progressive jpeg": lambda: jpeg_of(8192, 6144, progressive=True),
    "jpeg of many scans": many_scans,
    "png": lambda: png(40_000, 40_000, chunk(b"IDAT", zlib.compress(bytes(10**6)))),
    "png of pixels": lambda: png(8000, 8000, chunk(b"IDAT", zlib.compress(bytes(8000 * 24_001), 1))),
    "png with a chunk of 4 GiB": lambda: png(16, 16, chunk(b"IDAT", b"x" * 900, 2**32 - 1)),
    "png with a text": lambda: text_bomb(b"zTXt"),
    "png with a profile": lambda: text_bomb(b"iCCP"),
    "png of chunks": lambda: png(16, 16, *[chunk(b"tEXt", b"")] * 200_000),
    "webp": lambda: webp_of(16384, 16384),
    "gif": lambda: (
        encode(photo(16, 16), "GIF")[:6] + struct.pack("<HH", 65535, 65535) + encode(photo(16, 16), "GIF")[10:]
    ),
    "bmp": lambda: (
        encode(photo(16, 16), "BMP")[:18] + struct.pack("<ii", 50_000, 50_000) + encode(photo(16, 16), "BMP")[26:]
    ),
    "tiff": lambda: tiff_of(width=60_000, height=60_000),
    "tiff of rows": lambda: tiff_of(width=7000, height=7000, rows=2**31, bytes=2**31 - 1),
    "ppm in letters": lambda: b"P3 8000 6000 255\n" + b"1 " * 100_000,
    "pgm of an odd depth": lambda: b"P5 7000 7000 200\n" + bytes(49_000_000),
}

TRY = """
import pathlib, re, sys, time
from synthclip_jax.images.decoding import ImageError, check_image, decode_image, open_image
for name in sys.argv[1:]:
    data, verdicts, started = pathlib.Path(name).read_bytes(), [], time.process_time()
    for decode in (decode_image, check_image, open_image):
        try:
            decode(data)
            verdicts.append("decoded")
        except ImageError:
            verdicts.append("refused")
    # Not ru_maxrss, which begins with that of the process that started this one.
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) // 1024
    print(pathlib.Path(name).name, *verdicts, peak, int(time.process_time() - started), sep="/")
"""


def test_bombs_are_refused_in_little_memory_and_time(tmp_path):
    paths = [tmp_path / name for name in BOMBS]
    for path in paths:
        path.write_bytes(BOMBS[path.name]())
    result = subprocess.run([sys.executable, "-c", TRY, *paths], capture_output=True, check=True, text=True)
    lines = [line.split("/") for line in result.stdout.splitlines()]
    assert [line[0] for line in lines] == list(BOMBS)
    for name, *verdicts, mebibytes, seconds in lines:
        assert verdicts == ["refused"] * 3, name
        assert int(mebibytes) < 1024, name  # the peak up to here, the interpreter and its libraries included
        assert int(seconds) < 10, name

"""Where images lie inside files of other formats: found once, and kept, so that each is read by itself ever after.

Of each row of a file the index holds offset, length and crc32c of its image. Where the images lie in the file as they
are, offsets are those of the file. Where they do not, since the file is compressed or has a dictionary, they are
written one behind the other to a copy in the cache (`copies`), as `datasets` does with all that it loads.
"""

import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from jaxtyping import Int64

from synthclip_jax.data.readers import copies
from synthclip_jax.data.readers.offsets import cached_offsets
from synthclip_jax.data.records import RecordError

MAX_IMAGE = 2**28  # bytes
# What stands in the place of an offset where a row has no image, and what it means.
NO_IMAGE, ONLY_PATH, EMPTY, TOO_LARGE = -1, -2, -3, -4
CAUSES = {
    NO_IMAGE: "no image",
    ONLY_PATH: "the path of an image without its bytes",
    EMPTY: "image of 0 bytes",
    TOO_LARGE: f"image of over {MAX_IMAGE >> 20} MiB",
}


class Found(NamedTuple):
    """The image of one row: its bytes, and where they lie in the file; negative: not in one piece, or a code above."""

    data: bytes | memoryview
    at: int


class ImageIndex(NamedTuple):
    """Where the images of a file lie.

    Attributes:
      file: in which.
      table: offset (or a code), length, crc32c of each row.
    """

    file: pathlib.Path
    table: Int64[np.ndarray, "rows 3"]


Images = Callable[[bool], Iterator[Found | int]]  # of all rows; a code where there is none; True: say where they lie


def image_index(path: pathlib.Path, column: str, rows: int, images: Images, fresh: bool = False) -> ImageIndex:
    """The index of a file, from the one that is kept of it or by going through the file.

    Args:
      path: the file, on this machine.
      column: that holds the images; tells the index from those of others.
      rows: of the file.
      images: goes through it.
      fresh: do so whatever is kept.
    """
    kept = cached_offsets(path, lambda _: _build(path, column, images), fresh)
    try:
        return _parse(kept, path, column, rows)
    except (ValueError, TypeError, KeyError, OSError):
        if fresh:
            raise
        return image_index(path, column, rows, images, fresh=True)  # of another column, or its copy is gone


def _build(path: pathlib.Path, column: str, images: Images) -> bytes:
    table = _located(_readable(path, images(True)))
    if table is None:
        made: list[np.ndarray] = []
        copies.check_room([path], _copy_name(column))

        def fill(file: Any) -> None:
            made.append(_packed(_readable(path, images(False)), file))

        copies.kept_copy(path, _copy_name(column), fill, fresh=True)
        table = made[0]
        header = {"column": column, "copied": True}
    else:
        header = {"column": column, "copied": False}
    return json.dumps(header).encode() + b"\n" + table.astype("<i8").tobytes()


def _readable(path: pathlib.Path, images: Iterator[Found | int]) -> Iterator[Found | int]:
    """The images; what reading them raises is the file's fault, and not that of the place where a copy is written."""
    try:
        yield from images
    except RecordError:
        raise
    except Exception as error:  # pyarrow raises whatever its C++ part says
        reason = " ".join(str(error).split())[:300]
        raise RecordError(f"{path}: cannot be read ({reason}). Copy it again") from None


def _copy_name(column: str) -> str:
    return f"images of {column}"


def _located(images: Iterable[Found | int]) -> np.ndarray | None:
    """The table of images that all lie in the file in one piece; None if one does not."""
    rows = []
    for image in images:
        if isinstance(image, int):
            rows.append((image, 0, 0))
        elif code := _code(image.data):
            rows.append((code, 0, 0))
        elif image.at < 0:
            return None
        else:
            rows.append((image.at, len(image.data), google_crc32c.value(bytes(image.data))))
    return np.array(rows, np.int64).reshape(-1, 3)


def _packed(images: Iterable[Found | int], file: Any) -> np.ndarray:
    """Writes all images one behind the other."""
    rows, at = [], 0
    for image in images:
        code = image if isinstance(image, int) else _code(image.data)
        if isinstance(image, int) or code:
            rows.append((code, 0, 0))
            continue
        file.write(image.data)
        rows.append((at, len(image.data), google_crc32c.value(bytes(image.data))))
        at += len(image.data)
    return np.array(rows, np.int64).reshape(-1, 3)


def _code(data: bytes | memoryview) -> int:
    return EMPTY if not len(data) else TOO_LARGE if len(data) > MAX_IMAGE else 0


def _parse(kept: bytes, path: pathlib.Path, column: str, rows: int) -> ImageIndex:
    """The index that is kept.

    Raises:
      ValueError, KeyError, TypeError, OSError: it is of something else.
    """
    head, _, body = kept.partition(b"\n")
    header = json.loads(head)
    table = np.frombuffer(body, "<i8").reshape(-1, 3)
    if header["column"] != column or len(table) != rows:
        raise ValueError
    file = copies.kept_copy(path, _copy_name(column), _refuse) if header["copied"] else path
    if len(table) and (table[:, 0] + table[:, 1]).max() > os.path.getsize(file):
        raise ValueError
    return ImageIndex(file, table)


def _refuse(file: Any) -> None:
    raise ValueError("the copy is gone")

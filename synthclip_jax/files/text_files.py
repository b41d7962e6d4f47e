"""Text files that users bring: one rule for their encoding and their lines.

UTF-8, with or without a byte order mark. Lines end at a line feed, with or without a carriage return before it, and
nowhere else: as wc, sed and pandas count them, and not at U+2028 or a form feed as `str.splitlines` does.
"""

import codecs
import os
import stat

from synthclip_jax.errors import UserError
from synthclip_jax.files.locations import Location, is_url, location

LIMIT = 2**30  # bytes: more is no list of names, captions or prompts
_MARKS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
_ZIP = b"PK\x03\x04"


class TextFileError(UserError, ValueError):
    """A file that is no text in UTF-8; the text says what it looks like and what to do."""


def read_bytes(path: str | os.PathLike | Location, limit: int = LIMIT) -> bytes:
    """The bytes of a regular file.

    Raises:
      TextFileError: it is a folder, a device or a pipe, or larger than `limit` bytes.
      FileNotFoundError, OSError: it is not there, or cannot be read.
    """
    file = location(path)
    if not is_url(file):
        found = os.stat(file)
        if not stat.S_ISREG(found.st_mode):
            raise TextFileError(f"{path}: not a regular file. Name a file")
        if found.st_size > limit:
            raise TextFileError(f"{path}: {found.st_size:,} bytes, at most {limit:,} are read. Is it the right file?")
    return file.read_bytes()


def read_text(path: str | os.PathLike | Location, limit: int = LIMIT) -> str:
    """The text of a file, without a byte order mark.

    Raises:
      TextFileError: it is not UTF-8, holds a NUL, or is none that `read_bytes` takes.
    """
    return decode(read_bytes(path, limit), path)


def decode(data: bytes, name: object, first_line: int = 1) -> str:
    """The text of bytes in UTF-8, without a byte order mark.

    Args:
      name: what an error calls them.
      first_line: the number that an error gives their first line.

    Raises:
      TextFileError: they are not UTF-8, or hold a NUL.
    """
    if data[:2] in _MARKS:
        raise TextFileError(f"{name}: {_MARKS[data[:2]]}, not UTF-8. Save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
    if data.startswith(_ZIP):
        raise TextFileError(f"{name}: a ZIP file, such as a spreadsheet (.xlsx), and no text. Save it as text in UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + first_line
        raise TextFileError(
            f"{name}: line {line}: not UTF-8 (byte 0x{data[error.start]:02x}). If it is Latin-1 or Windows-1252, save"
            " it as UTF-8 (iconv -f WINDOWS-1252 -t UTF-8)"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + first_line
        raise TextFileError(f"{name}: line {line}: a NUL, so it is no text in UTF-8. Save it as UTF-8")
    return text


def split_lines(text: str) -> list[str]:
    """The lines of a text without their ends; the last one need not end."""
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_lines(path: str | os.PathLike | Location, limit: int = LIMIT) -> list[str]:
    """The lines of a text file. Raises as `read_text`."""
    return split_lines(read_text(path, limit))

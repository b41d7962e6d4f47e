"""Arrays in `.npz` files: one checked way to write and to read them.

Reading believes nothing that a file says of itself: sizes are compared with what is there before memory is taken, every
array is held against its checksum and against the type and shape that its reader needs, and nothing is unpickled.
Needs no JAX.
"""

import math
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from synthclip_jax.errors import UserError
from synthclip_jax.files.storage import write_stream

# Kinds of NumPy's types that an array may have, and its number of dimensions: ("iu", 1) is a list of integers.
Form = tuple[str, int]
# What may come out of a compressed file: keys of images, whose letters take four bytes each, shrink to a hundredth.
SLACK, RATIO = 2**28, 100
MEMBERS = 1000
# What NumPy writes ahead of an array, and nothing else: to read it takes no evaluation of Python.
_SIDE = rb" *(?:0|[1-9]\d{0,20}) *"  # Python reads neither `1 2` nor `03`
_HEADER = re.compile(
    rb"\{'descr': '([<|][biufcmMSUV]\d+)', 'fortran_order': (True|False), "
    rb"'shape': \(( *|(?:" + _SIDE + rb",){1,32}(?:" + _SIDE + rb")?)\), \} *\n"
)


class ArrayError(UserError, ValueError):
    """A file of arrays that is damaged or is none; the text names it and says what to do."""


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], compressed: bool = False) -> dict[str, Any]:
    """Writes arrays, whole or not at all.

    Returns:
      The file's size and digest: `bytes`, `sha256`.

    Raises:
      StoreError: it cannot be written.
    """

    def fill(file: Any) -> None:
        kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
        with zipfile.ZipFile(file, "w", kind, allowZip64=True) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)

    return write_stream(path, fill)


def read(
    path: str | os.PathLike,
    wanted: Mapping[str, Form],
    remedy: str,
    error: type[UserError] = ArrayError,
    optional: Mapping[str, Form] = {},
) -> dict[str, np.ndarray]:
    """Reads arrays of a file.

    Args:
      wanted: their names, and what each has to be; others are not read.
      remedy: a sentence that says what to do where the file is damaged.
      error: the class to raise.
      optional: further ones, which may be missing.

    Raises:
      ArrayError (or `error`): it is damaged, no such file, or an array is missing or of another form.
      FileNotFoundError, OSError: it is not there, or cannot be opened.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise error(f"{path}: not a regular file. {remedy}")
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                there = {entry.filename for entry in archive.infolist()} if optional else set()
                wanted = {**wanted, **{name: form for name, form in optional.items() if f"{name}.npy" in there}}
                members = _members(archive, wanted, found.st_size)
                return {name: _array(archive, members[f"{name}.npy"], *wanted[name]) for name in wanted}
        # What zipfile raises for damage of one kind or another: RuntimeError for what claims to be encrypted.
        except (
            zipfile.BadZipFile,
            zlib.error,
            struct.error,
            ValueError,
            RuntimeError,
            EOFError,
            OSError,
            OverflowError,
            TypeError,
        ) as problem:
            what = str(problem) or type(problem).__name__
            raise error(f"{path}: damaged ({what}). {remedy}") from None


def _members(archive: zipfile.ZipFile, wanted: Mapping[str, Form], size: int) -> dict[str, zipfile.ZipInfo]:
    """The members to read, by name, none of which claims more than can be."""
    entries = archive.infolist()
    members = {entry.filename: entry for entry in entries}
    if len(members) != len(entries) or len(entries) > MEMBERS:
        raise ValueError("an array is there twice" if len(entries) <= MEMBERS else f"more than {MEMBERS} arrays")
    if missing := [name for name in wanted if f"{name}.npy" not in members]:
        raise ValueError(f"it has no {', '.join(missing)}")
    claimed = sum(members[f"{name}.npy"].file_size for name in wanted)
    if claimed > SLACK + RATIO * size:
        raise ValueError(f"{size:,} bytes that claim to hold {claimed:,}")
    return members


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, kinds: str, dimensions: int) -> np.ndarray:
    name = member.filename.removesuffix(".npy")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed in a way that NumPy does not write")
    with archive.open(member) as stream:
        # Not read(): that takes as much memory as the data unpack to, whatever the member's size says.
        data = stream.read(member.file_size)
        if len(data) != member.file_size or stream.read(1):
            raise ValueError(f"{name} is cut off")
    return parse(data, name, kinds, dimensions)


def parse(data: bytes, name: str, kinds: str, dimensions: int) -> np.ndarray:
    """The array of a `.npy` file's bytes; it shares their memory and cannot be written to.

    Raises:
      ValueError: they are none, or of another form.
    """
    start = {b"\x93NUMPY\x01\x00": 10, b"\x93NUMPY\x02\x00": 12}.get(data[:8], 0)
    if not start or len(data) < start:
        raise ValueError(f"{name} is no array")
    end = start + int.from_bytes(data[8:start], "little")
    match = _HEADER.fullmatch(data[start:end])
    if not match:
        raise ValueError(f"{name} has no header of an array of plain values")
    dtype = np.dtype(match[1].decode())
    shape = tuple(int(part) for part in match[3].split(b",") if part.strip())
    if dtype.kind not in kinds or len(shape) != dimensions:
        raise ValueError(f"{name} has type {dtype} and {len(shape)} dimensions")
    count = math.prod(shape)
    if count * dtype.itemsize != len(data) - end or (count and not dtype.itemsize):
        raise ValueError(f"{name} of shape {shape} and type {dtype} needs other than its {len(data) - end:,} bytes")
    if not count:
        return np.zeros(shape, dtype)
    if dtype.kind == "U":
        letters = np.frombuffer(data, np.uint32, offset=end)
        if letters.max() > 0x10FFFF:
            raise ValueError(f"{name} holds what is no text")
    array = np.frombuffer(data, dtype, offset=end)
    return array.reshape(shape, order="F" if match[2] == b"True" else "C")

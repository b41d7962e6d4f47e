"""What lies in a tar and where: found by hopping from header to header, nothing believed that can be proved.

v7, ustar, GNU and pax headers; long names, links and sparse files of each. Sizes are checked against the file before
anything is read, and what follows the end mark has to be padding.
"""

import os
import re
import stat
from collections.abc import Mapping
from typing import NamedTuple

from synthclip_jax.data.records import RecordError
from synthclip_jax.left_out import printable

BLOCK = 512  # bytes; headers and data start at multiples of it
RECORD = 20 * BLOCK  # what tar pads archives to
# Bytes from the first zero block to the end: two zero blocks, and padding to a multiple of a record.
MAX_END = RECORD + 2 * BLOCK
MAX_META = 2**20  # bytes of a long name or of a pax header
_SEARCHED = 256 * 2**20  # bytes after the end mark in which data are looked for, to say what is wrong

REMEDY = "The archive is damaged or cut off: copy it again."

# Kinds of members. A sparse file lies in the archive in pieces.
FILE, HARD_LINK, SYMBOLIC_LINK, SPARSE, SPECIAL = "file", "hard link", "symbolic link", "sparse file", "special file"

_KINDS = {b"0": FILE, b"\0": FILE, b"7": FILE, b"1": HARD_LINK, b"2": SYMBOLIC_LINK, b"S": SPARSE}
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders and pipes, whatever their header says
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZ": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"PK\x03\x04": ("zip", "unzip, then tar --create"),
}


class Member(NamedTuple):
    """Something in a tar: where the bytes of a file lie, its name, and what a link leads to."""

    offset: int
    length: int
    name: str
    kind: str = FILE
    target: str = ""


class _Header(NamedTuple):
    """What a block of 512 bytes says."""

    kind: bytes
    length: int
    name: bytes
    target: bytes


def scan_tar(path: str | os.PathLike) -> list[Member]:
    """Everything in a tar but folders, in its order.

    Raises:
      RecordError: a header is damaged, the archive ends before its end mark, or more than padding follows that.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise RecordError(f"{path}: not a regular file. Name a tar")
    with open(path, "rb", buffering=0) as file:
        return _Scan(path, file.fileno(), found.st_size).members()


class _Scan:
    """One way through a tar."""

    def __init__(self, path: str | os.PathLike, file: int, size: int):
        self.path, self.file, self.size = path, file, size
        self.found: list[Member] = []

    def members(self) -> list[Member]:
        offset = 0
        extended: dict[bytes, bytes] = {}  # of the member that comes next: path, linkpath, size, GNU.sparse.*
        announced = False  # whether a header said something of a member to come
        everywhere: dict[bytes, bytes] = {}  # of all members from here on
        while True:
            block = os.pread(self.file, BLOCK, offset)
            if len(block) < BLOCK:
                raise self._error(offset, f"the archive ends without its end mark. {REMEDY}")
            if not any(block):
                if announced:
                    raise self._error(offset, f"the end mark, after a header that names a file to come. {REMEDY}")
                self._check_end(offset)
                return self.found
            header = self._parse(block, offset)
            kind, length, data = header.kind, header.length, offset + BLOCK
            if kind in b"LKxXg":
                fields = self._meta(kind, offset, length)
                if kind == b"g":
                    everywhere |= fields
                else:
                    extended = fields | extended  # of two for one member the first one wins, as in tarfile
                    announced = True
                offset = data + _padded(length)
                continue
            fields = everywhere | extended
            extended, announced = {}, False
            if kind in _WITHOUT_DATA:
                length = 0
            elif b"size" in fields:
                length = self._pax_number(fields[b"size"], offset)
            if kind == b"S":
                data = self._after_sparse_map(block, data)
            if data + length > self.size:
                left = self.size - data
                raise self._error(offset, f"a file needs {length} bytes, the archive has {left} left. {REMEDY}")
            self._add(header, fields, data, length)
            offset = data + _padded(length)

    def _add(self, header: _Header, fields: Mapping[bytes, bytes], data: int, length: int) -> None:
        name = fields.get(b"GNU.sparse.name") or fields.get(b"path") or header.name
        if header.kind == b"5" or (header.kind == b"\0" and header.name.endswith(b"/")):
            return  # a folder
        kind = _KINDS.get(header.kind, SPECIAL)
        if any(key.startswith(b"GNU.sparse.") for key in fields):
            kind = SPARSE
        target = fields.get(b"linkpath") or header.target if kind in (HARD_LINK, SYMBOLIC_LINK) else b""
        self.found.append(Member(data, length, _text(name), kind, _text(target)))

    def _parse(self, block: bytes, offset: int) -> _Header:
        """A header. Raises RecordError if it is none."""
        if offset == 0:
            for magic, (packer, tool) in _COMPRESSED.items():
                if block.startswith(magic):
                    raise RecordError(
                        f"{self.path}: compressed by {packer}. Examples are read in any order, which needs a plain tar:"
                        f" unpack it ({tool})"
                    )
        try:
            length, stated = _number(block[124:136]), _number(block[148:156])
        except ValueError:
            raise self._error(offset, f"no tar header. {REMEDY}") from None
        others = block[:148] + b" " * 8 + block[156:]
        # Some old writers summed signed bytes.
        if stated != sum(others) and stated != sum(byte - 256 if byte > 127 else byte for byte in others):
            raise self._error(offset, f"the checksum of a header is wrong. {REMEDY}")
        name, prefix = _until_nul(block[:100]), _until_nul(block[345:500])
        if prefix and block[257:263] == b"ustar\0":
            name = prefix + b"/" + name
        kind = block[156:157]
        if kind == b"\0" and name.endswith(b"/"):
            length = 0  # how v7 writes a folder
        return _Header(kind, length, name, _until_nul(block[157:257]))

    def _meta(self, kind: bytes, offset: int, length: int) -> dict[bytes, bytes]:
        """The fields of a header that says something about another member."""
        if length > MAX_META or offset + BLOCK + length > self.size:
            raise self._error(offset, f"a name of {length} bytes. {REMEDY}")
        content = os.pread(self.file, length, offset + BLOCK)
        if kind in (b"L", b"K"):
            return {b"path" if kind == b"L" else b"linkpath": _until_nul(content)}
        try:
            return _pax_fields(content)
        except ValueError:
            raise self._error(offset, f"a pax header that cannot be read. {REMEDY}") from None

    def _pax_number(self, text: bytes, offset: int) -> int:
        if not re.fullmatch(rb"[0-9]{1,19}", text):
            raise self._error(offset, f"a pax header with the size {text[:20]!r}. {REMEDY}")
        return int(text)

    def _after_sparse_map(self, block: bytes, data: int) -> int:
        """Where the data of an old GNU sparse file begin: its map may go on in further blocks."""
        more = block[482]
        while more:
            block = os.pread(self.file, BLOCK, data)
            if len(block) < BLOCK:
                raise self._error(data, f"the archive ends inside a sparse file's map. {REMEDY}")
            more, data = block[504], data + BLOCK
        return data

    def _check_end(self, offset: int) -> None:
        """Proves that nothing but padding follows the end mark at `offset`."""
        place, chunk = offset, b""
        while place < min(self.size, offset + _SEARCHED):
            chunk = os.pread(self.file, 2**20, place)
            if not chunk:
                break
            if any(chunk):
                place += next(index for index, byte in enumerate(chunk) if byte)
                raise self._error(
                    offset,
                    f"a block of zeros, which ends an archive, but data follow at byte {place} of {self.size:,}. A"
                    " block was lost, or several tars were put behind each other: copy it again, or unpack it"
                    " (tar --ignore-zeros) and write one tar",
                )
            place += len(chunk)
        if self.size - offset > MAX_END:
            raise self._error(
                offset,
                f"the end mark, but {self.size - offset:,} bytes of zeros follow up to byte {self.size}, where"
                f" padding takes at most {MAX_END:,}. It was not written or copied to its end: copy it again",
            )

    def _error(self, offset: int, text: str) -> RecordError:
        last = f" (the last one is {printable(self.found[-1].name)})" if self.found else ""
        return RecordError(f"{self.path}: byte {offset}, after {len(self.found)} files{last}: {text}")


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def _number(field: bytes) -> int:
    """A number in a header: octal digits, or binary where the first byte says so (GNU, for large files).

    Raises:
      ValueError: it is neither, or negative.
    """
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    if not re.fullmatch(rb"[0-7]*", digits := _until_nul(field).strip()):
        raise ValueError(field)
    return int(digits or b"0", 8)


def _pax_fields(data: bytes) -> dict[bytes, bytes]:
    """The `length key=value` lines of a pax header.

    Raises:
      ValueError: they are none.
    """
    fields = {}
    place = 0
    while place < len(data) and data[place]:
        digits = re.match(rb"[0-9]{1,9} ", data[place : place + 10])
        if not digits:
            raise ValueError
        end = place + int(digits[0])
        key, equals, value = data[place + digits.end() : end].partition(b"=")
        if end > len(data) or not equals or not key or not value.endswith(b"\n"):
            raise ValueError
        fields[key], place = value[:-1], end
    return fields


def _until_nul(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _text(name: bytes) -> str:
    return name.decode("utf-8", errors="surrogateescape")

"""Webdataset tars: members KEY.jpg|png|webp beside KEY.txt or KEY.json, those of one example following each other."""

import bisect
import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from synthclip_jax.readers import Sample, Shard, keys_of, missing_key, open_files
from synthclip_jax.readers.examples import numbers_left_out
from synthclip_jax.readers.offsets import cached_offsets
from synthclip_jax.records import RandomAccessFile, RecordError
from synthclip_jax.sources import SourceSpec

BLOCK = 512  # bytes; headers and data start at multiples of it
_REMEDY = "The archive is damaged or cut off: copy it again."
# Webdataset's rule: the extension starts at the first dot of the file's name.
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)


class Member(NamedTuple):
    """A file in a tar: where its bytes lie, and its name."""

    offset: int
    length: int
    name: str


class TarReader:
    """Pictures and captions of all tars, in the order of their names."""

    def __init__(self, spec: SourceSpec, on_error: str = "raise"):
        """Reads the offsets of all members: by hopping from header to header the first time, later from their index.

        Raises:
          RecordError: there is no tar, or (`on_error="raise"`) some are missing or cut off; all of them are named.
          MissingKey: no example has the picture or the caption that the keys name.
        """
        self.place = spec.place
        self._image_keys = keys_of(spec.image_key, "image", ("jpg", "jpeg", "png", "webp"))
        self._caption_keys = keys_of(spec.caption_key, "caption", ("txt", "json.caption"))
        paths, missing = find_tars(spec.place)
        self._tars, self.left_out = open_files(spec.place, paths, self._open_tar, missing, on_error)
        self._ends = list(itertools.accumulate(len(tar) for tar in self._tars))
        for column, keys in ((_IMAGE, self._image_keys), (_CAPTION, self._caption_keys)):
            # A key that no example has is a wrong key; one that some lack is their fault, and told when they are read.
            if all((tar.table[:, column] < 0).all() for tar in self._tars) and len(self):
                extensions = {extension for tar in self._tars for extension in tar.extensions}
                raise missing_key(spec.place, keys, extensions)

    def _open_tar(self, path: str | os.PathLike) -> "_Tar":
        return _Tar(path, self._image_keys, self._caption_keys)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Sample:
        """The sample. See `Reader`."""
        tar, sample = self._locate(index)
        image, caption, key = self._tars[tar].read(sample)
        if image is None or caption is None:
            wanted = self._image_keys if image is None else self._caption_keys
            raise RecordError(f"{self.where(index)}: no {' or '.join(wanted)}, or it is cut off. {_REMEDY}")
        _, _, field = self._caption_keys[key].partition(".")
        if not self._is_json(key):
            return Sample(image, (caption.decode("utf-8", errors="replace").strip(),))
        try:
            value = json.loads(caption)
        except ValueError as error:
            raise RecordError(f"{self.where(index)}: its json cannot be read ({error}). Write it again") from None
        for name in field.split("."):
            there = value if isinstance(value, dict) else {}
            if name not in there:
                raise missing_key(self.where(index), [self._caption_keys[key]], (f"json.{key}" for key in there))
            value = there[name]
        captions = tuple(value) if isinstance(value, list) else (value,)
        if not captions or not all(isinstance(text, str) for text in captions):
            raise RecordError(
                f"{self.where(index)}: json.{field} is neither a text nor a list of texts. Set another key"
            )
        return Sample(image, captions)

    def _is_json(self, key: int) -> bool:
        extension, _, field = self._caption_keys[key].partition(".")
        return extension == "json" and bool(field)

    def where(self, index: int) -> str:
        tar, sample = self._locate(index)
        return f"{self._tars[tar].path}: example {sample}"

    def shards(self) -> list[Shard]:
        starts = [0, *self._ends]
        return [
            Shard(tar.path, range(start, end)) for tar, start, end in zip(self._tars, starts, self._ends, strict=False)
        ]

    def digest(self) -> str:
        names = "".join(f"{pathlib.Path(t.path).name} {len(t)} {os.path.getsize(t.path)}\n" for t in self._tars)
        return hashlib.sha256(names.encode()).hexdigest()[:16]

    def _locate(self, index: int) -> tuple[int, int]:
        tar = bisect.bisect_right(self._ends, index)
        return tar, index - (self._ends[tar - 1] if tar else 0)


# Columns of a tar's table: offsets and lengths of an example's picture and caption (-1: it has none), and which of the
# caption keys it is.
_IMAGE, _IMAGE_LENGTH, _CAPTION, _CAPTION_LENGTH, _KEY = range(5)


class _Tar:
    """Where the examples of one tar lie."""

    def __init__(self, path: str | os.PathLike, image_keys: tuple[str, ...], caption_keys: tuple[str, ...]):
        self.path = os.fspath(path)
        self._file = RandomAccessFile(path)
        self.extensions: set[str] = set()
        rows = []
        for parts in _examples(tar_members(path)):
            self.extensions |= parts.keys()
            image = next((parts[key] for key in image_keys if key in parts), (-1, 0))
            caption = (-1, 0, 0)
            for number, key in enumerate(caption_keys):
                extension = "json" if key.startswith("json.") else key
                if extension in parts:
                    caption = (*parts[extension], number)
                    break
            if image[0] >= 0 or caption[0] >= 0:  # else a licence, a list of classes or the like
                rows.append((*image, *caption))
        self.table = np.array(rows, np.int64).reshape(-1, 5)

    def __len__(self) -> int:
        return len(self.table)

    def read(self, sample: int) -> tuple[bytes | None, bytes | None, int]:
        """Bytes of the picture and of the caption, None where it has none, and the number of the caption's key."""
        image, image_length, caption, caption_length, key = self.table[sample].tolist()
        return self._bytes(image, image_length), self._bytes(caption, caption_length), key

    def _bytes(self, offset: int, length: int) -> bytes | None:
        data = self._file.read(offset, length) if offset >= 0 else b""
        return data if offset >= 0 and len(data) == length else None


def _examples(members: list[Member]) -> Iterator[dict[str, tuple[int, int]]]:
    """(offset, length) of each example's members by their extension."""
    named = ((match, member) for member in members if (match := _NAME.fullmatch(member.name)))
    for _, group in itertools.groupby(named, lambda pair: pair[0][1]):
        yield {match[2].lower(): (member.offset, member.length) for match, member in group}


def find_tars(place: str) -> tuple[list[pathlib.Path], list[str]]:
    """The tars of a folder, of a pattern with `*` or `{00000..00099}`, or one tar; and a text for each missing one.

    Raises:
      RecordError: there is none.
    """
    path = pathlib.Path(place)
    if span := re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", place):
        numbers = range(int(span[2]), int(span[3]) + 1)
        paths = [pathlib.Path(f"{span[1]}{number:0{len(span[2])}d}{span[4]}") for number in numbers]
        expected, paths = paths, [path for path in paths if path.is_file()]
        missing = [path for path in expected if path not in set(paths)]
    else:
        paths = [path] if path.is_file() else sorted(path.glob("*.tar") if path.is_dir() else _glob(path))
        missing = numbers_left_out(paths) if path.is_dir() and paths else []
    if not paths:
        raise RecordError(f"wds:{place}: no tar there. Name a folder of tars, a tar, or a pattern {{00000..00099}}.tar")
    return paths, [f"{path}: the tar is missing. Download or copy it again." for path in missing]


def _glob(path: pathlib.Path) -> Iterator[pathlib.Path]:
    return path.parent.glob(path.name) if path.name else iter(())


def tar_members(path: str | os.PathLike) -> list[Member]:
    """The regular files in a tar, from the index kept of it or by `scan_tar`.

    Raises:
      RecordError: the archive is damaged or cut off.
    """
    lines = cached_offsets(path, _scan_to_lines).decode("utf-8", errors="surrogateescape").split("\n")
    return [
        Member(int(offset), int(length), name) for offset, length, name in (line.split(" ", 2) for line in lines[:-1])
    ]


def _scan_to_lines(path: str | os.PathLike) -> bytes:
    # A name that holds a line's end would break the lines, and no writer of webdatasets makes one.
    lines = (f"{offset} {length} {name}\n" for offset, length, name in scan_tar(path) if "\n" not in name)
    return "".join(lines).encode("utf-8", errors="surrogateescape")


def scan_tar(path: str | os.PathLike) -> list[Member]:
    """Finds the regular files in a tar by hopping from header to header (ustar, with GNU's and pax's long names).

    Raises:
      RecordError: a header is damaged, or the archive ends before its end mark.
    """
    size = os.path.getsize(path)
    members: list[Member] = []
    offset, renamed, resized = 0, None, None
    with open(path, "rb", buffering=0) as file:
        while True:
            header = os.pread(file.fileno(), BLOCK, offset)
            where = f"{path}: byte {offset}, after {len(members)} files"
            if len(header) < BLOCK:
                raise RecordError(f"{where}: the archive ends without its end mark. {_REMEDY}")
            if not any(header):
                return members
            try:
                length, stated = _number(header[124:136]), _number(header[148:156])
            except ValueError:
                raise RecordError(f"{where}: no tar header. {_REMEDY}") from None
            if stated != sum(header) - sum(header[148:156]) + 8 * ord(" "):
                raise RecordError(f"{where}: the checksum of a header is wrong. {_REMEDY}")
            kind, data = header[156:157], offset + BLOCK
            if kind in (b"0", b"\0", b"7"):
                length = length if resized is None else resized
            elif kind in (b"1", b"2", b"3", b"4", b"5", b"6"):
                length = 0  # links, devices and folders have no data, whatever their header says
            if data + length > size:
                raise RecordError(
                    f"{where}: a file needs {length} bytes, the archive has {size - data} left. {_REMEDY}"
                )
            if kind == b"L":
                renamed = os.pread(file.fileno(), length, data).rstrip(b"\0")
            elif kind == b"x":
                fields = _pax_fields(os.pread(file.fileno(), length, data))
                renamed, resized = fields.get(b"path", renamed), int(fields[b"size"]) if b"size" in fields else None
            elif kind != b"g":
                if kind in (b"0", b"\0", b"7"):
                    members.append(Member(data, length, _text(renamed or _short_name(header))))
                renamed = resized = None
            offset = data + -(-length // BLOCK) * BLOCK


def _number(field: bytes) -> int:
    """A number in a header: octal digits, or binary where the first bit says so (GNU, for large files)."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def _short_name(header: bytes) -> bytes:
    name, prefix = header[:100].split(b"\0", 1)[0], header[345:500].split(b"\0", 1)[0]
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name


def _pax_fields(data: bytes) -> dict[bytes, bytes]:
    """The `length key=value` lines of a pax header."""
    fields = {}
    while data.strip(b"\0"):
        length = int(data.split(b" ", 1)[0])
        key, _, value = data[:length].split(b" ", 1)[1].rstrip(b"\n").partition(b"=")
        fields[key], data = value, data[length:]
    return fields


def _text(name: bytes) -> str:
    return name.decode("utf-8", errors="surrogateescape")

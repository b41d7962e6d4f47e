"""Copies in the cache of what cannot be read in any order where it lies.

    $SYNTHCLIP_CACHE/copies/PLACE-STATE-NAME

A tar in an object store is copied, a compressed one unpacked, once; training then reads the copy, in any order and as
quickly as any file. A copy is named by what it was made from (place, size, time of the last change or the store's own
tag, head and tail), so that another file of that name gets another copy, in whose favour the old one goes. Each is
whole or absent, and of several processes of a machine one makes it. They may be deleted at any time.
"""

import bz2
import functools
import gzip
import hashlib
import lzma
import os
import pathlib
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from synthclip_jax.data.readers.offsets import THREADS, ends_digest
from synthclip_jax.data.records import RecordError
from synthclip_jax.files.locations import Location, cache_folder, is_url, location, size_of
from synthclip_jax.files.storage import explained, locked, stamp, write_stream

CHUNK = 2**22  # bytes that are copied at a time
# Bytes that a compressed file may unpack to, for each of its own; more than the second number in all. Images hardly
# shrink, and captions by a factor of ten.
MAX_RATIO, MIN_UNPACKED = 200, 2**30
PACKERS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
}


def copies_folder() -> pathlib.Path:
    """Where the copies lie."""
    return cache_folder() / "copies"


def kept_copy(
    place: str | os.PathLike | Location, what: str, fill: Callable[[Any], None], fresh: bool = False
) -> pathlib.Path:
    """A file of the cache that is made from another one, if it is not there yet.

    Args:
      what: tells it from other files made from the same one.
      fill: writes it to the open file that it is given.
      fresh: make it again.

    Raises:
      StoreError: the cache cannot be written.
    """
    copy = _path(place, what)
    with locked(copy):
        if fresh or not copy.exists():
            write_stream(copy, fill)
            for old in copy.parent.glob(f"{copy.name.split('-')[0]}-*"):
                if old != copy:
                    old.unlink(missing_ok=True)
    return copy


def plain_tar(place: str | os.PathLike | Location, magic: bytes) -> pathlib.Path:
    """A tar on this machine, without compression: the file itself if it is one, else its copy.

    Args:
      magic: its first bytes.

    Raises:
      RecordError: it is damaged, or expands without end.
      StoreError: the cache cannot be written.
    """
    packed = next((packer for packer in PACKERS if magic.startswith(packer)), b"")
    if not packed and not is_url(place):
        return pathlib.Path(place)
    return kept_copy(place, "tar", lambda file: _unpack(place, packed, file))


def local_file(place: str | os.PathLike | Location) -> pathlib.Path:
    """A file on this machine: itself, or a copy of an object.

    Raises:
      StoreError: the cache cannot be written.
    """
    return kept_copy(place, "", lambda file: _unpack(place, b"", file)) if is_url(place) else pathlib.Path(place)


def check_room(places: Iterable[str | os.PathLike | Location], what: str = "") -> None:
    """Looks, before any is made, whether there is room for the copies of these files that are not there yet.

    Raises:
      RecordError: there is not; it names the room that is needed, and how to have it.
    """
    places = list(places)
    with ThreadPoolExecutor(THREADS) as pool:
        there_already = list(pool.map(lambda place: _path(place, what).exists(), places))
        missing = [place for place, there in zip(places, there_already, strict=True) if not there]
        needed = sum(pool.map(size_of, missing))
    folder = copies_folder()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise RecordError(
            f"{missing[0]}: {len(missing):,} files of {needed / 1e9:,.1f} GB are to be kept as plain copies in"
            f" {folder}, where {free / 1e9:,.1f} GB are free. Set SYNTHCLIP_CACHE to a folder on a larger disk, or"
            " bring plain files to a disk of this machine"
        )
    if missing:
        _tell(str(location(missing[0]).parent), str(folder))


@functools.cache
def _tell(place: str, folder: str) -> None:
    """Says so once for all files of a folder."""
    print(f"{place}: what cannot be read in any order there is copied once to {folder}", file=sys.stderr, flush=True)


def _path(place: str | os.PathLike | Location, what: str) -> pathlib.Path:
    name = os.fspath(place) if not is_url(place) else str(place)
    name = name if is_url(place) else os.path.realpath(name)
    which = hashlib.sha256(f"{what}\n{name}".encode(errors="surrogateescape")).hexdigest()[:16]
    state = hashlib.sha256(_state(place).encode()).hexdigest()[:16]
    return copies_folder() / f"{which}-{state}-{name.rpartition('/')[2][-80:]}"


def _state(place: str | os.PathLike | Location) -> str:
    """What changes when the file does."""
    if not is_url(place):
        return f"{ends_digest(place)} {os.stat(place).st_mtime_ns}"
    found = stamp(location(place))
    if found is None:
        raise RecordError(f"{place}: no such object. Check the URL")
    return f"{found.bytes} {found.etag or ends_digest(place)}"


def _unpack(place: str | os.PathLike | Location, packed: bytes, out: Any) -> None:
    """Copies a file, unpacked if it is packed."""
    size, done = size_of(place), 0
    most = max(MIN_UNPACKED, MAX_RATIO * size)
    with explained(place), location(place).open("rb") as file:
        source = PACKERS[packed](file) if packed else file
        while True:
            try:
                data = source.read(CHUNK)
            except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
                raise _damaged(place, error) from None
            except OSError as error:
                if packed and error.errno is None:  # how bz2 says that the data are none
                    raise _damaged(place, error) from None
                raise
            if not data:
                break
            done += len(data)
            if packed and done > most:
                raise RecordError(f"{place}: it expands to over {MAX_RATIO} times its size. Is it what it should be?")
            out.write(data)
    if not packed and done != size:
        raise RecordError(f"{place}: {done:,} bytes came of {size:,}. Run the same command again")


def _damaged(place: object, error: Exception) -> RecordError:
    return RecordError(f"{place}: compressed, and damaged or cut off ({error}). Copy it again")

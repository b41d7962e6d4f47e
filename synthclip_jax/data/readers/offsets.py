"""Where the offsets of other people's files are kept once they are known: beside the file, or in a cache folder.

What is kept names the file that it was made from, by size, time of the last change, and a hash of its head and tail,
and has a checksum of its own. Where anything does not fit, the offsets are made again; nothing is said of it, since
nothing is wrong with the file.
"""

import hashlib
import os
import pathlib
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from synthclip_jax.data.records import RecordError
from synthclip_jax.files import text_files
from synthclip_jax.files.locations import Location, cache_folder, is_url, location, size_of
from synthclip_jax.files.storage import StoreError, write_atomic

SUFFIX = ".offsets"
THREADS = 16  # that read at once: on network storage that is waiting
ENDS = 2**16  # bytes at the head and at the tail of a file that are hashed
_FORM = "synthclip offsets 2"


def cached_offsets(
    path: str | os.PathLike | Location, build: Callable[[Location], bytes], fresh: bool = False
) -> bytes:
    """What `build(path)` returns, kept for the next time: finding offsets means hopping through the whole file.

    Kept in `PATH.offsets`, or where that cannot be written in the user's cache folder.

    Args:
      build: goes through the file.
      fresh: do so whatever is kept.
    """
    path = location(path)
    head = _head(path)
    kept_here = cache_folder() / "offsets" / _cache_name(path)
    # Nothing is written beside an object: that may cost, and need other rights.
    places = (kept_here,) if is_url(path) else (path.with_name(path.name + SUFFIX), kept_here)
    for place in () if fresh else places:
        kept = _read(place, head)
        if kept is not None:
            return kept
    offsets = build(path)
    if _head(path) != head:
        return offsets  # somebody is writing to the file
    for place in places:
        try:
            write_atomic(place, head + hashlib.sha256(offsets).hexdigest().encode() + b"\n" + offsets)
            break
        except (StoreError, OSError):
            continue  # a folder of somebody else; without any the offsets are found again at each start
    return offsets


def ends_digest(path: str | os.PathLike | Location) -> str:
    """Hash of the size, the first and the last 64 KiB of a file: cheap, and the same wherever a copy of it lies."""
    path = location(path)
    if not is_url(path) and not stat.S_ISREG(os.stat(path).st_mode):
        raise RecordError(f"{path}: not a regular file. Name a file")  # reading a pipe would wait for ever
    size = size_of(path)
    digest = hashlib.sha256(b"%d\n" % size)
    with path.open("rb") as file:
        digest.update(file.read(ENDS))
        if size > ENDS:
            file.seek(max(ENDS, size - ENDS))
            digest.update(file.read(ENDS))
    return digest.hexdigest()[:32]


def digest_of_files(files: Sequence[tuple[str, bytes]]) -> str:
    """Short hash of files: of what is told of each (where its records lie) and of `ends_digest`, not of their names."""

    def of_one(file: tuple[str, bytes]) -> bytes:
        path, told = file
        return hashlib.sha256(told + ends_digest(path).encode()).digest()

    with ThreadPoolExecutor(THREADS) as pool:
        return hashlib.sha256(b"".join(pool.map(of_one, files))).hexdigest()[:16]


def _head(path: Location) -> bytes:
    """The first line of what is kept: which file it is of."""
    changed = 0 if is_url(path) else os.stat(path).st_mtime_ns
    return f"{_FORM} {ends_digest(path)} {changed}\n".encode()


def _read(place: pathlib.Path, head: bytes) -> bytes | None:
    """What is kept, if it is of this file and whole."""
    try:
        kept = text_files.read_bytes(place)
    except (OSError, text_files.TextFileError):
        return None
    if not kept.startswith(head):
        return None
    check, _, offsets = kept[len(head) :].partition(b"\n")
    return offsets if check == hashlib.sha256(offsets).hexdigest().encode() else None


def _cache_name(path: Location) -> str:
    folder = hashlib.sha256(str(path.parent if is_url(path) else path.resolve().parent).encode()).hexdigest()[:16]
    return f"{folder}-{path.name}{SUFFIX}"

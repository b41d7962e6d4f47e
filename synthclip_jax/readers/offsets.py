"""Where the offsets of other people's files are kept once they are known: beside the file, or in a cache folder."""

import hashlib
import os
import pathlib
import tempfile
from collections.abc import Callable

from synthclip_jax.locations import Location, is_url, location, size_of

SUFFIX = ".offsets"


def cached_offsets(path: str | os.PathLike | Location, build: Callable[[Location], bytes]) -> bytes:
    """What `build(path)` returns, kept for the next time: finding offsets means hopping through the whole file.

    Kept in `PATH.offsets`, or where that cannot be written in the user's cache folder, with the file's size in the
    first line: offsets of a file that has another size now are made again.
    """
    path = location(path)
    head = b"%d bytes\n" % size_of(path)
    kept_here = _cache_folder() / _cache_name(path)
    # Nothing is written beside an object: that may cost, and need other rights.
    places = (kept_here,) if is_url(path) else (path.with_name(path.name + SUFFIX), kept_here)
    for place in places:
        try:
            kept = place.read_bytes()
        except OSError:
            continue
        if kept.startswith(head):
            return kept[len(head) :]
    offsets = build(path)
    for place in places:
        try:
            _write(place, head + offsets)
            break
        except OSError:
            continue  # a folder of somebody else; without any the offsets are found again at each start
    return offsets


def _cache_folder() -> pathlib.Path:
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    return base / "synthclip_jax" / "offsets"


def _cache_name(path: Location) -> str:
    folder = hashlib.sha256(str(path.parent if is_url(path) else path.resolve().parent).encode()).hexdigest()[:16]
    return f"{folder}-{path.name}{SUFFIX}"


def _write(place: pathlib.Path, content: bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    # Other processes may be writing the same file.
    number, temporary = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, place)
    except OSError:
        os.unlink(temporary)
        raise

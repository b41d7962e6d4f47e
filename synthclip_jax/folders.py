"""The files of a folder that strangers made: regular files, each visited once, inside the folder.

Links are followed where they stay inside the folder; what leads out of it, comes back to a folder seen already, is a
device or a pipe, or belongs to the system (hidden files, `@eaDir`, `__MACOSX`, thumbnails) is left out and counted.
"""

import os
import pathlib
import stat
from collections.abc import Iterator

from synthclip_jax.left_out import LeftOut

SYSTEM = frozenset({"@eadir", "__macosx", "#recycle", "$recycle.bin", "system volume information", "lost+found"})
SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r"})

HIDDEN, SYSTEM_CAUSE = "hidden file", "file of the operating system"
OUTSIDE, AGAIN, SPECIAL = "link that leads out of the folder", "link to a folder seen already", "no regular file"


def cause_of_name(name: str) -> str:
    """Why a file or folder of this name is passed over, whatever it holds; empty if it is not."""
    if name.startswith("."):
        return HIDDEN
    return SYSTEM_CAUSE if name.lower() in SYSTEM or name.lower() in SYSTEM_FILES else ""


def is_inside(path: str | os.PathLike, folder: str | os.PathLike) -> bool:
    """Whether a path, all links followed, lies in a folder."""
    inner, outer = os.path.realpath(path), os.path.realpath(folder)
    return inner == outer or inner.startswith(outer.rstrip(os.sep) + os.sep)


def regular_files(
    folder: str | os.PathLike, left_out: LeftOut | None = None, allow_outside: bool = False
) -> Iterator[pathlib.Path]:
    """All regular files below a folder in sorted order, folder by folder.

    Args:
      left_out: where to note what is passed over.
      allow_outside: follow links that lead out of the folder as well.
    """
    left_out = LeftOut("files") if left_out is None else left_out
    base = pathlib.Path(folder)
    seen: set[tuple[int, int]] = set()

    def visit(place: pathlib.Path) -> Iterator[pathlib.Path]:
        found = os.stat(place)
        if (found.st_dev, found.st_ino) in seen:
            left_out.add(AGAIN, str(place.relative_to(base)))
            return
        seen.add((found.st_dev, found.st_ino))
        for name in sorted(os.listdir(place)):
            path = place / name
            shown = str(path.relative_to(base))
            if cause := cause_of_name(name):
                left_out.add(cause, shown)
                continue
            try:
                mode = os.stat(path).st_mode
            except OSError:  # a link to nothing, or to itself
                left_out.add(SPECIAL, shown)
                continue
            if not allow_outside and path.is_symlink() and not is_inside(path, base):
                left_out.add(OUTSIDE, shown)
            elif stat.S_ISDIR(mode):
                yield from visit(path)
            elif stat.S_ISREG(mode):
                yield path
            else:
                left_out.add(SPECIAL, shown)

    yield from visit(base)

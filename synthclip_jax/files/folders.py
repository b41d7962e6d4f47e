"""The files of a folder that strangers made: regular files, each visited once, inside the folder.

Links are followed where they stay inside the folder; what leads out of it, comes back to a folder seen already, is a
device or a pipe, or belongs to the system (hidden files, `@eaDir`, `__MACOSX`, thumbnails) is left out and counted.
"""

import os
import pathlib
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

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
    return _below(os.path.realpath(path), os.path.realpath(folder))


class File(NamedTuple):
    """A regular file: its path below the base, `/` between the parts; bytes; time of its last change."""

    path: str
    size: int
    mtime_ns: int


class Folder(NamedTuple):
    """What one folder holds, each in sorted order. `folders`: paths below the base."""

    path: str
    files: list[File]
    folders: list[str]


class Walker:
    """Looks into the folders below a base, one at a time.

    Args:
      base: a folder; it may itself be a link.
      allow_outside: follow links that lead out of the base as well.
      start: path below the base of the part that is walked, where it is not the whole.
    """

    def __init__(self, base: str | os.PathLike, allow_outside: bool = False, start: str = ""):
        self.base, self.allow_outside = os.fspath(base), allow_outside
        self._real = os.path.realpath(self.base)
        self._start = os.path.realpath(os.path.join(self.base, start))

    def look(self, path: str = "", left_out: LeftOut | None = None) -> Folder:
        """The regular files and the folders in one folder.

        A folder that is a link counts where its own path is not one that is visited anyway.

        Args:
          path: below the base; empty: the base.
          left_out: where to note what is passed over.

        Raises:
          OSError: it cannot be read.
        """
        left_out = LeftOut("files") if left_out is None else left_out
        files, folders = [], []
        for shown, entry in self._entries(path, left_out):
            try:
                found = entry.stat()
            except (OSError, ValueError):  # a link to nothing, or to itself
                left_out.add(SPECIAL, shown)
                continue
            is_folder = stat.S_ISDIR(found.st_mode)
            if entry.is_symlink() and (cause := self._cause_of_link(entry.path, is_folder)):
                left_out.add(cause, shown)
            elif is_folder:
                folders.append(shown)
            elif stat.S_ISREG(found.st_mode):
                files.append(File(shown, found.st_size, found.st_mtime_ns))
            else:
                left_out.add(SPECIAL, shown)
        return Folder(path, files, folders)

    def folders(self, path: str = "") -> list[str]:
        """The folders in one folder, as `look` gives them, without a look at its files."""
        return [shown for shown, entry in self._entries(path) if entry.is_dir() and self._is_followed(entry)]

    def has_file(self, path: str, wanted: Callable[[str], bool]) -> bool:
        """Whether one folder holds a regular file whose name is wanted. Ends at the first."""
        entries = self._entries(path)
        return any(wanted(entry.name) and entry.is_file() and self._is_followed(entry) for _, entry in entries)

    def _entries(self, path: str, left_out: LeftOut | None = None) -> Iterator[tuple[str, os.DirEntry]]:
        """(path below the base, entry) of what a folder holds and is not passed over by its name."""
        with os.scandir(os.path.join(self.base, path) if path else self.base) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                shown = f"{path}/{entry.name}" if path else entry.name
                if cause := cause_of_name(entry.name):
                    if left_out is not None:
                        left_out.add(cause, shown)
                else:
                    yield shown, entry

    def _is_followed(self, entry: os.DirEntry) -> bool:
        return not entry.is_symlink() or not self._cause_of_link(entry.path, entry.is_dir())

    def files(self, path: str = "", left_out: LeftOut | None = None) -> Iterator[File]:
        """All regular files below a folder, in the order of their paths' parts. Each folder is visited once."""
        left_out = LeftOut("files") if left_out is None else left_out
        seen: set[tuple[int, int]] = set()
        waiting: list[File | str] = [path]
        while waiting:
            entry = waiting.pop()
            if isinstance(entry, File):
                yield entry
                continue
            found = os.stat(os.path.join(self.base, entry) if entry else self.base)
            if (found.st_dev, found.st_ino) in seen:
                left_out.add(AGAIN, entry)
                continue
            seen.add((found.st_dev, found.st_ino))
            _, files, folders = self.look(entry, left_out)
            # All lie in one folder, so that the order of the names is that of the paths.
            waiting += sorted([*files, *folders], key=_path, reverse=True)

    def _cause_of_link(self, path: str, is_folder: bool) -> str:
        """Why a link is not followed; empty if it is."""
        target = os.path.realpath(path)
        if not _below(target, self._real) and not self.allow_outside:
            return OUTSIDE
        if not is_folder:
            return ""
        if _below(os.path.realpath(os.path.dirname(path)), target):
            return AGAIN  # it leads to a folder that it lies in
        # What is visited by its own name is called by that. A name that is passed over is not.
        inner = os.path.relpath(target, self._start).split(os.sep)
        return AGAIN if _below(target, self._start) and not any(map(cause_of_name, inner)) else ""


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def regular_files(
    folder: str | os.PathLike, left_out: LeftOut | None = None, allow_outside: bool = False
) -> Iterator[pathlib.Path]:
    """All regular files below a folder, in the order of their paths' parts.

    Args:
      left_out: where to note what is passed over.
      allow_outside: follow links that lead out of the folder as well.
    """
    base = pathlib.Path(folder)
    return (base / file.path for file in Walker(base, allow_outside).files("", left_out))


def _path(entry: File | str) -> str:
    return entry.path if isinstance(entry, File) else entry

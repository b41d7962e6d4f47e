"""Files that a repair takes out of the way: in W/gen/set_aside/TIME until what replaces them is the same."""

import datetime
from collections.abc import Iterator

from synthclip_jax.files.locations import Location, is_url, location
from synthclip_jax.files.storage import create_if_absent, explained, write_atomic


class SetAside:
    """What one repair has set aside.

    Args:
      workdir: whose files.
    """

    def __init__(self, workdir: Location):
        self._workdir = location(workdir)
        time = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H%M%SZ")
        self.folder = self._workdir / "gen" / "set_aside" / time
        self._moved: dict[str, tuple[Location, Location]] = {}  # by name in the workdir: where it was, where it is

    def take(self, path: Location) -> None:
        """Moves a file out of the way, if it is there."""
        if not path.exists():
            return
        name = self._name(path)
        kept = self.folder / name
        with explained(kept):
            number = 1
            while kept.exists():
                number += 1
                kept = self.folder / f"{name}.{number}"
            if is_url(path):
                create_if_absent(kept, path.read_bytes())
                path.unlink()
            else:
                kept.parent.mkdir(parents=True, exist_ok=True)
                path.rename(kept)
        self._moved[name] = (path, kept)

    def put_back(self, *paths: Location) -> None:
        """Moves files back; where there is another one by now, that stays. Without names: all files."""
        for name in [self._name(path) for path in paths] if paths else list(self._moved):
            if name not in self._moved:
                continue
            path, kept = self._moved.pop(name)
            if path.exists():
                continue
            if is_url(path):
                write_atomic(path, kept.read_bytes())
                kept.unlink()
            else:
                kept.rename(path)
        self._tidy()

    def restore(self, path: Location) -> None:
        """Puts a file back in place of the one that was made since; without one, that is deleted."""
        if path.exists():
            path.unlink()
        self.put_back(path)

    def drop(self, path: Location) -> None:
        """Deletes what was set aside of a file that has been made again to the last byte, or was empty."""
        if moved := self._moved.pop(self._name(path), None):
            moved[1].unlink()
            self._tidy()

    def kept(self) -> Iterator[str]:
        """The names of files that are still set aside, in the workdir."""
        yield from self._moved

    def _name(self, path: Location) -> str:
        return (
            str(path.relative_to(self._workdir)) if not is_url(path) else path.path.split(self._workdir.path + "/")[1]
        )

    def _tidy(self) -> None:
        """Removes folders that hold nothing."""
        if is_url(self.folder) or not self.folder.is_dir():
            return
        for folder in sorted((path for path in self.folder.rglob("*") if path.is_dir()), reverse=True):
            if not any(folder.iterdir()):
                folder.rmdir()
        for folder in (self.folder, self.folder.parent):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

"""Writes that are whole or absent, and first come first served, on disks and in object stores.

On a disk (network storage included) a file is written as temporary file, fsync, rename, and a lock keeps two writers of
one thing apart. An object store writes an object whole or not at all, and creates one only if there is none by a
condition that it checks itself (S3: `If-None-Match: *`, Google: `ifGenerationMatch=0`); there are no locks.

All files of a workdir or cache are written here, so one promise holds for all: once a write has returned, the file
outlives a power failure. Two things are no single writes: a folder (checkpoint, export) is filled under another name,
then renamed; a log (`metrics.jsonl`) grows line by line, and half a line at its end is left out when it is read.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from synthclip_jax.errors import UserError, is_unreachable
from synthclip_jax.files.locations import Location, is_url, location
from synthclip_jax.files.locks import NO_LOCKS

LEFTOVER_SECONDS = (
    3600.0  # a temporary file that nobody has written to for so long belongs to a process that was killed
)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EROFS, errno.EPERM)
_GONE = (errno.ESTALE, errno.ENOTCONN, errno.EIO, errno.ENODEV, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT)
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)


class StoreError(UserError, RuntimeError):
    """The workdir cannot be written or read as it should; the text says what to do."""


class Stamp(NamedTuple):
    """What a listing tells of a file: enough to see that it is not the one that was written."""

    bytes: int
    etag: str  # an object store's name for these very bytes; empty on a disk


def write_atomic(path: str | os.PathLike | Location, data: bytes) -> None:
    """Writes a file that is either whole or absent, whatever happens meanwhile; one that is there is replaced.

    Raises:
      StoreError: no space is left, the folder cannot be written, or the storage is gone; nothing half-written stays.
    """
    path = location(path)
    if is_url(path):
        with explained(path):
            path.fs.pipe_file(path.path, data)
    else:
        with _replacing(path, data) as temporary:
            os.replace(temporary, path)


def write_stream(path: str | os.PathLike | Location, fill: Callable[[Any], None]) -> dict[str, Any]:
    """Writes a file as `write_atomic` does, without ever holding it in memory.

    Args:
      path: the file.
      fill: writes the contents, front to back, to the open file that it is given.

    Returns:
      Its size and digest: `bytes`, `sha256`.

    Raises:
      StoreError: as `write_atomic`.
    """
    path = location(path)
    with tempfile.TemporaryDirectory() if is_url(path) else contextlib.nullcontext() as scratch:
        local = pathlib.Path(scratch) / path.name if scratch else path
        measured: list[_Measured] = []

        def write(file: Any) -> None:
            measured.append(_Measured(file))
            fill(measured[0])

        with _replacing(local, write) as temporary:
            os.replace(temporary, local)
        if scratch:
            with explained(path):
                path.fs.put_file(str(local), path.path)
    return {"bytes": measured[0].bytes, "sha256": measured[0].digest.hexdigest()}


class _Measured:
    """A file that is written front to back, and measured meanwhile."""

    closed = False

    def __init__(self, file: Any):
        self._file, self.bytes, self.digest = file, 0, hashlib.sha256()

    def write(self, data: Any) -> int:
        self._file.write(data)
        self.digest.update(data)
        self.bytes += len(data)
        return len(data)

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """Does nothing: the opener closes the file."""


def create_if_absent(path: str | os.PathLike | Location, data: bytes) -> bool:
    """Writes a file only if there is none yet, atomically; says whether this call made it.

    In an object store a lost answer is asked for again: False may also mean that this very call has made it.

    Raises:
      StoreError: as `write_atomic`.
    """
    path = location(path)
    if is_url(path):
        with explained(path):
            # What checks no condition of its own (a protocol other than s3:// and gs://) is at least looked at first.
            if path.exists():
                return False
            try:
                path.fs.pipe_file(path.path, data, mode="create")
            except FileExistsError:
                return False
        return True
    with _replacing(path, data) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return _rename_if_absent(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
    return True


def _rename_if_absent(temporary: str, path: pathlib.Path) -> bool:
    """Where a file can have only one name (mounted buckets, SMB, FAT): a lock makes looking and renaming one step."""
    with locked(path):
        if path.exists():
            return False
        os.replace(temporary, path)
    return True


@contextlib.contextmanager
def locked(path: Location) -> Iterator[None]:
    """Keeps other processes out of the same lines for the same path, until they end or this process dies.

    An advisory lock beside the file, which network storage shares between machines. In an object store, and where the
    file system has no locks, nothing is locked.
    """
    if is_url(path):
        yield
        return
    lock = path.with_name(f".{path.name}.lock")
    handle = None
    try:
        with explained(path):
            lock.parent.mkdir(parents=True, exist_ok=True)
            handle = _lock(lock)
        yield
    finally:
        if handle is not None:
            # Removed while it is held: a waiting process sees that and makes a new one.
            with contextlib.suppress(OSError):
                lock.unlink()
            os.close(handle)


def _lock(lock: pathlib.Path) -> int:
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if os.stat(lock).st_ino == os.fstat(handle).st_ino:
                return handle
        except FileNotFoundError:
            pass  # the last holder has removed it
        except OSError as error:
            if error.errno in NO_LOCKS:
                return handle
            os.close(handle)
            raise
        os.close(handle)


@contextlib.contextmanager
def _replacing(path: pathlib.Path, data: bytes | Callable[[Any], None]) -> Iterator[str]:
    """A synced temporary file with the data in the path's folder; the folder is synced after the body's rename."""
    temporary = None
    with explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
            with os.fdopen(handle, "wb") as file:
                if callable(data):
                    data(file)
                else:
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp makes it private; datasets are meant to be shared
            yield temporary
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except BaseException:
            if temporary:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            raise


@contextlib.contextmanager
def explained(path: str | os.PathLike | Location) -> Iterator[None]:
    """Turns what storage raises into a `StoreError` that says what to do.

    Raises:
      StoreError: the body raised an OSError, or the client of an object store an error of its own.
    """
    try:
        yield
    except Exception as error:
        if not (isinstance(error, OSError) or is_unreachable(error)):
            raise
        raise StoreError(
            f"{path}: {_what(path, error)}; everything committed so far is kept ({_cause(error)})"
        ) from error


def _what(path: str | os.PathLike | Location, error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number in _NO_SPACE:
        return "no space is left on the device. Free some and run the same command again"
    if number == errno.EFBIG:
        return (
            "the file is larger than this process may write (ulimit -f) or the file system holds. Raise the limit, or"
            " use smaller shards (shard_size) in another --workdir"
        )
    if isinstance(error, FileNotFoundError) and is_url(path):
        return "no such bucket or object. Check the URL, make the bucket if it is new, and run the same command again"
    if isinstance(error, PermissionError) and is_url(path):
        return (
            "the object store does not allow it. Check the credentials and their rights and run the same command again"
        )
    if number in _FORBIDDEN:
        return "the folder cannot be written. Check its permissions and run the same command again"
    if is_url(path):
        return "the object store cannot be reached or refuses. Run the same command again once it answers"
    if number in _GONE:
        return "the file system does not answer. Mount it again and run the same command again"
    return "the file could not be written. Run the same command again once the cause is gone"


def _cause(error: Exception) -> str:
    return str(error) or type(error).__name__


def list_files(folder: Location) -> dict[str, Stamp]:
    """The files of a folder by name; none if there is no such folder.

    Raises:
      StoreError: the storage cannot be read.
    """
    with explained(folder):
        try:
            if is_url(folder):
                entries = folder.fs.ls(folder.path, detail=True)
                files = (entry for entry in entries if entry["type"] == "file")
                return {entry["name"].rpartition("/")[2]: _stamp(entry) for entry in files}
            with os.scandir(folder) as entries:
                return {entry.name: Stamp(entry.stat().st_size, "") for entry in entries if entry.is_file()}
        except FileNotFoundError:
            return {}


def stamp(path: Location) -> Stamp | None:
    """What a listing would tell of this file; None if there is none.

    Raises:
      StoreError: the storage cannot be read.
    """
    with explained(path):
        try:
            if is_url(path):
                return _stamp(path.fs.info(path.path))
            return Stamp(path.stat().st_size, "")
        except FileNotFoundError:
            return None


def _stamp(entry: dict) -> Stamp:
    etag = entry.get("ETag") or entry.get("md5Hash") or entry.get("etag") or ""
    return Stamp(entry["size"], str(etag).strip('"'))


def read_files(paths: Sequence[Location]) -> list[bytes | None]:
    """The contents of small files; None for those that are not there. In an object store all are asked for at once.

    Raises:
      StoreError: the storage cannot be read.
    """
    if not paths:
        return []
    with explained(paths[0].parent):
        if is_url(paths[0]):
            found = paths[0].fs.cat([path.path for path in paths], on_error="return")
            answers = [found[path.path] for path in paths]
            for answer in answers:
                if isinstance(answer, Exception) and not isinstance(answer, FileNotFoundError):
                    raise answer
            return [None if isinstance(answer, Exception) else answer for answer in answers]
        return [_read(path) for path in paths]


def _read(path: pathlib.Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def remove_leftovers(folder: Location) -> None:
    """Deletes temporary files of processes that were killed long ago; an object store has none."""
    if is_url(folder) or not folder.is_dir():
        return
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                path.unlink()

"""Plans and commit records: what makes generation resumable to the shard.

A stage owns a folder with `plan.json` (written once, create-if-absent) and `commits/00000.json`, one small record per
finished shard. A shard is done if and only if its record exists and agrees with the plan and with the files it names.
Files are written as temporary file, fsync, rename; the record follows the same way. So killing the process at any
moment loses at most the shards in flight, and nothing is ever half there.
"""

import contextlib
import dataclasses
import datetime
import errno
import hashlib
import json
import os
import pathlib
import socket
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from synthclip_jax.generated import stage_folder as stage_folder  # where a stage lies, for all who read or write it

DATA_PREFIX = "data:"  # a file name with this prefix goes to the data folder instead of the stage folder


class StoreError(RuntimeError):
    """The workdir cannot be written or read as it should; the text says what to do."""


class PlanMismatch(StoreError):
    """The workdir was made with another configuration."""


@dataclasses.dataclass(frozen=True)
class ShardOutput:
    """What a worker made of one shard: file contents by name, how many items, what was rejected and why."""

    files: dict[str, bytes]
    count: int
    rejects: dict[str, int] = dataclasses.field(default_factory=dict)
    info: dict[str, Any] = dataclasses.field(default_factory=dict)


def sha256(data: bytes) -> str:
    """Hex digest of the bytes."""
    return hashlib.sha256(data).hexdigest()


def write_atomic(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file that is either whole or absent, whatever happens meanwhile.

    Raises:
      StoreError: no space is left, or the folder cannot be written; nothing half-written stays behind.
    """
    with _replacing(pathlib.Path(path), data) as temporary:
        os.replace(temporary, path)


def create_if_absent(path: str | os.PathLike, data: bytes) -> bool:
    """Writes a file only if there is none yet, atomically; says whether this call made it."""
    with _replacing(pathlib.Path(path), data) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            os.unlink(temporary)
    return True


@contextlib.contextmanager
def _replacing(path: pathlib.Path, data: bytes) -> Iterator[str]:
    """A synced temporary file with the data in the path's folder; the folder is synced after the body's rename."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
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
    except OSError as error:
        if temporary:
            pathlib.Path(temporary).unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = "no space is left on the device. Free some and run the same command again"
        elif error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            what = "the folder cannot be written. Check its permissions and run the same command again"
        else:
            what = "the file could not be written. Run the same command again once the cause is gone"
        raise StoreError(f"{path}: {what}; everything committed so far is kept ({error})") from error


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file.

    Raises:
      StoreError: the file is not JSON.
    """
    try:
        return json.loads(pathlib.Path(path).read_bytes())
    except ValueError as error:
        raise StoreError(f"{path}: not valid JSON ({error}). Delete it and run the stage again") from error


def to_json(value: Any) -> bytes:
    """Readable, canonical JSON: the same value gives the same bytes."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Lines `key: old -> new` for each leaf in which two JSON values differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        lines = []
        for key in sorted({*old, *new}):
            if key not in old:
                lines.append(f"{prefix}{key}: (absent) -> {_short(new[key])}")
            elif key not in new:
                lines.append(f"{prefix}{key}: {_short(old[key])} -> (absent)")
            else:
                lines += differences(old[key], new[key], f"{prefix}{key}.")
        return lines
    return [] if old == new else [f"{prefix[:-1]}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"


class StageStore:
    """The folder of one stage: its plan, its files and its commit records.

    Args:
      folder: where plan, records and the stage's own files live.
      data_folder: where files named `data:NAME` go (the dataset); defaults to `folder`.
    """

    def __init__(self, folder: str | os.PathLike, data_folder: str | os.PathLike | None = None):
        self.folder = pathlib.Path(folder)
        self.data_folder = pathlib.Path(data_folder) if data_folder else self.folder
        self.plan_digest = ""

    @property
    def plan_path(self) -> pathlib.Path:
        """The plan's file."""
        return self.folder / "plan.json"

    def ensure_plan(self, plan: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the plan if there is none, and refuses one that differs from the plan already there.

        Raises:
          PlanMismatch: names each key that differs, with both values.
        """
        plan = json.loads(to_json(dict(plan)))  # tuples become lists, as they will be when read back
        create_if_absent(self.plan_path, to_json(plan))
        existing = read_json(self.plan_path)
        lines = differences(existing, plan)
        if lines:
            shown = "\n  ".join(lines[:20])
            raise PlanMismatch(
                f"{self.plan_path}: this workdir was made with another configuration (there -> now):\n  {shown}\n"
                "Use the configuration it was made with, or another --workdir"
            )
        self.plan_digest = sha256(to_json(existing))[:16]
        return existing

    def path(self, name: str) -> pathlib.Path:
        """Where a file of a shard's output lies."""
        if name.startswith(DATA_PREFIX):
            return self.data_folder / name.removeprefix(DATA_PREFIX)
        return self.folder / name

    def commit(self, shard: int, output: ShardOutput, seconds: float = 0.0) -> dict[str, Any]:
        """Writes a shard's files, then its record. Committing the same shard twice is harmless."""
        files = {}
        for name, data in sorted(output.files.items()):
            write_atomic(self.path(name), data)
            files[name] = {"bytes": len(data), "sha256": sha256(data)}
        record = {
            "shard": shard,
            "plan": self.plan_digest,
            "count": output.count,
            "rejects": dict(sorted(output.rejects.items())),
            "files": files,
            "seconds": round(seconds, 3),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            **output.info,
        }
        write_atomic(self._record_path(shard), to_json(record))
        return record

    def committed(self) -> dict[int, dict[str, Any]]:
        """The records of shards that are done, by shard index.

        A record that belongs to another plan, or whose files are missing or of another size, counts as not done:
        the shard is made again.
        """
        records = {}
        for path in sorted((self.folder / "commits").glob("[0-9]*.json")):
            try:
                record = read_json(path)
            except StoreError:
                continue
            if record.get("plan") == self.plan_digest and all(
                self._size(name) == meta["bytes"] for name, meta in record["files"].items()
            ):
                records[int(record["shard"])] = record
        return records

    def _size(self, name: str) -> int:
        try:
            return self.path(name).stat().st_size
        except OSError:
            return -1

    def _record_path(self, shard: int) -> pathlib.Path:
        return self.folder / "commits" / f"{shard:05d}.json"
